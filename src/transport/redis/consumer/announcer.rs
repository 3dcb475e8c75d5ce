//! Announces a worker on its streams, answers questions about it, follows the orders of operators,
//! and adds counts to the history of its group. The upkeep does this in each tick.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use redis::Cmd;
use serde_json::json;

use super::{
    streams::ServedStream,
    tick::{decode_done, decode_step},
    upkeep_connection::UpkeepConnection,
};
use crate::{
    error::Error,
    message::EscapedText,
    transport::{
        MinuteCounts, WorkerMonitor, WorkerOrder,
        redis::{
            response::{Value, array, bytes, fixed_array, integer, text},
            scripts,
        },
    },
};

/// Announcements are kept for this time after the last tick of any worker of the group, or for two
/// leases if that is longer.
const MIN_KEPT: Duration = Duration::from_secs(600);
/// The time for which an answer is kept.
const ANSWER_KEPT: Duration = Duration::from_secs(5);
/// The maximum number of unknown orders that are logged.
const MAX_UNKNOWN_ORDERS: usize = 100;

/// The monitor of the worker. Empty until `serve` passes it to the source.
pub(super) type MonitorSlot = Arc<OnceLock<Arc<WorkerMonitor>>>;

/// The announcement of one worker, on the streams of one consumer.
pub(super) struct Announcer {
    monitor: MonitorSlot,
    /// The name of the transport in the announcement.
    transport: &'static str,
    streams: HashMap<u32, AnnouncedStream>,
    /// The orders of an unknown kind that were logged.
    logged_unknown_orders: HashSet<String>,
    /// The last failure that was logged.
    logged_failure: Option<String>,
}

/// The state of the announcement on a stream.
#[derive(Debug, Default)]
struct AnnouncedStream {
    /// The revision of the stored announcement. 0 if none is stored.
    announced_revision: u64,
    /// The id of the last order that the worker has read. Empty before the first tick.
    last_order_id: String,
    /// The question that was answered last.
    answered_question: Bytes,
}

/// The worker's part of a tick on one stream.
#[derive(Debug, Default)]
pub(super) struct WorkerStep {
    /// The revision of the announcement that this tick stores. `None` if the stored one is current.
    pub(super) revision_to_announce: Option<u64>,
    /// The id of the last order that the worker has read.
    pub(super) last_order_id: String,
    /// The counts for the history.
    pub(super) counts: Option<MinuteCounts>,
}

/// The worker's arguments of a tick.
#[derive(Debug, Default)]
pub(super) struct Announcement {
    pub(super) worker: String,
    /// The announcement. Empty if no stream needs it.
    pub(super) text: String,
    /// The time for which announcements are kept, in milliseconds.
    pub(super) kept_for_ms: u64,
}

/// The worker's results of a tick on one stream. Each result is an error text if its part of the
/// tick failed.
#[derive(Debug)]
pub(super) struct WorkerTick {
    /// The first value is `true` if the worker's announcement exists. The second is the question to
    /// the worker, or empty if there is none.
    present: Result<(bool, Bytes), String>,
    orders: Result<NewOrders, String>,
    counted: Result<(), String>,
}

#[derive(Debug)]
struct NewOrders {
    /// The id of the last order.
    last_id: String,
    /// For each order its word, its argument and the operator.
    orders: Vec<[String; 3]>,
}

impl Announcer {
    pub(super) fn new(monitor: MonitorSlot, transport: &'static str) -> Self {
        Self {
            monitor,
            transport,
            streams: HashMap::new(),
            logged_unknown_orders: HashSet::new(),
            logged_failure: None,
        }
    }

    /// Returns the step of the next tick on a stream. `None` if the source belongs to no worker.
    pub(super) fn step(&mut self, stream: &ServedStream) -> Option<WorkerStep> {
        let monitor = self.monitor.get()?;
        let state = self.streams.entry(stream.index).or_default();
        let revision = monitor.revision();
        Some(WorkerStep {
            revision_to_announce: (state.announced_revision != revision).then_some(revision),
            last_order_id: state.last_order_id.clone(),
            counts: monitor.take_counts(&stream.keys.stream),
        })
    }

    /// Returns `true` if a stream has counts that no tick has stored yet.
    pub(super) fn has_counts(&self, stream: &ServedStream) -> bool {
        let monitor = self.monitor.get();
        monitor.is_some_and(|monitor| monitor.has_counts(&stream.keys.stream))
    }

    /// Returns the arguments of a tick with these steps.
    pub(super) fn announcement<'a>(
        &self,
        steps: impl IntoIterator<Item = &'a WorkerStep>,
        lease: Duration,
    ) -> Announcement {
        let Some(monitor) = self.monitor.get() else {
            return Announcement::default();
        };
        let is_needed = steps
            .into_iter()
            .any(|step| step.revision_to_announce.is_some());
        let info = is_needed.then(|| monitor.info(self.transport));
        let text = info.and_then(|info| serde_json::to_string(&info).ok());
        Announcement {
            worker: monitor.worker().to_owned(),
            text: text.unwrap_or_default(),
            kept_for_ms: (2 * lease).max(MIN_KEPT).as_millis() as u64,
        }
    }

    /// Keeps the counts of a failed tick for the next tick.
    pub(super) fn keep_counts(&self, stream: &ServedStream, step: &WorkerStep) {
        if let (Some(monitor), Some(counts)) = (self.monitor.get(), &step.counts) {
            monitor.put_back_counts(&stream.keys.stream, counts);
        }
    }

    /// Handles the results of a tick on a stream. Returns the question to the worker on this
    /// stream, if there is a new one.
    pub(super) fn handle_tick(
        &mut self,
        stream: &ServedStream,
        step: &WorkerStep,
        tick: WorkerTick,
    ) -> Option<Question> {
        let state = self.streams.entry(stream.index).or_default();
        let mut failures = Vec::new();
        let mut question = None;
        match tick.present {
            Ok((is_known, asked)) => {
                match step.revision_to_announce {
                    Some(revision) => state.announced_revision = revision,
                    // Another program has removed the announcement.
                    None if !is_known => state.announced_revision = 0,
                    None => {}
                }
                if !asked.is_empty() && asked != state.answered_question {
                    question = Some(Question::decode(&asked));
                    state.answered_question = asked;
                }
            }
            Err(error) => failures.push(("the worker cannot be announced", error)),
        }
        let mut orders = Vec::new();
        match tick.orders {
            Ok(new) => {
                state.last_order_id = new.last_id;
                orders = new.orders;
            }
            Err(error) => failures.push(("the orders of operators cannot be read", error)),
        }
        if let Err(error) = tick.counted {
            failures.push(("the history is not kept", error));
            self.keep_counts(stream, step);
        }
        for [word, argument, by] in orders {
            self.follow(stream, &word, &argument, &by);
        }
        self.log(stream, &failures);
        question
    }

    fn follow(&mut self, stream: &ServedStream, word: &str, argument: &str, by: &str) {
        let Some(monitor) = self.monitor.get() else {
            return;
        };
        if let Some(order) = WorkerOrder::parse(word, argument) {
            return monitor.follow(&order, by);
        }
        if self.logged_unknown_orders.len() < MAX_UNKNOWN_ORDERS
            && self.logged_unknown_orders.insert(word.to_owned())
        {
            tracing::warn!(
                stream = %stream.keys.stream,
                order = %EscapedText::new(word).at_most(100),
                argument = %EscapedText::new(argument).at_most(100),
                by = %EscapedText::new(by).at_most(100),
                "an order that this version does not know is ignored: a newer version may have \
                 given it"
            );
        }
    }

    /// Logs the first of these failures, unless it repeats the last logged error and no tick has
    /// succeeded since.
    fn log(&mut self, stream: &ServedStream, failures: &[(&str, String)]) {
        let Some((what, error)) = failures.first() else {
            self.logged_failure = None;
            return;
        };
        if self.logged_failure.as_deref() != Some(error) {
            let stream = &stream.keys.stream;
            tracing::warn!(%stream, error, "{what}; trying again");
            self.logged_failure = Some(error.clone());
        }
    }

    /// Answers these questions to the worker. An error is only logged, since the program that asks
    /// lists the workers that do not answer.
    pub(super) async fn answer(
        &self,
        server: &UpkeepConnection,
        consumer: &str,
        asked: Vec<(Arc<ServedStream>, Question)>,
    ) {
        let Some(monitor) = self.monitor.get() else {
            return;
        };
        for (stream, question) in asked {
            let answer = match question {
                Question::Ping => serde_json::to_string(&json!({ "worker": monitor.worker() })),
                Question::Stats => serde_json::to_string(&monitor.stats()),
                Question::Describe => description_with_stats(monitor),
            };
            let Ok(answer) = answer else { continue };
            let key = stream.keys.report(consumer);
            let args = |cmd: &mut Cmd| {
                cmd.arg(answer).arg(ANSWER_KEPT.as_millis() as u64);
            };
            let stored = server.script(&scripts::REPORT, &[&key], args).await;
            if let Err(error) = stored {
                let (stream, error) = (&stream.keys.stream, error.chain());
                tracing::debug!(%stream, error, "a question about this worker was not answered");
            }
        }
    }
}

/// Returns the description of a worker, including its statistics, because `ask.lua` also accepts a
/// description as the answer to a question for statistics.
fn description_with_stats(monitor: &WorkerMonitor) -> serde_json::Result<String> {
    let mut answer = serde_json::to_value(monitor.stats())?;
    let description = serde_json::to_value(monitor.describe())?;
    if let (Some(answer), serde_json::Value::Object(fields)) = (answer.as_object_mut(), description)
    {
        answer.extend(fields);
    }
    serde_json::to_string(&answer)
}

/// A question to a worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Question {
    Ping,
    Stats,
    Describe,
}

impl Question {
    /// Decodes a question: an id, a space and a word. An unknown word is answered as a ping.
    fn decode(asked: &[u8]) -> Self {
        match asked.rsplit(|byte| *byte == b' ').next() {
            Some(b"describe") => Self::Describe,
            Some(b"stats") => Self::Stats,
            _ => Self::Ping,
        }
    }
}

impl WorkerTick {
    pub(super) fn decode([present, orders, counted]: [Value; 3]) -> Result<Self, Error> {
        Ok(Self {
            present: decode_step(present, |response| {
                let [exists, asked] = fixed_array(response)?;
                Ok((integer(&exists)? != 0, bytes(asked)?))
            })?,
            orders: decode_step(orders, NewOrders::decode)?,
            counted: decode_done(counted)?,
        })
    }
}

impl NewOrders {
    fn decode(response: Value) -> Result<Self, Error> {
        let mut values = array(response)?.into_iter();
        let last_id = values.next().map(text).transpose()?.unwrap_or_default();
        let orders = values.map(|order| {
            let [word, argument, by] = fixed_array(order)?;
            Ok([text(word)?, text(argument)?, text(by)?])
        });
        Ok(Self {
            last_id,
            orders: orders.collect::<Result<_, Error>>()?,
        })
    }
}
