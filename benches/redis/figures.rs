//! The medians of rounds.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use crate::workload::{Job, Round};

/// A workload on both sides.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) workload: &'static str,
    /// The number of messages in a round.
    pub(crate) count: usize,
    /// The fixed number of messages sent per second, if there is one.
    pub(crate) rate: Option<usize>,
    /// The messages per second of ours, divided by those of raw.
    pub(crate) ratio: Option<f64>,
    pub(crate) raw: Option<Figures>,
    pub(crate) ours: Figures,
}

/// The figures of one side: medians of its rounds. All except the rate, the memory and the latency
/// are per message.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) per_second: f64,
    pub(crate) client_cpu_us: f64,
    pub(crate) redis_cpu_us: f64,
    pub(crate) commands: f64,
    /// The reads of the servers from connections.
    pub(crate) reads: f64,
    commands_by_name: BTreeMap<String, f64>,
    pub(crate) peak_kib: u64,
    pub(crate) latency_us: Option<Latency>,
    /// The messages per second of each round.
    rounds: Vec<f64>,
}

/// Percentiles of the latency, in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p99_9: f64,
}

impl Row {
    pub(crate) fn new(job: &Job, raw: Vec<Round>, ours: Vec<Round>) -> Self {
        let (raw, ours) = (Figures::of(raw), Figures::of(ours).expect("a round"));
        Self {
            workload: job.name,
            count: job.count,
            rate: job.rate,
            ratio: raw.as_ref().map(|raw| ours.per_second / raw.per_second),
            raw,
            ours,
        }
    }
}

impl Figures {
    pub(crate) fn of(mut rounds: Vec<Round>) -> Option<Self> {
        for round in &mut rounds {
            round.latencies.sort_unstable();
        }
        let median_of = |figure: &dyn Fn(&Round) -> f64| median(rounds.iter().map(figure));
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let percentile = |share: f64| {
            median_of(&|round| {
                let last_index = round.latencies.len().saturating_sub(1);
                let latency = round
                    .latencies
                    .get((last_index as f64 * share).round() as usize);
                latency.copied().map_or(f64::NAN, micros)
            })
        };
        let mut commands_by_name = BTreeMap::new();
        for name in rounds.iter().flat_map(|round| round.commands.keys()) {
            let calls = |round: &Round| {
                let calls = round.commands.get(name).copied().unwrap_or(0);
                calls as f64 / round.count as f64
            };
            commands_by_name.insert(name.clone(), median_of(&calls)?);
        }
        Some(Self {
            per_second: median_of(&Round::rate)?,
            client_cpu_us: median_of(&|round| micros(round.client_cpu) / round.count as f64)?,
            redis_cpu_us: median_of(&|round| micros(round.server_cpu) / round.count as f64)?,
            commands: commands_by_name.values().sum(),
            reads: median_of(&|round| round.reads as f64 / round.count as f64)?,
            commands_by_name,
            peak_kib: median_of(&|round| round.peak_kib as f64)? as u64,
            latency_us: (!rounds.first()?.latencies.is_empty()).then_some(Latency {
                p50: percentile(0.5)?,
                p90: percentile(0.9)?,
                p99: percentile(0.99)?,
                p99_9: percentile(0.999)?,
            }),
            rounds: rounds.iter().map(Round::rate).collect(),
        })
    }
}

impl Round {
    /// The messages per second.
    pub(crate) fn rate(&self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64()
    }

    /// The CPU time of a message in all processes, in microseconds.
    pub(crate) fn cpu_us(&self) -> f64 {
        (self.client_cpu + self.server_cpu).as_secs_f64() * 1e6 / self.count as f64
    }
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
