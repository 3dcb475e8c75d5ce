//! The statistics of a worker.

#[cfg(feature = "schema")]
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Quantiles, WorkerState, json};
#[cfg(feature = "schema")]
use crate::{
    contract::{ApiInfo, Description},
    error::{Error, ErrorKind},
};

/// The statistics of a worker since its start. Its strings come from messages and errors and may
/// contain anything, so escape them before you show them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct WorkerStats {
    /// The name of the worker: [`WorkerInfo::worker`](super::WorkerInfo::worker).
    pub worker: String,
    /// The time at which the worker took these statistics, on its clock.
    #[serde(with = "json::time")]
    pub at: SystemTime,
    /// The state of the worker.
    pub state: WorkerState,
    /// The number of deliveries in flight.
    pub in_flight: usize,
    /// The number of deliveries that were handled with success.
    pub done: u64,
    /// The number of deliveries that failed: redeliveries that count as attempts, and requests that
    /// got an error.
    pub failed: u64,
    /// The number of deliveries that became dead letters.
    pub dead: u64,
    /// The number of messages that were discarded.
    pub discarded: u64,
    /// The routes that had deliveries, the busiest first. At most 200: further routes are counted
    /// together under the name `(other)`.
    pub routes: Vec<RouteStats>,
    /// The number of entries that were cut from `routes` to limit the size. The totals above
    /// include their counts.
    pub routes_left_out: usize,
    /// The deliveries that run now, the longest first. At most 100.
    pub running: Vec<Running>,
}

/// The statistics of a route of a worker.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RouteStats {
    /// The kind of the route's messages: `task`, `rpc` or `event`.
    pub kind: String,
    /// The name of the route's messages, or the pattern of its events.
    pub name: String,
    /// The number of deliveries that were handled with success.
    pub done: u64,
    /// The number of deliveries that failed.
    pub failed: u64,
    /// The number of deliveries that became dead letters.
    pub dead: u64,
    /// The number of messages that were discarded.
    pub discarded: u64,
    /// The times from the start of a delivery to its verdict.
    pub latency: Quantiles,
    /// The last failure.
    pub last_error: Option<LastError>,
}

/// The last failure of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LastError {
    /// The reason, shortened.
    pub reason: String,
    /// The time, on the worker's clock.
    #[serde(with = "json::time")]
    pub at: SystemTime,
}

/// A delivery that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Running {
    /// The id of the message. Empty for an event.
    pub id: String,
    /// The kind of the message: `task`, `rpc` or `event`.
    pub kind: String,
    /// The name of the message.
    pub name: String,
    /// The number of the attempt.
    pub attempt: u32,
    /// The time since the start of the delivery. Serialized in milliseconds.
    #[serde(with = "json::millis")]
    pub running_for: Duration,
}

impl Default for WorkerStats {
    fn default() -> Self {
        Self {
            worker: String::new(),
            at: UNIX_EPOCH,
            state: WorkerState::default(),
            in_flight: 0,
            done: 0,
            failed: 0,
            dead: 0,
            discarded: 0,
            routes: Vec::new(),
            routes_left_out: 0,
            running: Vec::new(),
        }
    }
}

/// The answers of the workers of a group to a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Answers<T> {
    /// The answers, sorted by worker.
    pub answers: Vec<T>,
    /// The workers that did not answer in time, or whose answers cannot be read, sorted by name.
    pub silent: Vec<String>,
}

impl<T> Answers<T> {
    /// Creates answers. For transports.
    pub fn new(answers: Vec<T>, silent: Vec<String>) -> Self {
        Self { answers, silent }
    }
}

#[cfg(feature = "schema")]
impl Answers<WorkerDescription> {
    /// Returns the AsyncAPI 3 document of the workers, with the name and the version of their
    /// [service](crate::serve::Serve::service).
    ///
    /// # Errors
    /// If no worker has answered, the workers describe different services, or they serve no router.
    pub fn asyncapi(&self) -> Result<serde_json::Value, Error> {
        let invalid = |text: String| Error::new(ErrorKind::Invalid, text);
        let service_of = |it: &WorkerDescription| {
            (
                it.service.clone(),
                it.version.clone(),
                it.description.clone(),
            )
        };
        let services: BTreeSet<_> = self.answers.iter().map(service_of).collect();
        let (service, version, description) = match services.first() {
            None => return Err(invalid("no worker of the group has answered".into())),
            Some(first) if services.len() == 1 => first,
            Some(_) => {
                let count = services.len();
                return Err(invalid(format!(
                    "the workers of the group serve {count} different sets of routes"
                )));
            }
        };
        let Some(json) = description else {
            return Err(invalid(
                "the workers of the group serve no router, so they have no description".into(),
            ));
        };
        let info = ApiInfo::of_service(service, version);
        Ok(Description::from_json(json.as_bytes())?.asyncapi(&info))
    }
}

/// The answer of a worker to [`describe`](super::Workers::describe).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerDescription {
    /// The name of the worker.
    pub worker: String,
    /// The name of the service. Empty unless set.
    #[serde(default)]
    pub service: String,
    /// The version of the service. Empty unless set.
    #[serde(default)]
    pub version: String,
    /// The description of the worker's routes as JSON, for
    /// [`Description::from_json`](crate::contract::Description::from_json). It has no schemas if
    /// it would be too long with them. `None` if it is too long without schemas, or if the worker
    /// serves something else than a router.
    #[serde(default)]
    pub description: Option<String>,
}

impl WorkerDescription {
    /// The maximum length of a description in an answer, in bytes.
    pub const MAX_LEN: usize = 64 << 10;
}

/// The answer of a worker to [`ping`](super::Workers::ping).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Pong {
    /// The name of the worker.
    pub worker: String,
    /// The time from the question to the answer. On Redis it is up to a second, since a worker
    /// looks for questions once a second. Serialized in milliseconds.
    #[serde(with = "json::millis")]
    pub after: Duration,
}

impl Pong {
    /// Creates an answer. For transports.
    pub fn new(worker: impl Into<String>, after: Duration) -> Self {
        let worker = worker.into();
        Self { worker, after }
    }
}
