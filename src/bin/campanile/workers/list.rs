//! `campanile workers list` and `campanile workers ping`

use std::time::SystemTime;

use campanile::transport::{WorkerInfo, Workers};
use serde_json::{Value, json};

use super::short_name;
use crate::{
    command_error::CommandError,
    show::{Out, Table, text},
};

pub(super) async fn list(workers: &Workers, out: &Out) -> Result<(), CommandError> {
    let workers = workers.list().await?;
    if out.json {
        return out.write_document(&workers.iter().map(worker_json).collect::<Result<_, _>>()?);
    }
    match workers.is_empty() {
        true => out.write_lines(["no workers"]),
        false => out.write_lines(lines(&workers)),
    }
}

fn lines(workers: &[WorkerInfo]) -> Vec<String> {
    let titles = [
        "WORKER",
        "SERVICE",
        "VERSION",
        "STATE",
        ">IN FLIGHT",
        ">UP",
        "ROUTES",
    ];
    let mut table = Table::new(&titles);
    for worker in workers {
        let uptime = SystemTime::now()
            .duration_since(worker.since)
            .unwrap_or_default();
        // An order can only lower the configured maximum.
        let max = worker
            .limit
            .unwrap_or(worker.max_in_flight)
            .min(worker.max_in_flight);
        let is_known = worker.fault.is_none();
        let known = |text: String| if is_known { text } else { "?".to_owned() };
        table.add_row([
            short_name(&worker.worker).to_owned(),
            known(or_dash(&worker.service)),
            known(or_dash(&worker.version)),
            state(worker),
            known(format!("<= {max}")),
            known(text::duration(uptime)),
            known((worker.routes.len() + worker.routes_left_out).to_string()),
        ]);
    }
    // The lines below the table: the fault, the pauses and the orders of each worker.
    let mut lines = table.lines();
    for worker in workers {
        let name = text::line(short_name(&worker.worker));
        if let Some(fault) = &worker.fault {
            lines.push(format!("{name}: {}", text::line(fault)));
        }
        if !worker.paused.is_empty() {
            let names = worker.paused.join(", ");
            lines.push(format!("{name}: paused here: {}", text::line(names)));
        }
        for order in &worker.orders {
            let (at, what, by) = (text::time(order.at), &order.order, &order.by);
            lines.push(format!(
                "{name}: {at} {} by {}",
                text::line(what),
                text::line(by)
            ));
        }
    }
    lines
}

/// Formats the state of a worker for people.
pub(crate) fn state(worker: &WorkerInfo) -> String {
    match (worker.alive, &worker.fault) {
        (false, _) => "silent".to_owned(),
        (true, Some(_)) => "unknown".to_owned(),
        (true, None) => worker.state.as_str().to_owned(),
    }
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

fn worker_json(worker: &WorkerInfo) -> Result<Value, CommandError> {
    serde_json::to_value(worker).map_err(|error| CommandError::Failed(error.to_string()))
}

pub(super) async fn ping(workers: &Workers, out: &Out) -> Result<(), CommandError> {
    let found = workers.ping().await?;
    if out.json {
        let document = json!({ "answers": found.answers, "silent": found.silent });
        return out.write_document(&document);
    }
    if found.answers.is_empty() && found.silent.is_empty() {
        return out.write_lines(["no workers"]);
    }
    let mut table = Table::new(&["WORKER", ">ANSWERED AFTER"]);
    for pong in &found.answers {
        table.add_row([
            short_name(&pong.worker).to_owned(),
            text::duration(pong.after),
        ]);
    }
    for worker in &found.silent {
        table.add_row([short_name(worker).to_owned(), "no answer".to_owned()]);
    }
    out.write_lines(table.lines())
}
