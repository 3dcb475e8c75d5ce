//! The time of a round, and the CPU time of its processes.

use std::time::{Duration, Instant};

use crate::{
    probe::{Probe, ServerUsage},
    process,
    workload::Round,
};

/// Measures a round from its start to its end.
pub(crate) struct Clock<'a> {
    probe: &'a Probe,
    /// The processes of senders and workers.
    processes: Vec<u32>,
    /// The CPU time of the processes before the round.
    client_cpu_before: Duration,
    /// The work of the servers before the round.
    usage_before: ServerUsage,
    started: Instant,
}

impl<'a> Clock<'a> {
    /// Starts the clock, right before the work. `workers` are the ids of child processes, which are
    /// measured together with this process.
    pub(crate) async fn start(probe: &'a Probe, workers: &[u32]) -> Self {
        let mut processes = vec![std::process::id()];
        processes.extend(workers);
        let usage_before = probe.usage().await;
        processes.iter().copied().for_each(process::reset_peak);
        Self {
            usage_before,
            client_cpu_before: cpu(&processes),
            processes,
            probe,
            started: Instant::now(),
        }
    }

    /// Stops the clock, right after the last acknowledgement.
    pub(crate) async fn stop(self, count: usize, latencies: Vec<Duration>) -> Round {
        let elapsed = self.started.elapsed();
        let client_cpu = cpu(&self.processes).saturating_sub(self.client_cpu_before);
        let peak_kib = self.processes.iter().copied().map(process::peak).sum();
        let usage = self.probe.usage().await;
        let mut commands = usage.commands;
        for (name, before) in self.usage_before.commands {
            *commands.entry(name).or_default() -= before;
        }
        commands.retain(|_, calls| *calls > 0);
        Round {
            elapsed,
            client_cpu,
            server_cpu: usage.cpu.saturating_sub(self.usage_before.cpu),
            reads: usage.reads - self.usage_before.reads,
            commands,
            peak_kib,
            count,
            latencies,
        }
    }
}

fn cpu(processes: &[u32]) -> Duration {
    processes.iter().copied().map(process::cpu).sum()
}
