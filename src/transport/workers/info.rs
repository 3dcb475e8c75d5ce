//! The announcement of a worker.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::json;

/// The maximum size of the names of streams in an announcement, in bytes.
const MAX_STREAM_BYTES: usize = 4 << 10;
/// The maximum size of the routes in an announcement, in bytes.
const MAX_ROUTE_BYTES: usize = 6 << 10;
/// The maximum size of the paused names in an announcement, in bytes.
const MAX_PAUSED_BYTES: usize = 3 << 10;
/// The maximum size of the name and of the version of the service, and of the name of the host, in
/// bytes.
pub(super) const MAX_TEXT_BYTES: usize = 200;

/// A worker, as it has announced itself. A field is empty if the worker's version does not announce
/// it. The strings come from the worker's process and may contain anything, so escape them before
/// you show them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct WorkerInfo {
    /// The unique name of the worker. On Redis it is the name of its consumer.
    pub worker: String,
    /// The name of the service. Empty unless set with
    /// [`service`](crate::serve::Serve::service).
    pub service: String,
    /// The version of the service. Empty unless set.
    pub version: String,
    /// The name of the host.
    pub host: String,
    /// The id of the process.
    pub pid: u32,
    /// The time at which the worker started, on the worker's clock.
    #[serde(with = "json::time")]
    pub since: SystemTime,
    /// The group.
    pub group: String,
    /// The streams, or the registry of the streams, as `registry <name>`. At most 4 KiB.
    pub streams: Vec<String>,
    /// The number of streams that are not in `streams`.
    pub streams_left_out: usize,
    /// The routes, each as its kind and its name: `task orders.create`. At most 6 KiB.
    pub routes: Vec<String>,
    /// The number of routes that are not in `routes`.
    pub routes_left_out: usize,
    /// The maximum number of deliveries in flight, as configured.
    pub max_in_flight: usize,
    /// The maximum number of deliveries in flight that an operator has set. `None` if no operator
    /// has set one.
    pub limit: Option<usize>,
    /// The lease, in milliseconds if serialized.
    #[serde(with = "json::millis")]
    pub lease: Duration,
    /// The version of Campanile.
    pub campanile: String,
    /// The transport: `redis`, `redis sentinel`, `redis cluster` or `memory`.
    pub transport: String,
    /// The state of the worker.
    pub state: WorkerState,
    /// The names that are paused on this worker.
    pub paused: Vec<String>,
    /// The last orders of operators that the worker has followed, the oldest first.
    pub orders: Vec<FollowedOrder>,
    /// `false` if the worker has been silent for longer than its lease. The worker is listed until
    /// another worker removes it.
    pub alive: bool,
    /// The reason why the other fields are empty. Either the announcement cannot be read, or there
    /// is none, because the worker has an older version or has just started. `None` if the
    /// announcement was read.
    pub fault: Option<String>,
}

/// The state of a worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum WorkerState {
    /// The worker fetches messages.
    #[default]
    Running,
    /// An operator has paused the worker: it fetches nothing.
    Paused,
    /// The worker ends: it fetches nothing, and its running handlers end as usual.
    Draining,
    /// A state of a newer version.
    #[serde(other)]
    Unknown,
}

impl WorkerState {
    /// Returns the name of the state, such as `running`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Unknown => "unknown",
        }
    }
}

/// An order of an operator that a worker has followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FollowedOrder {
    /// The order in words, such as `limit 3`.
    pub order: String,
    /// The operator, as given.
    pub by: String,
    /// The time at which the worker followed the order, on the worker's clock.
    #[serde(with = "json::time")]
    pub at: SystemTime,
}

impl Default for WorkerInfo {
    fn default() -> Self {
        let empty = String::new;
        Self {
            worker: empty(),
            service: empty(),
            version: empty(),
            host: empty(),
            pid: 0,
            since: UNIX_EPOCH,
            group: empty(),
            streams: Vec::new(),
            streams_left_out: 0,
            routes: Vec::new(),
            routes_left_out: 0,
            max_in_flight: 0,
            limit: None,
            lease: Duration::ZERO,
            campanile: empty(),
            transport: empty(),
            state: WorkerState::default(),
            paused: Vec::new(),
            orders: Vec::new(),
            alive: true,
            fault: None,
        }
    }
}

impl WorkerInfo {
    /// Creates the description of a worker whose announcement is missing or cannot be read.
    #[cfg(feature = "redis")]
    pub(crate) fn unknown(worker: impl Into<String>, fault: impl Into<String>) -> Self {
        Self {
            worker: worker.into(),
            fault: Some(fault.into()),
            ..Self::default()
        }
    }

    /// Shortens the lists and the texts, so that an announcement has about 16 KiB at most.
    pub(super) fn bounded(mut self) -> Self {
        self.streams_left_out += cut_list(&mut self.streams, MAX_STREAM_BYTES);
        self.routes_left_out += cut_list(&mut self.routes, MAX_ROUTE_BYTES);
        cut_list(&mut self.paused, MAX_PAUSED_BYTES);
        for text in [&mut self.service, &mut self.version, &mut self.host] {
            cut(text, MAX_TEXT_BYTES);
        }
        self
    }
}

/// Removes the last texts of a list, so that the remaining texts have at most `max` bytes as JSON.
/// Returns the number of removed texts.
fn cut_list(list: &mut Vec<String>, max: usize) -> usize {
    let mut size = 0;
    let fits = list.iter().take_while(|text| {
        // Two quotes and a comma.
        size += text.len() + 3;
        size <= max
    });
    let kept = fits.count();
    list.drain(kept..).count()
}

/// Shortens a text to at most `max` bytes.
pub(crate) fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        let fits = (0..=max.saturating_sub(3)).rev();
        let end = fits.into_iter().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
}

/// Returns the name of this host, or `host` if it is unknown.
pub(crate) fn host_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok());
    let host = host.as_deref().map(str::trim);
    host.filter(|host| !host.is_empty())
        .unwrap_or("host")
        .to_owned()
}
