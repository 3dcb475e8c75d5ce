//! The location of each job on the server, as one group sees it.

use std::{collections::BTreeMap, fmt};

use super::{
    ledger::JobId,
    server::{Data, Fields, Item, Stream, short, text},
};
use crate::transport::redis::msgpack;

/// The names of the streams. A simulation uses the first `Scenario::streams` of them.
pub(super) const STREAMS: [&str; 4] = ["jobs", "jobs-2", "jobs-3", "jobs-4"];

/// The location of a job.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Location {
    /// Delayed by its sender, and not on the stream yet.
    Delayed,
    /// On the stream or the retry stream, and not delivered to the group yet.
    Unread,
    /// Pending for a worker.
    Pending {
        id: String,
        consumer: Vec<u8>,
        deliveries: i64,
    },
    /// Waiting for its next attempt.
    Due,
    /// Waiting for a permit of the limit.
    Parked,
    /// Among the dead letters.
    DeadLetters,
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Location::Delayed => "delayed",
            Location::Unread => "unread",
            Location::Due => "due later",
            Location::Parked => "parked",
            Location::DeadLetters => "dead",
            Location::Pending {
                id,
                consumer,
                deliveries,
            } => {
                return write!(f, "{id} with {} ({deliveries})", short(text(consumer)));
            }
        })
    }
}

impl Location {
    /// Returns `true` if the job is pending for this consumer.
    pub(super) fn is_pending_for(&self, consumer: &[u8]) -> bool {
        matches!(self, Location::Pending { consumer: holder, .. } if holder == consumer)
    }
}

/// The name of the limit that workers share.
pub(super) const LIMIT: &str = "limit";
/// The only key of this limit.
pub(super) const LIMIT_KEY: &str = "key";

/// The keys of a stream and a group.
#[derive(Clone)]
pub(super) struct GroupKeys {
    pub(super) stream: &'static str,
    group: String,
    delayed: String,
    pub(super) retry: String,
    pub(super) due: String,
    pub(super) bodies: String,
    pub(super) dead: String,
    parked: String,
    parking: String,
    /// The beginning of the keys of records.
    records: String,
}

impl GroupKeys {
    pub(super) fn of(stream: &'static str, group: &str) -> Self {
        let key = |what| format!("{{{stream}}}:{what}:{group}");
        Self {
            stream,
            group: group.to_owned(),
            delayed: format!("{{{stream}}}:bodies"),
            retry: key("retry"),
            due: key("due"),
            bodies: key("bodies"),
            dead: key("dead"),
            parked: format!(
                "{{{stream}}}:parked:{}:{group}:{LIMIT}:{LIMIT_KEY}",
                group.len()
            ),
            parking: key("parking"),
            records: format!("{}:", key("task")),
        }
    }

    /// Returns the locations of each job of this stream that the group has not finished. More than
    /// one location of a job is a violation.
    pub(super) fn locations(&self, data: &Data) -> BTreeMap<JobId, Vec<Location>> {
        let mut locations = BTreeMap::<_, Vec<_>>::new();
        let mut found = |fields: &Fields, location| {
            if let Some(job) = job_of(fields) {
                locations.entry(job).or_default().push(location);
            }
        };
        for key in [self.stream, &self.retry] {
            if let Some(stream) = data.stream(key) {
                self.find_on_stream(stream, &mut found);
            }
        }
        let other_streams = [
            (&self.dead, Location::DeadLetters),
            (&self.parked, Location::Parked),
        ];
        for (key, location) in other_streams {
            let stream = data.stream(key);
            for fields in stream.iter().flat_map(|stream| stream.entries.values()) {
                found(fields, location.clone());
            }
        }
        let hashes = [
            (&self.delayed, Location::Delayed),
            (&self.bodies, Location::Due),
        ];
        for (key, location) in hashes {
            if let Some(Item::Hash(bodies)) = data.keys.get(key.as_bytes()) {
                for body in bodies.values() {
                    let fields =
                        msgpack::unpack(&body.clone().into()).expect("a body is a list of fields");
                    let fields = fields
                        .into_iter()
                        .flat_map(|(field, value)| [field.to_vec(), value.to_vec()]);
                    found(&fields.collect(), location.clone());
                }
            }
        }
        locations
    }

    fn find_on_stream(&self, stream: &Stream, found: &mut impl FnMut(&Fields, Location)) {
        let group = stream.groups.get(self.group.as_bytes());
        for (id, fields) in &stream.entries {
            // All entries are unread for a group that does not exist yet.
            let pending = group.and_then(|group| group.pending.get(id));
            match pending {
                Some(pending) => found(
                    fields,
                    Location::Pending {
                        id: id.to_string(),
                        consumer: pending.consumer.clone(),
                        deliveries: pending.deliveries,
                    },
                ),
                None if group.is_none_or(|group| *id > group.last_delivered_id) => {
                    found(fields, Location::Unread)
                }
                None => {}
            }
        }
    }

    /// Returns the recorded state of each task that has a record.
    pub(super) fn recorded_states(&self, data: &Data) -> BTreeMap<JobId, String> {
        let of_group = data.keys.range(self.records.clone().into_bytes()..);
        let of_group = of_group.take_while(|(key, _)| key.starts_with(self.records.as_bytes()));
        let states = of_group.filter_map(|(_, item)| {
            let Item::Hash(record) = item else {
                return None;
            };
            // The name of a task contains the number of its job.
            let name = text(record.get(&b"name"[..])?);
            let (_, job) = name.split_once('.')?;
            let state = text(record.get(&b"state"[..])?);
            Some((job.parse().ok()?, state.to_owned()))
        });
        states.collect()
    }

    /// Returns the number of entries that are pending for a consumer.
    pub(super) fn pending_for(&self, data: &Data, consumer: &[u8]) -> usize {
        let streams = [self.stream, &self.retry].map(|key| data.stream(key));
        let groups = streams
            .into_iter()
            .filter_map(|stream| stream?.groups.get(self.group.as_bytes()));
        let pending = groups.flat_map(|group| group.pending.values());
        pending
            .filter(|pending| pending.consumer == consumer)
            .count()
    }

    /// Returns descriptions of everything that the group has left on the stream. Nothing may be
    /// left after a simulation.
    pub(super) fn leftovers(&self, data: &Data, consumers_expired: bool) -> Vec<String> {
        let mut left = Vec::new();
        for key in [self.stream, &self.retry] {
            let group = data
                .stream(key)
                .and_then(|stream| stream.groups.get(self.group.as_bytes()));
            for (id, pending) in group.iter().flat_map(|group| &group.pending) {
                left.push(format!(
                    "{key} {id} is pending for {}",
                    short(text(&pending.consumer))
                ));
            }
            for consumer in group
                .iter()
                .filter(|_| consumers_expired)
                .flat_map(|group| group.consumers.keys())
            {
                left.push(format!("{key} has the consumer {}", short(text(consumer))));
            }
        }
        let retries = data
            .stream(&self.retry)
            .into_iter()
            .flat_map(|stream| stream.entries.keys());
        left.extend(retries.map(|id| format!("{} has {id}", self.retry)));
        for key in [&self.due, &self.bodies, &self.parked, &self.parking] {
            if data.keys.contains_key(key.as_bytes()) {
                left.push(format!("{key} is not empty"));
            }
        }
        left
    }
}

/// Returns the number of the job whose message has these fields.
fn job_of(fields: &Fields) -> Option<JobId> {
    let payload = fields.chunks_exact(2).find(|pair| pair[0] == b"payload")?;
    text(&payload[1]).trim_end().parse().ok()
}
