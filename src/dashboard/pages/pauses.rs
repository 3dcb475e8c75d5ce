//! The pauses of a group and of its stream.

use maud::{Markup, html};

use super::super::{
    change::target_text,
    context::{Context, Scope},
    fault::Fault,
    layout::{DashboardPage, age, button, hidden_fields, table},
    preview,
};
use crate::transport::{Pause, PauseTarget};

pub(super) async fn page(cx: &Context) -> Result<DashboardPage, Fault> {
    let scope = cx.scope().await?;
    let pauses = scope.handle.control().pauses().await?;
    let live_part = html! {
        @if pauses.is_empty() { p { "Nothing is paused." } } @else { (list(cx, &scope, &pauses)) }
    };
    Ok(DashboardPage::new("Pauses", live_part)
        .fixed_part(pause_form(cx, &scope))
        .in_scope(&scope))
}

fn list(cx: &Context, scope: &Scope, pauses: &[Pause]) -> Markup {
    let [stream, group] = scope.parameters();
    let rows = html! {
        @for pause in pauses {
            tr {
                th scope="row" { (target_text(&pause.target)) }
                td.reason { (preview::line(&pause.reason)) }
                td { (age(pause.since)) }
                td.buttons { @match &pause.target {
                    PauseTarget::Stream => { (button(cx, "Resume…", &[("do", "resume"), ("target", "stream"), stream, group])) }
                    PauseTarget::Group => { (button(cx, "Resume…", &[("do", "resume"), ("target", "group"), stream, group])) }
                    PauseTarget::Name(name) => { (button(cx, "Resume…", &[("do", "resume"), ("target", "name"), ("name", name), stream, group])) }
                } }
            }
        }
    };
    table("Pauses", &["paused", "reason", "since", "changes"], &rows)
}

fn pause_form(cx: &Context, scope: &Scope) -> Markup {
    if cx.config.is_read_only {
        return html! {};
    }
    html! {
        section aria-labelledby="pause" {
            h2 #pause { "Pause" }
            form.filter method="get" action=(cx.link("/confirm", [])) {
                (hidden_fields(scope.parameters()))
                (hidden_fields([("do", "pause")]))
                label { "Subject " select name="target" {
                    option value="group" { "this group" }
                    option value="stream" { "the stream, all groups" }
                    option value="name" { "the messages with a name" }
                } }
                label { "Name, for the last one " input name="name" autocomplete="off"; }
                label { "Reason " input name="reason" maxlength="300" required autocomplete="off"; }
                button { "Pause…" }
            }
        }
    }
}
