//! The workers of a group: their announcements, their answers to questions, the orders to them, and
//! the history of the group.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::try_join_all;
use redis::Cmd;
use tokio::time::{Instant, sleep};

use super::{
    Redis, error,
    ids::random_id,
    keys::{CONSUMER_PREFIX, Keys},
    pipeline::{Pipeline, Resend},
    response::{Value, array, bytes, fields, fixed_array, integer},
    scripts,
};
use crate::{
    error::{Error, ErrorKind},
    transport::{
        Answers, MINUTES, Minute, MinuteCounts, Pong, StoreFuture, WorkerDescription, WorkerInfo,
        WorkerOrder, WorkerStats, WorkerStore, Workers,
    },
};

/// The approximate number of announcements that one command reads.
const SCAN_COUNT: usize = 32;
/// The maximum number of workers whose answers one script call looks for.
const MAX_COLLECTED_WORKERS: usize = 100;
/// The approximate maximum number of bytes of answers that one script call returns.
const MAX_COLLECTED_BYTES: usize = 1 << 20;
/// The maximum size of an announcement or an answer, in bytes. Workers write no larger texts.
const MAX_TEXT: usize = 256 << 10;
/// The maximum time for which a question waits for answers.
const MAX_WAIT: Duration = Duration::from_millis(2500);
/// The time between two polls for answers.
const POLL_PERIOD: Duration = Duration::from_millis(100);
/// The approximate maximum number of orders that are kept.
const MAX_ORDERS: usize = 1000;
/// The time for which orders are kept.
const ORDER_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

impl Redis {
    /// Returns access to the workers that serve the stream in this handle's group: to list them, to
    /// ask them questions, and to give them orders.
    pub fn workers(&self) -> Workers {
        Workers::new(RedisWorkers(self.clone()))
    }

    /// Returns the last 60 minutes of the group on the stream, the oldest minute first. The last
    /// element is the current minute, to which each worker adds its counts once a second.
    ///
    /// # Errors
    /// If the handle has several streams that are not the partitions of one stream. If the server
    /// cannot be reached or refuses the command.
    pub async fn history(&self) -> Result<Vec<Minute>, Error> {
        let all = self.all_keys()?;
        let parts = try_join_all(all.iter().map(|keys| self.history_on(keys))).await?;
        let now = parts.iter().map(|part| part.now).max().unwrap_or_default();
        let minutes = (now + 1).saturating_sub(MINUTES)..=now;
        let minutes = minutes.map(|number| {
            let mut counts = MinuteCounts::default();
            for part in &parts {
                part.minutes
                    .get(&number)
                    .inspect(|found| counts.merge(found));
            }
            counts.minute(number)
        });
        Ok(minutes.collect())
    }

    async fn history_on(&self, keys: &Keys) -> Result<PartOfHistory, Error> {
        let (workers, group) = (keys.workers(), keys.group.as_str());
        let args = |cmd: &mut Cmd| {
            cmd.arg(group).arg(MINUTES);
        };
        let pipeline = self.shared.pipeline.for_key(&keys.stream_key);
        let names = [workers.as_str()];
        let response = pipeline.script(&scripts::HISTORY, &names, args, Resend::Never);
        PartOfHistory::decode(response.await?)
    }
}

/// The history of one stream.
#[derive(Debug)]
pub(super) struct PartOfHistory {
    /// The current minute since 1970, on the server's clock.
    now: u64,
    /// The counts of each minute since 1970.
    minutes: BTreeMap<u64, MinuteCounts>,
}

impl PartOfHistory {
    pub(super) fn decode(response: Value) -> Result<Self, Error> {
        let mut values = array(response)?.into_iter();
        let number = |value: &Value| Ok::<_, Error>(integer(value)?.unsigned_abs());
        let now = number(&values.next().unwrap_or_default())?;
        let minutes = values.map(|minute| {
            let [minute, found] = fixed_array(minute)?;
            let mut counts = MinuteCounts::default();
            for (field, count) in fields(found)? {
                counts.add_field(&field, &count);
            }
            Ok((number(&minute)?, counts))
        });
        Ok(Self {
            now,
            minutes: minutes.collect::<Result<_, Error>>()?,
        })
    }
}

/// The workers of the handle's group.
struct RedisWorkers(Redis);

/// A worker on one stream.
#[derive(Debug)]
struct StreamWorker {
    /// The index of the stream among those of the handle.
    stream_index: usize,
    consumer: String,
    info: WorkerInfo,
}

/// The answers to a question. Each has the worker, the text and the time since the question.
type WorkerAnswers = Vec<(String, String, Duration)>;

impl RedisWorkers {
    /// Returns each worker once, with one of the streams that it serves: if possible, a stream on
    /// which the worker is live.
    async fn all_workers(&self, all_keys: &[Keys]) -> Result<Vec<StreamWorker>, Error> {
        let streams = all_keys.iter().enumerate();
        let listed = streams.map(|(index, keys)| self.workers_on(index, keys));
        let mut workers = BTreeMap::<String, StreamWorker>::new();
        for found in try_join_all(listed).await?.into_iter().flatten() {
            let known = workers.get(&found.info.worker);
            if known.is_none_or(|known| found.info.alive && !known.info.alive) {
                workers.insert(found.info.worker.clone(), found);
            }
        }
        Ok(workers.into_values().collect())
    }

    async fn workers_on(
        &self,
        stream_index: usize,
        keys: &Keys,
    ) -> Result<Vec<StreamWorker>, Error> {
        let announcements = self.announcements(keys).await?;
        let consumers = self.0.consumers_of(&keys.stream).await?;
        // A consumer is listed for the stream and for its retry stream. The shorter idle time
        // counts.
        let mut idle_times = HashMap::<String, Duration>::new();
        for found in consumers.into_iter().flatten() {
            let known = idle_times.entry(found.consumer).or_insert(found.idle);
            *known = found.idle.min(*known);
        }
        let mut workers = Vec::with_capacity(announcements.len());
        for (consumer, text) in announcements {
            let mut info = read_info(&consumer, &text);
            info.alive =
                (idle_times.remove(&consumer)).is_some_and(|idle| idle < lease_of(&consumer));
            workers.push(StreamWorker {
                stream_index,
                consumer,
                info,
            });
        }
        let unannounced = idle_times.into_iter().filter(|(consumer, idle)| {
            consumer.starts_with(CONSUMER_PREFIX) && *idle < lease_of(consumer)
        });
        workers.extend(unannounced.map(|(consumer, _)| StreamWorker {
            stream_index,
            info: WorkerInfo::unknown(
                &consumer,
                "it has announced nothing: its version is older, or it starts just now",
            ),
            consumer,
        }));
        Ok(workers)
    }

    /// Reads the announcements, by consumer.
    async fn announcements(&self, keys: &Keys) -> Result<BTreeMap<String, Vec<u8>>, Error> {
        let (key, mut cursor) = (keys.workers(), "0".to_owned());
        let mut announcements = BTreeMap::new();
        let pipeline = self.0.shared.pipeline.for_key(&keys.stream_key);
        loop {
            let mut cmd = redis::cmd("HSCAN");
            cmd.arg(&key).arg(&cursor).arg("COUNT").arg(SCAN_COUNT);
            let response = pipeline.submit(cmd, Resend::Never).await?;
            if error::code(&response) == Some("WRONGTYPE") {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!(
                        "the key `{key}` does not hold the announcements of workers, so another \
                         program has written it; delete it"
                    ),
                ));
            }
            let (next, found) = decode_scan(error::check(response)?)?;
            announcements.extend(found);
            if next == "0" {
                return Ok(announcements);
            }
            cursor = next;
        }
    }

    /// Asks all live workers a question, and waits for their answers. `word` is the question, for
    /// example `ping`. Also returns the names of the live workers that cannot be asked, or did not
    /// answer in time.
    async fn ask(&self, word: &str) -> Result<(WorkerAnswers, Vec<String>), Error> {
        let all_keys = self.0.all_keys()?;
        let asked_at = Instant::now();
        // For each stream, the workers to ask there, by consumer.
        let mut unanswered = vec![HashMap::new(); all_keys.len()];
        let mut silent = Vec::new();
        for worker in self.all_workers(&all_keys).await? {
            match (worker.info.alive, worker.info.fault) {
                (false, _) => {}
                // The announcement of the worker is missing or cannot be read.
                (true, Some(_)) => silent.push(worker.info.worker),
                (true, None) => {
                    unanswered[worker.stream_index].insert(worker.consumer, worker.info.worker);
                }
            }
        }
        let streams = all_keys.iter().zip(unanswered);
        let streams = streams.filter(|(_, unanswered)| !unanswered.is_empty());
        let found = streams.map(|(keys, unanswered)| self.ask_on(keys, unanswered, word, asked_at));
        let mut texts = Vec::new();
        for (found, unanswered) in try_join_all(found).await? {
            texts.extend(found);
            silent.extend(unanswered);
        }
        Ok((texts, silent))
    }

    /// Asks the workers on a stream. `unanswered` has the names of the workers by consumer.
    async fn ask_on(
        &self,
        keys: &Keys,
        mut unanswered: HashMap<String, String>,
        word: &str,
        asked_at: Instant,
    ) -> Result<(WorkerAnswers, Vec<String>), Error> {
        let pipeline = self.0.shared.pipeline.for_key(&keys.stream_key);
        let question = keys.report_request();
        let args = |cmd: &mut Cmd| {
            cmd.arg(random_id().to_string())
                .arg(word)
                .arg(MAX_WAIT.as_millis() as u64);
        };
        let names = [question.as_str()];
        let response = pipeline.script(&scripts::ASK, &names, args, Resend::Never);
        // The time of the question on the server's clock. Earlier answers do not count.
        let since = integer(&response.await?)?;
        let mut texts = Vec::new();
        // Polls until each worker has answered, or the time is over.
        while !unanswered.is_empty() && asked_at.elapsed() < MAX_WAIT {
            sleep(POLL_PERIOD).await;
            let consumers: Vec<_> = unanswered.keys().cloned().collect();
            for consumers in consumers.chunks(MAX_COLLECTED_WORKERS) {
                for (consumer, text) in collect(&pipeline, keys, since, consumers).await? {
                    if let Some(worker) = unanswered.remove(&consumer) {
                        texts.push((worker, text, asked_at.elapsed()));
                    }
                }
            }
        }
        Ok((texts, unanswered.into_values().collect()))
    }
}

/// Returns the answers of these consumers that have come since a time on the server's clock.
async fn collect(
    pipeline: &Pipeline,
    keys: &Keys,
    since: i64,
    consumers: &[String],
) -> Result<Vec<(String, String)>, Error> {
    let announcements = keys.workers();
    let (mut answers, mut rest) = (Vec::new(), consumers);
    // A call returns only the first `MAX_COLLECTED_BYTES` of the answers. The next call goes on
    // after the last consumer in the response.
    while !rest.is_empty() {
        let args = |cmd: &mut Cmd| {
            cmd.arg(keys.group.as_str())
                .arg(since)
                .arg(MAX_COLLECTED_BYTES)
                .arg(rest);
        };
        let names = [announcements.as_str()];
        let found = pipeline.script(&scripts::COLLECT, &names, args, Resend::Never);
        let found = fields(found.await?)?;
        let Some((last, _)) = found.last() else { break };
        let last_position = rest.iter().position(|it| it.as_bytes() == last);
        rest = &rest[last_position.map_or(rest.len(), |at| at + 1)..];
        let text = |bytes: Bytes| String::from_utf8_lossy(&bytes).into_owned();
        answers.extend(
            found
                .into_iter()
                .map(|(consumer, answer)| (text(consumer), text(answer))),
        );
    }
    Ok(answers)
}

impl WorkerStore for RedisWorkers {
    fn list(&self) -> StoreFuture<'_, Vec<WorkerInfo>> {
        Box::pin(async move {
            let workers = self.all_workers(&self.0.all_keys()?).await?;
            Ok(workers.into_iter().map(|worker| worker.info).collect())
        })
    }

    fn stats(&self) -> StoreFuture<'_, Answers<WorkerStats>> {
        Box::pin(async move {
            let (texts, mut silent) = self.ask("stats").await?;
            let mut answers = Vec::with_capacity(texts.len());
            for (worker, text, _) in texts {
                match read_stats(&worker, &text) {
                    Some(stats) => answers.push(stats),
                    None => silent.push(worker),
                }
            }
            Ok(Answers::new(answers, silent))
        })
    }

    fn describe(&self) -> StoreFuture<'_, Answers<WorkerDescription>> {
        Box::pin(async move {
            let (texts, mut silent) = self.ask("describe").await?;
            let mut answers = Vec::with_capacity(texts.len());
            for (worker, text, _) in texts {
                match read_description(&worker, &text) {
                    Some(description) => answers.push(description),
                    None => silent.push(worker),
                }
            }
            Ok(Answers::new(answers, silent))
        })
    }

    fn ping(&self) -> StoreFuture<'_, Answers<Pong>> {
        Box::pin(async move {
            let (texts, silent) = self.ask("ping").await?;
            let pongs = texts.into_iter();
            let pongs = pongs.map(|(worker, _, after)| Pong::new(worker, after));
            Ok(Answers::new(pongs.collect(), silent))
        })
    }

    fn order<'a>(
        &'a self,
        worker: &'a str,
        order: &'a WorkerOrder,
        by: &'a str,
    ) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let all_keys = self.0.all_keys()?;
            let workers = self.all_workers(&all_keys).await?;
            let found = workers.iter().find(|it| it.info.worker == worker);
            let Some(found) = found.filter(|it| it.info.alive && it.info.fault.is_none()) else {
                return Ok(false);
            };
            let keys = &all_keys[found.stream_index];
            let (announcements, (word, argument)) = (keys.workers(), order.word_and_argument());
            let names = [announcements.as_str(), &keys.worker_orders];
            let args = |cmd: &mut Cmd| {
                cmd.arg(&found.consumer)
                    .arg(worker)
                    .arg(word)
                    .arg(argument)
                    .arg(by)
                    .arg(MAX_ORDERS)
                    .arg(ORDER_RETENTION.as_millis() as u64);
            };
            let pipeline = self.0.shared.pipeline.for_key(&keys.stream_key);
            let script = &scripts::GIVE_ORDER;
            let given = pipeline.script(script, &names, args, Resend::Never);
            Ok(integer(&given.await?)? == 1)
        })
    }
}

/// Announcements, each with its consumer.
type Announcements = Vec<(String, Vec<u8>)>;

/// Decodes a response to `HSCAN`: the next cursor, and the fields with their values.
pub(super) fn decode_scan(response: Value) -> Result<(String, Announcements), Error> {
    let [cursor, found] = fixed_array(response)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let found = fields(found)?.into_iter();
    let found = found.map(|(field, value)| (text(&field), value.to_vec()));
    Ok((text(&bytes(cursor)?), found.collect()))
}

/// Decodes an announcement.
fn read_info(consumer: &str, text: &[u8]) -> WorkerInfo {
    let unreadable = |fault: String| WorkerInfo::unknown(consumer, fault);
    if text.len() > MAX_TEXT {
        return unreadable(format!("its announcement has {} bytes", text.len()));
    }
    match serde_json::from_slice::<WorkerInfo>(text) {
        Ok(info) if info.worker.is_empty() => {
            unreadable("its announcement does not name it".to_owned())
        }
        Ok(info) => info,
        Err(error) => unreadable(format!("its announcement cannot be read: {error}")),
    }
}

/// Decodes the statistics of a worker. `None` if they cannot be read.
fn read_stats(worker: &str, text: &str) -> Option<WorkerStats> {
    let text = (text.len() <= MAX_TEXT).then_some(text)?;
    let stats = serde_json::from_str::<WorkerStats>(text).ok()?;
    // This may be the answer to an earlier ping, which has no `routes`.
    (stats.worker == worker && text.contains("\"routes\"")).then_some(stats)
}

/// Decodes the description of a worker. `None` if it cannot be read.
fn read_description(worker: &str, text: &str) -> Option<WorkerDescription> {
    let text = (text.len() <= MAX_TEXT).then_some(text)?;
    let found = serde_json::from_str::<WorkerDescription>(text).ok()?;
    // A worker of an older version does not know the question, and answers it like a ping.
    (found.worker == worker && text.contains("\"description\"")).then_some(found)
}

/// Parses the lease in the name of a consumer. 10 s if the name contains no lease.
fn lease_of(consumer: &str) -> Duration {
    let lease = consumer.strip_prefix(CONSUMER_PREFIX);
    let lease = lease.and_then(|rest| rest.strip_prefix("lease=")?.split_once("ms-"));
    let millis = lease.and_then(|(lease, _)| lease.parse().ok());
    Duration::from_millis(millis.unwrap_or(10_000))
}
