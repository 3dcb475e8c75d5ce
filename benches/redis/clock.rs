//! Time, and whose.

use std::{
    fs,
    time::{Duration, Instant},
};

use crate::{support::RedisServer, workload::Round};

/// How long a tick of `/proc/self/stat` is, on every Linux that there is.
const TICK: Duration = Duration::from_millis(10);

/// Measures a round.
pub(crate) struct Clock<'a> {
    server: &'a RedisServer,
    client: Duration,
    redis: Duration,
    started: Instant,
}

impl<'a> Clock<'a> {
    /// Starts it, as the last thing before the work.
    pub(crate) async fn start(server: &'a RedisServer) -> Self {
        Self {
            redis: redis(server).await,
            client: client(),
            server,
            started: Instant::now(),
        }
    }

    /// Stops it, as the first thing after the last acknowledgement.
    pub(crate) async fn stop(self, count: usize, latencies: Vec<Duration>) -> Round {
        Round {
            elapsed: self.started.elapsed(),
            client: client().saturating_sub(self.client),
            redis: redis(self.server).await.saturating_sub(self.redis),
            count,
            latencies,
        }
    }
}

/// The CPU time that this process has used.
fn client() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is the program's name, which may hold spaces; user and system time are the
    // 14th and the 15th.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u32 = (fields.split_whitespace().skip(11).take(2))
        .filter_map(|ticks| ticks.parse::<u32>().ok())
        .sum();
    TICK * ticks
}

/// The CPU time that the server has used.
async fn redis(server: &RedisServer) -> Duration {
    let info: String = server.query(&["INFO", "cpu"]).await;
    let seconds: f64 = ["used_cpu_sys:", "used_cpu_user:"]
        .iter()
        .filter_map(|field| info.lines().find_map(|line| line.strip_prefix(field)))
        .filter_map(|seconds| seconds.parse::<f64>().ok())
        .sum();
    Duration::from_secs_f64(seconds)
}
