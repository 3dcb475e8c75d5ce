//! The time of a round, and the CPU time of its processes.

use std::time::{Duration, Instant};

use crate::{
    probe::{Probe, Used},
    process,
    workload::Round,
};

/// Measures a round.
pub(crate) struct Clock<'a> {
    probe: &'a Probe,
    /// The processes of senders and workers.
    processes: Vec<u32>,
    client: Duration,
    used: Used,
    started: Instant,
}

impl<'a> Clock<'a> {
    /// Starts the clock, right before the work. Measures this process and those of workers.
    pub(crate) async fn start(probe: &'a Probe, workers: &[u32]) -> Self {
        let mut processes = vec![std::process::id()];
        processes.extend(workers);
        let used = probe.used().await;
        processes.iter().copied().for_each(process::reset_peak);
        Self {
            used,
            client: cpu(&processes),
            processes,
            probe,
            started: Instant::now(),
        }
    }

    /// Stops the clock, right after the last acknowledgement.
    pub(crate) async fn stop(self, count: usize, latencies: Vec<Duration>) -> Round {
        let elapsed = self.started.elapsed();
        let client = cpu(&self.processes).saturating_sub(self.client);
        let peak = self.processes.iter().copied().map(process::peak).sum();
        let used = self.probe.used().await;
        let mut commands = used.commands;
        for (name, before) in self.used.commands {
            *commands.entry(name).or_default() -= before;
        }
        commands.retain(|_, calls| *calls > 0);
        Round {
            elapsed,
            client,
            redis: used.cpu.saturating_sub(self.used.cpu),
            reads: used.reads - self.used.reads,
            commands,
            peak,
            count,
            latencies,
        }
    }
}

fn cpu(processes: &[u32]) -> Duration {
    processes.iter().copied().map(process::cpu).sum()
}
