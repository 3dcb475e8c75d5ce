//! The recorded tasks of a group.

use maud::{Markup, html};

use super::super::{
    context::{Context, Scope},
    fault::Fault,
    layout::{DashboardPage, age, button, hidden_fields, number, table},
    preview,
};
use crate::transport::{TaskPage, TaskQuery, TaskState};

/// The states in the order of the menu.
pub(super) const STATES: [TaskState; 7] = [
    TaskState::Running,
    TaskState::Waiting,
    TaskState::Delayed,
    TaskState::Dead,
    TaskState::Done,
    TaskState::Discarded,
    TaskState::Cancelled,
];
/// The number of tasks on a page, unless the request has the parameter `max`.
const TASKS_PER_PAGE: usize = 50;

/// Reads the query of a request from its parameters.
pub(in crate::dashboard) fn query(cx: &Context) -> Result<TaskQuery, Fault> {
    let mut query = TaskQuery::all().max(cx.form.number("max")?.unwrap_or(TASKS_PER_PAGE).min(100));
    if let Some(state) = cx.form.get("state") {
        let state = TaskState::from_name(state)
            .ok_or_else(|| Fault::bad_request("there is no such state of a task"))?;
        query = query.state(state);
    }
    query.name = cx.form.get("name").map(crate::Name::from);
    query.after = cx.form.get("after").map(str::to_owned);
    Ok(query)
}

pub(super) async fn page(cx: &Context) -> Result<DashboardPage, Fault> {
    let scope = cx.scope().await?;
    let page = scope.handle.tasks().list(query(cx)?).await?;
    let live_part = html! {
        p.quiet { "Tasks that are tracked or unique have a record. Other messages are under Waiting, Running and Delayed." }
        (list(cx, &scope, &page))
    };
    Ok(DashboardPage::new("Recorded tasks", live_part)
        .fixed_part(filter_form(cx, &scope))
        .in_scope(&scope))
}

fn list(cx: &Context, scope: &Scope, page: &TaskPage) -> Markup {
    let rows = html! {
        @for task in &page.tasks {
            tr {
                th scope="row" { a href=(cx.link("/task", scope.parameters().into_iter().chain([("id", task.id.as_str())]))) { (preview::excerpt(&task.name, 60)) } }
                td { (state(task.state)) }
                td.num { (number(task.attempt.0.into())) }
                td { (age(task.accepted_at)) }
                td { @match task.started_at { Some(at) => { (age(at)) } None => { "–" } } }
                td { @match task.ended_at { Some(at) => { (age(at)) } None => { "–" } } }
                td { @match &task.progress { Some(progress) => { (preview::excerpt(&String::from_utf8_lossy(progress), 40)) } None => { "" } } }
                td.reason { (preview::excerpt(&task.reason, 100)) }
            }
        }
    };
    let head = [
        "name", "state", "#attempt", "accepted", "started", "ended", "progress", "reason",
    ];
    html! {
        @if page.tasks.is_empty() { p { "No task is found." } }
        @else { (table("Tasks", &head, &rows)) }
        @if let Some(next) = page.next.as_ref().and_then(|next| next.after.as_deref()) {
            p.pager { a href=(cx.link_here(&[("after", next)])) { "Next page" } }
        }
    }
}

/// Formats the state of a task.
pub(super) fn state(state: TaskState) -> Markup {
    let class = match state {
        TaskState::Running => "runs",
        TaskState::Waiting | TaskState::Delayed => "waits",
        TaskState::Done => "good",
        TaskState::Dead => "dead",
        _ => "quiet",
    };
    html! { span.(class) { (state.as_str()) } }
}

fn filter_form(cx: &Context, scope: &Scope) -> Markup {
    let selected = cx.form.get("state").unwrap_or_default();
    let [stream, group] = scope.parameters();
    let mut cancel_parameters = vec![("do", "cancel-all"), stream, group];
    cancel_parameters.extend(cx.form.get("state").map(|state| ("state", state)));
    cancel_parameters.extend(cx.form.get("name").map(|name| ("name", name)));
    let is_live = TaskState::from_name(selected).is_none_or(|state| !state.has_ended());
    html! {
        form.filter method="get" action=(cx.link("/tasks", [])) {
            (hidden_fields(scope.parameters()))
            label { "State " select name="state" {
                option value="" { "any" }
                @for state in STATES { option value=(state.as_str()) selected[state.as_str() == selected] { (state.as_str()) } }
            } }
            label { "Name " input name="name" value=[cx.form.get("name")] autocomplete="off"; }
            button { "Show" }
        }
        @if is_live { p.buttons { (button(cx, "Cancel all of these…", &cancel_parameters)) } }
    }
}
