//! The workers of a group, and what each of them runs.

use std::time::Duration;

use maud::{Markup, html};

use super::super::{
    context::{Context, Scope},
    fault::Fault,
    layout::{
        DashboardPage, age, button, duration, hidden_fields, number, short_worker, table,
        worker_name,
    },
    preview,
};
use crate::transport::{Answers, WorkerInfo, WorkerState, WorkerStats};

/// The maximum number of workers that are shown.
const MAX_WORKERS: usize = 200;
/// The maximum number of running deliveries that are shown.
const MAX_RUNNING: usize = 200;

pub(super) async fn page(cx: &Context) -> Result<DashboardPage, Fault> {
    let scope = cx.scope().await?;
    let workers = scope.handle.workers();
    let listed = workers.list().await?;
    // To ask the workers is a write, so this fails for a Redis user that may only read.
    let stats = workers.stats().await;
    let live_part = html! {
        (list(cx, &scope, &listed, stats.as_ref().ok()))
        @match &stats {
            Ok(stats) => { (running(cx, &scope, stats)) (routes(stats)) }
            Err(error) => { p.quiet { "The workers cannot be asked for what they run: " (preview::line(&super::super::fault::chain(error))) } }
        }
    };
    let fixed_part = orders(cx, &scope, &listed);
    Ok(DashboardPage::new("Workers", live_part)
        .fixed_part(fixed_part)
        .in_scope(&scope))
}

fn list(
    cx: &Context,
    scope: &Scope,
    workers: &[WorkerInfo],
    stats: Option<&Answers<WorkerStats>>,
) -> Markup {
    let rows = html! {
        @for worker in workers.iter().take(MAX_WORKERS) {
            @let stats = stats.and_then(|stats| stats.answers.iter().find(|it| it.worker == worker.worker));
            tr {
                th scope="row" {
                    @if !worker.service.is_empty() { (preview::excerpt(&worker.service, 60)) " " span.quiet { (preview::excerpt(&worker.version, 30)) } br; }
                    (worker_name(&worker.worker))
                }
                td { @match &worker.fault {
                    Some(fault) => { span.warn { (preview::excerpt(fault, 80)) } }
                    None => { (preview::excerpt(&worker.host, 60)) " · " (worker.pid) }
                } }
                td { (state(worker)) }
                @match stats {
                    Some(stats) => {
                        td.num.runs[stats.in_flight > 0] { (number(stats.in_flight as u64)) " / " (number(worker.limit.unwrap_or(worker.max_in_flight) as u64)) }
                        td.num { (number(stats.done)) }
                        td.num { (number(stats.failed)) }
                        td.num { (number(stats.dead)) }
                    }
                    None => { td.num { "?" } td.num { "?" } td.num { "?" } td.num { "?" } }
                }
                td { @if worker.fault.is_none() { (age(worker.since)) } @else { "–" } }
                @if !cx.config.is_read_only { td.buttons { @if worker.alive { (buttons(cx, scope, worker)) } } }
            }
        }
    };
    let head = [
        "worker",
        "host and process",
        "state",
        "#running",
        "#handled",
        "#failed",
        "#dead",
        "started",
        "orders",
    ];
    let head = match cx.config.is_read_only {
        true => &head[..head.len() - 1],
        false => &head[..],
    };
    html! {
        @if workers.is_empty() { p { "The group has no workers." } }
        @else { (table("Workers", head, &rows)) }
        @if workers.len() > MAX_WORKERS { p.quiet { (number((workers.len() - MAX_WORKERS) as u64)) " more are not shown." } }
    }
}

/// The buttons that give a worker an order without an argument.
fn buttons(cx: &Context, scope: &Scope, worker: &WorkerInfo) -> Markup {
    let [stream, group] = scope.parameters();
    let parameters = [("do", "order"), ("worker", &*worker.worker), stream, group];
    let order = |text, order| button(cx, text, &[&parameters[..], &[("order", order)]].concat());
    html! {
        @match worker.state {
            WorkerState::Paused => { (order("Resume…", "resume")) }
            _ => { (order("Pause…", "pause")) }
        }
        (order("Drain…", "drain"))
    }
}

/// The form that gives any order to a worker.
fn orders(cx: &Context, scope: &Scope, workers: &[WorkerInfo]) -> Markup {
    let alive: Vec<_> = workers
        .iter()
        .filter(|worker| worker.alive)
        .take(MAX_WORKERS)
        .collect();
    if cx.config.is_read_only || alive.is_empty() {
        return html! {};
    }
    html! {
        section aria-labelledby="order" {
            h2 #order { "Give an order to one worker" }
            form.filter method="get" action=(cx.link("/confirm", [])) {
                (hidden_fields(scope.parameters()))
                (hidden_fields([("do", "order")]))
                label { "Worker " select name="worker" {
                    @for worker in &alive {
                        option value=(worker.worker) { (preview::excerpt(&worker.service, 30)) " " (preview::excerpt(short_worker(&worker.worker), 60)) }
                    }
                } }
                label { "Order " select name="order" {
                    option value="limit" { "limit what is in flight" }
                    option value="pause-name" { "pause a name" }
                    option value="resume-name" { "resume a name" }
                    option value="pause" { "pause" }
                    option value="resume" { "resume" }
                    option value="drain" { "drain" }
                } }
                label { "Limit or name; an empty limit ends it " input name="to" autocomplete="off"; }
                button { "Give the order…" }
            }
        }
    }
}

fn state(worker: &WorkerInfo) -> Markup {
    html! {
        @if !worker.alive { span.dead { "silent" } }
        @else {
            @let class = match worker.state { WorkerState::Running => "good", _ => "warn" };
            span.(class) { (worker.state.as_str()) }
        }
        @if !worker.paused.is_empty() { br; span.warn { "paused: " (preview::excerpt(&worker.paused.join(", "), 80)) } }
        @for order in worker.orders.iter().rev().take(1) {
            br; span.quiet { (preview::excerpt(&order.order, 40)) " by " (preview::excerpt(&order.by, 40)) ", " (age(order.at)) }
        }
    }
}

fn running(cx: &Context, scope: &Scope, stats: &Answers<WorkerStats>) -> Markup {
    let running = stats.answers.iter().flat_map(|stats| {
        let running = stats.running.iter();
        running.map(|it| (&stats.worker, it))
    });
    let mut running: Vec<_> = running.collect();
    running.sort_by_key(|(_, it)| std::cmp::Reverse(it.running_for));
    let rows = html! {
        @for (worker, it) in running.iter().take(MAX_RUNNING) {
            tr {
                th scope="row" { (preview::excerpt(&it.name, 60)) }
                td { a href=(cx.link("/task", scope.parameters().into_iter().chain([("id", it.id.as_str())]))) { code { (preview::excerpt(&it.id, 48)) } } }
                td.num { (number(it.attempt.into())) }
                td.warn[it.running_for > Duration::from_secs(60)] { (duration(it.running_for)) }
                td { (worker_name(worker)) }
            }
        }
    };
    html! {
        h2 { "What they run" }
        @if running.is_empty() { p { "Nothing runs." } }
        @else { (table("Running, the longest first", &["name", "id", "#attempt", "for", "worker"], &rows)) }
        @if !stats.silent.is_empty() {
            p.warn { (number(stats.silent.len() as u64)) " workers did not answer: " (preview::excerpt(&stats.silent.join(", "), 400)) }
        }
    }
}

/// Sums the statistics of each route over all workers.
fn routes(stats: &Answers<WorkerStats>) -> Markup {
    // For each route: the numbers of handled, failed and dead messages, the highest 95th
    // percentile, and the last error of one of the workers.
    let mut routes =
        std::collections::BTreeMap::<_, (u64, u64, u64, Duration, Option<&str>)>::new();
    for route in stats.answers.iter().flat_map(|stats| &stats.routes) {
        let sum = routes.entry((&route.kind, &route.name)).or_default();
        sum.0 += route.done;
        sum.1 += route.failed;
        sum.2 += route.dead;
        sum.3 = sum.3.max(route.latency.p95);
        sum.4 = sum
            .4
            .or(route.last_error.as_ref().map(|error| &*error.reason));
    }
    let rows = html! {
        @for ((kind, name), (done, failed, dead, slow, error)) in routes.iter().take(200) {
            tr {
                th scope="row" { (preview::excerpt(name, 60)) " " span.quiet { (preview::line(kind)) } }
                td.num { (number(*done)) }
                td.num.waits[*failed > 0] { (number(*failed)) }
                td.num.dead[*dead > 0] { (number(*dead)) }
                td.num { (duration(*slow)) }
                td.reason { (preview::excerpt(error.unwrap_or_default(), 160)) }
            }
        }
    };
    html! {
        @if !routes.is_empty() {
            h2 { "Since the workers have started" }
            (table("Routes", &["route", "#handled", "#failed", "#dead", "#slowest 95 %", "last failure"], &rows))
        }
    }
}
