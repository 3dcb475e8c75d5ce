//! Where each job is on the server, as one of the groups sees it.

use std::{collections::BTreeMap, fmt};

use super::{
    book::Job,
    server::{Data, Fields, Item, Stream, short, text},
};
use crate::transport::redis::msgpack;

/// The stream of all simulations.
pub(super) const STREAM: &str = "jobs";

/// Where a job is.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Its sender wants it on the stream later.
    Delayed,
    /// On the stream or the retry stream, and nobody in the group has read it.
    Unread,
    /// With a worker.
    Pending {
        id: String,
        consumer: Vec<u8>,
        deliveries: i64,
    },
    /// To be delivered again later.
    Due,
    /// Among the dead letters.
    Dead,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Place::Delayed => "delayed",
            Place::Unread => "unread",
            Place::Due => "due later",
            Place::Dead => "dead",
            Place::Pending {
                id,
                consumer,
                deliveries,
            } => {
                return write!(f, "{id} with {} ({deliveries})", short(text(consumer)));
            }
        })
    }
}

/// A group's keys.
pub(super) struct Keys {
    group: String,
    pub(super) retry: String,
    pub(super) due: String,
    pub(super) bodies: String,
    pub(super) dead: String,
}

impl Keys {
    pub(super) fn of(group: &str) -> Self {
        let key = |what| format!("{{{STREAM}}}:{what}:{group}");
        Self {
            group: group.to_owned(),
            retry: key("retry"),
            due: key("due"),
            bodies: key("bodies"),
            dead: key("dead"),
        }
    }

    /// Every place of every job that this group is not done with.
    pub(super) fn places(&self, data: &Data) -> BTreeMap<Job, Vec<Place>> {
        let mut places = BTreeMap::<_, Vec<_>>::new();
        let mut found = |fields: &Fields, place| {
            if let Some(job) = job(fields) {
                places.entry(job).or_default().push(place);
            }
        };
        for key in [STREAM, &self.retry] {
            if let Some(stream) = data.stream(key) {
                self.on_stream(stream, &mut found);
            }
        }
        for (_, fields) in data
            .stream(&self.dead)
            .iter()
            .flat_map(|dead| &dead.entries)
        {
            found(fields, Place::Dead);
        }
        let delayed = format!("{{{STREAM}}}:bodies");
        for (key, place) in [(&delayed, Place::Delayed), (&self.bodies, Place::Due)] {
            if let Some(Item::Hash(bodies)) = data.keys.get(key.as_bytes()) {
                for body in bodies.values() {
                    let fields =
                        msgpack::unpack(&body.clone().into()).expect("a body is a list of fields");
                    let fields = fields
                        .into_iter()
                        .flat_map(|(field, value)| [field.to_vec(), value.to_vec()]);
                    found(&fields.collect(), place.clone());
                }
            }
        }
        places
    }

    fn on_stream(&self, stream: &Stream, found: &mut impl FnMut(&Fields, Place)) {
        let group = stream.groups.get(self.group.as_bytes());
        for (id, fields) in &stream.entries {
            // A group that nobody has made yet begins at the beginning.
            let pending = group.and_then(|group| group.pending.get(id));
            match pending {
                Some(pending) => found(
                    fields,
                    Place::Pending {
                        id: id.to_string(),
                        consumer: pending.consumer.clone(),
                        deliveries: pending.deliveries,
                    },
                ),
                None if group.is_none_or(|group| *id > group.last) => found(fields, Place::Unread),
                None => {}
            }
        }
    }

    /// What is left of the group's work, where there should be nothing.
    pub(super) fn left(&self, data: &Data, forgotten: bool) -> Vec<String> {
        let mut left = Vec::new();
        for key in [STREAM, &self.retry] {
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
                .filter(|_| forgotten)
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
        for key in [&self.due, &self.bodies] {
            if data.keys.contains_key(key.as_bytes()) {
                left.push(format!("{key} is not empty"));
            }
        }
        left
    }
}

/// The number of the job that these are the fields of.
fn job(fields: &Fields) -> Option<Job> {
    let payload = fields.chunks_exact(2).find(|pair| pair[0] == b"payload")?;
    text(&payload[1]).trim_end().parse().ok()
}
