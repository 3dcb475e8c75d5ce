//! The schedules of a stream.

use maud::{Markup, html};

use super::super::{
    context::Context,
    fault::Fault,
    layout::{DashboardPage, age, button, number, table, timestamp},
    preview,
};
use crate::{
    message::Name,
    transport::{ScheduleRun, ScheduleStatus},
};

/// The maximum number of schedules that are shown.
const MAX_SCHEDULES: usize = 200;

pub(super) async fn page(cx: &Context) -> Result<DashboardPage, Fault> {
    let (stream, handle) = cx.stream()?;
    let schedules = handle.schedules().list().await?;
    let live_part = html! {
        @if schedules.is_empty() { p { "This stream has no schedules." } }
        @else { (list(cx, &stream, &schedules)) }
        @if schedules.len() > MAX_SCHEDULES { p.quiet { (number((schedules.len() - MAX_SCHEDULES) as u64)) " more are not shown." } }
    };
    let page = DashboardPage::new("Schedules", live_part);
    Ok(match cx.form.get("group") {
        Some(_) => page.in_scope(&cx.scope().await?),
        None => page.of_stream(&stream),
    })
}

fn list(cx: &Context, stream: &Name, schedules: &[ScheduleStatus]) -> Markup {
    let rows = html! {
        @for schedule in schedules.iter().take(MAX_SCHEDULES) {
            @let change = |verb| [("do", verb), ("schedule", schedule.name.as_str()), ("stream", stream.as_str())];
            tr {
                th scope="row" { (preview::excerpt(&schedule.name, 80)) }
                td { @match &schedule.task {
                    Ok(task) => { code { (preview::line(&task.schedule().to_string())) } br; span.quiet { "sends " (preview::excerpt(task.task_name(), 60)) } }
                    Err(fault) => { span.warn { (preview::excerpt(fault, 120)) } }
                } }
                td {
                    @if schedule.paused { span.warn { "paused" } }
                    @else { @for tick in schedule.next_ticks(1) { (age(tick)) } }
                }
                td { @match schedule.runs.last() { Some(run) => { (last_run(cx, stream, schedule, run)) } None => { "never" } } }
                td.buttons {
                    (button(cx, "Run now…", &change("schedule-run")))
                    @if schedule.paused { (button(cx, "Resume…", &change("schedule-resume"))) }
                    @else { (button(cx, "Pause…", &change("schedule-pause"))) }
                    (button(cx, "Remove…", &change("schedule-remove")))
                }
            }
        }
    };
    let head = ["schedule", "times", "next", "last run", "changes"];
    let head = if cx.config.is_read_only {
        &head[..4]
    } else {
        &head[..]
    };
    table("Schedules", head, &rows)
}

fn last_run(cx: &Context, stream: &Name, schedule: &ScheduleStatus, run: &ScheduleRun) -> Markup {
    let task = [
        ("stream", stream.as_str()),
        ("group", &schedule.group),
        ("id", &run.task),
    ];
    html! {
        a href=(cx.link("/task", task)) title=(timestamp(run.at)) { (age(run.at)) }
        @if run.is_skipped { " " span.warn { "skipped" } }
        @if run.is_manual { " " span.quiet { "by hand" } }
    }
}
