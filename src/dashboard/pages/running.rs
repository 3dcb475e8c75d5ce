//! The changes of this process, with their progress.

use maud::{Markup, html};

use super::super::{
    actions::StartedAction,
    context::Context,
    fault::Fault,
    layout::{DashboardPage, age, hidden_fields, number, table, token_field},
    preview,
};

pub(super) fn page(cx: &Context) -> Result<DashboardPage, Fault> {
    if let Some(id) = cx.form.get("id") {
        let action = cx.state.actions.get(id)?;
        return Ok(action_page(cx, &action));
    }
    let actions = cx.state.actions.list();
    let rows = html! {
        @for action in &actions {
            tr {
                th scope="row" { a href=(cx.link("/actions", [("id", action.id.as_str())])) { (action.change.title()) } }
                td { (preview::excerpt(&action.change.stream, 40)) @if let Some(group) = &action.change.group { " / " (preview::excerpt(group, 40)) } }
                td { (preview::excerpt(&action.user, 40)) }
                td { (age(action.started_at)) }
                td { (outcome(action)) }
            }
        }
    };
    let live_part = html! {
        p.quiet { "The last changes that were made with this dashboard, while this process lives. The log has all of them." }
        @if actions.is_empty() { p { "There are none." } }
        @else { (table("Changes", &["change", "stream and group", "user", "begun", "outcome"], &rows)) }
    };
    Ok(DashboardPage::new("Changes", live_part))
}

fn outcome(action: &StartedAction) -> Markup {
    let progress = action.progress();
    html! {
        @match &progress.outcome {
            Some(outcome) => {
                @let class = match outcome.as_str() { "done" => "good", "stopped" => "warn", _ => "dead" };
                span.(class) { (outcome.as_str()) } ": " (preview::excerpt(outcome.text(), 400))
            }
            None => {
                span.runs { "runs" } ": " (number(progress.done))
                @if let Some(total) = progress.total { " of " (number(total)) }
                " so far"
            }
        }
    }
}

fn action_page(cx: &Context, action: &StartedAction) -> DashboardPage {
    let change = &action.change;
    let progress = action.progress();
    let mut back = vec![("stream", change.stream.as_str())];
    back.extend(change.group.as_ref().map(|group| ("group", group.as_str())));
    let live_part = html! {
        p.outcome role="status" { (outcome(action)) }
        @if let (None, Some(total)) = (&progress.outcome, progress.total) {
            progress max=(total) value=(progress.done) aria-label="Progress" { (progress.done) " of " (total) }
        }
        dl.facts {
            div { dt { "stream" } dd { (preview::line(&change.stream)) } }
            @if let Some(group) = &change.group { div { dt { "group" } dd { (preview::line(group)) } } }
            div { dt { "user" } dd { (preview::line(&action.user)) } }
            div { dt { "begun" } dd { (age(action.started_at)) } }
        }
    };
    let fixed_part = html! {
        @if progress.outcome.is_none() && !cx.config.is_read_only {
            form method="post" action=(cx.link("/stop", [])) {
                (token_field(cx))
                (hidden_fields([("id", action.id.as_str())]))
                p.buttons { button.danger { "Stop" } }
            }
        }
        p { a.button href=(cx.link(change.page(), back)) { "Back" } }
    };
    DashboardPage::new(change.title(), live_part).fixed_part(fixed_part)
}
