//! `campanile top`

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use campanile::{
    Error, Redis,
    transport::{Answers, GroupStats, Minute, Quantiles, WorkerInfo, WorkerStats},
};
use clap::Args;
use serde_json::{Value, json};
use tokio::time::sleep_until;

use crate::{
    command_error::{CommandError, chain},
    show::{Keys, Out, Screen, Table, text},
    signals,
    stats::lag,
    target::Target,
    workers::{short_name, state},
};

/// The time between two updates.
const PERIOD: Duration = Duration::from_secs(1);
/// The maximum number of workers that are shown.
const MAX_WORKERS: usize = 50;
/// The maximum number of running deliveries that are shown.
const MAX_RUNNING: usize = 20;

#[derive(Debug, Args)]
pub(crate) struct Top {}

impl Top {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        let (redis, group) = target.connect_to_group().await?;
        let mut view = View::new(redis, &group);
        if out.json {
            return out.write_document(&view.take_sample().await?.document()?);
        }
        if !out.terminal {
            let sample = view.take_sample().await?;
            return out.write_lines(view.lines(&sample));
        }
        let interrupted = signals::cancel_on_interrupt()?;
        let screen = Screen::enter(out)?;
        let mut keys = Keys::listen();
        let mut last_lines = vec!["asking the workers …".to_owned()];
        screen.draw(&last_lines)?;
        let updates = async {
            loop {
                let next_update = tokio::time::Instant::now() + PERIOD;
                match view.take_sample().await {
                    Ok(sample) => {
                        last_lines = view.lines(&sample);
                        screen.draw(&last_lines)?;
                        view.last_sample = Some(sample);
                    }
                    // A server that cannot be reached may come back.
                    Err(error) if error.is_disconnected() || error.is_unknown_outcome() => {
                        let mut frame = last_lines.clone();
                        frame.insert(0, text::line(chain(&error)));
                        screen.draw(&frame)?;
                    }
                    Err(error) => return Err(CommandError::from(error)),
                }
                sleep_until(next_update).await;
            }
        };
        let result = tokio::select! {
            biased;
            () = interrupted.cancelled() => Ok(()),
            () = keys.wait_for(b'q') => Ok(()),
            result = updates => result,
        };
        drop(keys);
        drop(screen);
        result?;
        // Leaves the last view on the terminal.
        out.write_lines(last_lines)
    }
}

/// The group that is shown, and its previous sample.
struct View {
    redis: Redis,
    group: String,
    /// The previous sample. The rates are computed from the difference to it.
    last_sample: Option<Sample>,
}

/// The statistics that one update has read from the server and the workers.
struct Sample {
    at: Instant,
    group: GroupStats,
    workers: Vec<WorkerInfo>,
    stats: Answers<WorkerStats>,
    history: Vec<Minute>,
}

impl View {
    fn new(redis: Redis, group: &str) -> Self {
        Self {
            redis,
            group: group.to_owned(),
            last_sample: None,
        }
    }

    async fn take_sample(&self) -> Result<Sample, Error> {
        let workers = self.redis.workers();
        let (stats, listed, answers, history) = tokio::try_join!(
            self.redis.stats(),
            workers.list(),
            workers.stats(),
            self.redis.history(),
        )?;
        Ok(Sample {
            at: Instant::now(),
            group: stats.group(&self.group).cloned().unwrap_or_default(),
            workers: listed,
            stats: answers,
            history,
        })
    }

    fn lines(&self, sample: &Sample) -> Vec<String> {
        let group = &sample.group;
        let (live, silent) = (sample.stats.answers.len(), sample.stats.silent.len());
        let mut lines = vec![
            format!(
                "{}  group {}: {live} workers, {silent} silent; q ends it",
                text::time(SystemTime::now()),
                text::line(&self.group)
            ),
            format!(
                "waiting {}, pending {}, delayed {}, parked {}, dead {}",
                lag(group),
                group.pending,
                group.delayed,
                group.parked,
                group.dead
            ),
        ];
        lines.extend(sample.history.iter().rev().take(2).rev().map(minute_line));
        lines.push(String::new());
        lines.extend(self.worker_lines(sample));
        lines.push(String::new());
        lines.extend(running_lines(sample));
        lines
    }

    fn worker_lines(&self, sample: &Sample) -> Vec<String> {
        let last_sample = self.last_sample.as_ref();
        let previous = last_sample.map(|last| (last.at, by_worker(last)));
        let titles = [
            "WORKER",
            "SERVICE",
            "STATE",
            ">IN FLIGHT",
            ">DONE/S",
            ">FAILED/S",
            ">P50",
            ">P95",
            ">MAX",
        ];
        let mut table = Table::new(&titles);
        let stats = by_worker(sample);
        for worker in sample.workers.iter().take(MAX_WORKERS) {
            let now = stats.get(&*worker.worker).copied();
            // The time since the previous sample, and the counts of this worker in it.
            let before = previous
                .as_ref()
                .and_then(|(at, stats)| Some((sample.at - *at, *stats.get(&*worker.worker)?)));
            let rate = |count: fn(&WorkerStats) -> u64| match (now, before) {
                (Some(now), Some((time, before))) => {
                    let count = count(now).saturating_sub(count(before));
                    format!("{:.1}", count as f64 / time.as_secs_f64().max(0.001))
                }
                _ => "-".to_owned(),
            };
            let latency = now.map(busiest_latency).unwrap_or_default();
            let shown_latency = |time| now.map_or("-".to_owned(), |_| short_time(time));
            let shown_state = match now {
                None if worker.alive => "no answer".to_owned(),
                _ => state(worker),
            };
            table.add_row([
                short_name(&worker.worker).to_owned(),
                worker.service.clone(),
                shown_state,
                now.map_or("-".to_owned(), |now| now.in_flight.to_string()),
                rate(|stats| stats.done),
                rate(|stats| stats.failed + stats.dead),
                shown_latency(latency.p50),
                shown_latency(latency.p95),
                shown_latency(latency.max),
            ]);
        }
        let mut lines = table.lines();
        if let Some(more) = sample.workers.len().checked_sub(MAX_WORKERS + 1) {
            lines.push(format!("and {} more workers", more + 1));
        }
        lines
    }
}

impl Sample {
    fn document(&self) -> Result<Value, CommandError> {
        let failed = |error: serde_json::Error| CommandError::Failed(error.to_string());
        let minutes = self.history.iter().rev().take(2).rev();
        Ok(json!({
            "workers": serde_json::to_value(&self.workers).map_err(failed)?,
            "stats": serde_json::to_value(&self.stats.answers).map_err(failed)?,
            "silent": self.stats.silent,
            "minutes": serde_json::to_value(minutes.collect::<Vec<_>>()).map_err(failed)?,
        }))
    }
}

fn by_worker(sample: &Sample) -> HashMap<&str, &WorkerStats> {
    let answers = sample.stats.answers.iter();
    answers.map(|stats| (&*stats.worker, stats)).collect()
}

/// Returns the latencies of the busiest route of a worker.
fn busiest_latency(stats: &WorkerStats) -> Quantiles {
    let busiest = stats.routes.first();
    busiest.map(|route| route.latency).unwrap_or_default()
}

fn minute_line(minute: &Minute) -> String {
    let time = text::time(minute.start);
    let time = time.get(11..16).unwrap_or("?");
    format!(
        "{time}  {} done, {} failed, {} dead; took p50 {}, p95 {}; waited p95 {}",
        minute.done,
        minute.failed,
        minute.dead,
        short_time(minute.latency.p50),
        short_time(minute.latency.p95),
        short_time(minute.waiting.p95)
    )
}

/// Lists the running deliveries, the longest-running first.
fn running_lines(sample: &Sample) -> Vec<String> {
    let mut running: Vec<_> = (sample.stats.answers.iter())
        .flat_map(|stats| stats.running.iter().map(move |it| (&stats.worker, it)))
        .collect();
    running.sort_by_key(|(_, running)| std::cmp::Reverse(running.running_for));
    if running.is_empty() {
        return vec!["nothing runs".to_owned()];
    }
    let mut table = Table::new(&["RUNS FOR", "NAME", "KIND", ">ATTEMPT", "ID", "WORKER"]);
    for (worker, running) in running.into_iter().take(MAX_RUNNING) {
        table.add_row([
            short_time(running.running_for),
            running.name.clone(),
            running.kind.clone(),
            running.attempt.to_string(),
            running.id.clone(),
            short_name(worker).to_owned(),
        ]);
    }
    table.lines()
}

/// Formats a duration below 10 ms in one unit, and any other duration as [`text::duration`] does.
fn short_time(time: Duration) -> String {
    match time.as_micros() {
        0 => "0".to_owned(),
        micros @ 1..1_000 => format!("{micros}us"),
        micros @ 1_000..10_000 => format!("{:.1}ms", micros as f64 / 1000.0),
        _ => text::duration(time),
    }
}
