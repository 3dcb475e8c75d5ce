//! Shows one task: its record, and its changes of state in the feed.

use std::time::Duration;

use maud::{Markup, html};

use super::{
    super::{
        context::{Context, Scope},
        fault::Fault,
        layout::{DashboardPage, age, button, duration, hidden_fields, number, table, time},
        preview,
    },
    letter, tasks,
};
use crate::{
    message::MessageId,
    transport::{ChangesFrom, FeedItem, TaskChange, TaskState, TaskStatus, Tasks},
};

/// The maximum number of changes, of all tasks, that a search reads.
const MAX_CHANGES: usize = 20_000;
/// The maximum time for the search.
const MAX_SEARCH_TIME: Duration = Duration::from_secs(3);
/// If no change arrives for this time, the search has reached the end of the feed.
const END_OF_FEED_AFTER: Duration = Duration::from_millis(150);

/// Returns those changes of a task that the feed still has, and `true` if the whole feed was
/// searched.
pub(in crate::dashboard) async fn task_history(
    tasks: &Tasks,
    id: &MessageId,
) -> Result<(Vec<TaskChange>, bool), Fault> {
    let mut feed = tasks.changes(ChangesFrom::Beginning).await?;
    let mut found = Vec::new();
    let started = tokio::time::Instant::now();
    for _ in 0..MAX_CHANGES {
        if started.elapsed() >= MAX_SEARCH_TIME {
            return Ok((found, false));
        }
        match tokio::time::timeout(END_OF_FEED_AFTER, feed.next()).await {
            Err(_) => return Ok((found, true)),
            Ok(Err(error)) => return Err(error.into()),
            Ok(Ok(FeedItem::Change(change))) if change.id == *id => found.push(change),
            Ok(Ok(_)) => {}
        }
    }
    Ok((found, false))
}

pub(super) async fn page(cx: &Context) -> Result<DashboardPage, Fault> {
    if cx.form.get("stream").is_none() || cx.form.get("id").is_none() {
        return Ok(DashboardPage::new("Find a task", html! {}).fixed_part(search_form(cx, None)));
    }
    let scope = cx.scope().await?;
    let id = MessageId::from(cx.form.need("id")?);
    let tasks = scope.handle.tasks();
    let status = tasks.status(&id).await?;
    let live_part = match &status {
        Some(status) => record_facts(status),
        None => html! {
            p { "The task " code { (preview::line(&id)) } " has no record in this group: it was neither tracked nor unique, its record has expired, or it never existed." }
        },
    };
    let (changes, is_complete) = task_history(&tasks, &id).await?;
    let [stream, group] = scope.parameters();
    let dead_letter_link = cx.link("/dead", [stream, group, ("id", id.as_str())]);
    let fixed_part = html! {
        (timeline(&changes, is_complete))
        p.buttons {
            @if status.as_ref().is_some_and(|status| !status.state.has_ended()) {
                (button(cx, "Cancel…", &[("do", "cancel"), ("id", &id), stream, group]))
            }
            a.button href=(dead_letter_link) { "Search its dead letter" }
        }
        (search_form(cx, Some(&scope)))
    };
    let title = match &status {
        Some(status) => format!("Task {}", preview::excerpt(&status.name, 80)),
        None => "Task".to_owned(),
    };
    Ok(DashboardPage::new(title, live_part)
        .fixed_part(fixed_part)
        .in_scope(&scope))
}

fn record_facts(status: &TaskStatus) -> Markup {
    let start_and_end = status.started_at.zip(status.ended_at);
    let attempt_duration = start_and_end.and_then(|(start, end)| end.duration_since(start).ok());
    html! {
        dl.facts {
            div { dt { "state" } dd { (tasks::state(status.state)) } }
            div { dt { "attempt" } dd { (number(status.attempt.0.into())) } }
            div { dt { "accepted" } dd { (age(status.accepted_at)) " · " (time(status.accepted_at)) } }
            @if let Some(at) = status.started_at { div { dt { "last start" } dd { (age(at)) " · " (time(at)) } } }
            @if let Some(at) = status.ended_at { div { dt { "ended" } dd { (age(at)) " · " (time(at)) } } }
            @if let Some(took) = attempt_duration { div { dt { "last attempt took" } dd { (duration(took)) } } }
            @if !status.reason.is_empty() { div { dt { "reason" } dd { (preview::excerpt(&status.reason, 4_000)) } } }
            @if let Some(unique) = &status.unique { div { dt { "unique key" } dd { code { (preview::line(unique)) } } } }
            @if let Some(progress) = &status.progress { div { dt { "progress" } dd { code { (preview::lossy_line(progress)) } } } }
            @if let Some(length) = status.result_too_large { div { dt { "result" } dd { "not recorded: " (number(length)) " bytes" } } }
            div { dt { "id" } dd { code { (preview::line(&status.id)) } } }
        }
        @if let Some(result) = &status.result {
            h2 { "Result" }
            (letter::payload(result))
        }
    }
}

fn timeline(changes: &[TaskChange], is_complete: bool) -> Markup {
    let rows = html! {
        @for (index, change) in changes.iter().enumerate() {
            tr {
                th scope="row" { (time(change.at)) }
                td { @match index.checked_sub(1).and_then(|before| change.at.duration_since(changes[before].at).ok()) { Some(after) => { "+ " (duration(after)) } None => { "–" } } }
                td { (tasks::state(change.state)) }
                td.num { (number(change.attempt.0.into())) }
                td.reason { (preview::excerpt(&change.reason, 400)) }
            }
        }
    };
    let head = ["time", "after", "state", "#attempt", "reason"];
    html! {
        h2 { "States" }
        @if changes.is_empty() { p { "The feed has no change of this task: about the last 10,000 changes of all tasks are kept." } }
        @else { (table("Changes", &head, &rows)) }
        @if !is_complete { p.quiet { "The search of the feed ended early, so there may be more changes." } }
        @else if changes.first().is_some_and(|first| !matches!(first.state, TaskState::Waiting | TaskState::Delayed)) {
            p.quiet { "Earlier changes are no longer kept." }
        }
    }
}

fn search_form(cx: &Context, scope: Option<&Scope>) -> Markup {
    html! {
        section aria-labelledby="another" {
            h2 #another { @if scope.is_some() { "Another task" } @else { "By its id" } }
            form.filter method="get" action=(cx.link("/task", [])) {
                @match scope {
                    Some(scope) => { (hidden_fields(scope.parameters())) }
                    None => {
                        label { "Stream " input name="stream" required value=[cx.form.get("stream")] autocomplete="off"; }
                        label { "Group " input name="group" value=[cx.form.get("group")] autocomplete="off" placeholder="the first one"; }
                    }
                }
                label { "Id " input name="id" required autocomplete="off"; }
                button { "Find" }
            }
        }
    }
}
