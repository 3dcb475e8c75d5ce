//! Divides the served streams by the slots of a cluster. No command reads streams of several slots.

use std::sync::Arc;

use super::streams::ServedStream;
use crate::{
    error::Error,
    transport::{
        Settings, StreamPolicy, StreamSchedule, Streams,
        redis::{keys::Keys, namespace::Namespace, server::HashSlot},
    },
};

/// Streams, with their weights.
pub(super) type WeightedStreams = Vec<(Keys, u32)>;

/// Checks the settings of the streams, and returns the keys and weights of the listed streams.
/// Empty if the streams come from a registry.
pub(super) fn listed_streams(
    namespace: &Namespace,
    settings: &Settings,
) -> Result<WeightedStreams, Error> {
    let group = &settings.group;
    settings
        .streams
        .as_ref()
        .map_or(Ok(()), Streams::validate)?;
    if let Some(registry) = settings.served_registry() {
        // Checks the registry's name by the rules for the names of streams.
        Keys::new(namespace, registry, group)?;
    }
    let listed = settings.listed_streams().into_iter();
    let keys = listed.map(|(stream, weight)| Ok((Keys::new(namespace, &stream, group)?, weight)));
    keys.collect()
}

/// The maximum number of cluster slots that one worker serves. Bounded, since the upkeep calls a
/// script on each slot at least once a second.
const MAX_SLOTS: usize = 1024;
/// Up to this number of slots, a worker reads each slot over a separate connection. With more
/// slots, all of them share read connections.
const MAX_SLOTS_WITH_OWN_CONNECTION: usize = 64;

/// The streams of each consumer of a source.
pub(super) struct ServedSlots {
    /// The streams of each slot. If streams have a priority or weights, several of these lists may be
    /// of one slot.
    pub(super) streams: Vec<WeightedStreams>,
    /// The order between streams of several slots. `None` if they take turns.
    policy: Option<StreamPolicy>,
}

impl ServedSlots {
    /// Puts all streams into one list, which one command can read.
    pub(super) fn one(streams: WeightedStreams) -> Self {
        Self {
            streams: vec![streams],
            policy: None,
        }
    }

    /// Makes the schedule between the slots. `None` if they take turns.
    pub(super) fn schedule(&self) -> Option<StreamSchedule> {
        let mut schedule = StreamSchedule::new(self.policy?);
        for (streams, number) in self.streams.iter().zip(0..) {
            schedule.add(number, streams.iter().map(|(_, weight)| *weight).sum());
        }
        Some(schedule)
    }

    /// Returns `true` if the slots share the connections that read them.
    pub(super) fn share_reads(&self) -> bool {
        self.policy.is_some() || self.streams.len() > MAX_SLOTS_WITH_OWN_CONNECTION
    }
}

/// Groups the streams by their slots on a cluster, since no command reads several slots. Streams
/// with priorities stay together only if they are neighbours in the list. Streams with weights stay
/// together only if all streams are in one slot.
pub(super) fn by_slot(settings: &Settings, listed: WeightedStreams) -> Result<ServedSlots, Error> {
    if let Some(registry) = settings.served_registry() {
        return Err(Error::config(format!(
            "the streams of the registry `{registry}` cannot be served on a Redis Cluster, since \
             they may be in any slot; list the streams, or give each a worker"
        )));
    }
    let slot_of = |(keys, _): &(Keys, u32)| HashSlot::of(keys.stream_key.as_bytes());
    let is_one_slot = listed
        .windows(2)
        .all(|pair| slot_of(&pair[0]) == slot_of(&pair[1]));
    if is_one_slot {
        return Ok(ServedSlots::one(listed));
    }
    let set = settings.streams.as_ref();
    let policy = set.filter(|set| !set.is_in_turn()).map(|set| set.policy);
    let mut slots: Vec<(HashSlot, WeightedStreams)> = Vec::new();
    for stream in listed {
        let slot = slot_of(&stream);
        let found = match policy {
            None => slots.iter_mut().find(|(known, _)| *known == slot),
            Some(StreamPolicy::Strict) => slots.last_mut().filter(|(last, _)| *last == slot),
            Some(StreamPolicy::Weighted) => None,
        };
        match found {
            Some((_, streams)) => streams.push(stream),
            None => slots.push((slot, vec![stream])),
        }
    }
    if slots.len() > MAX_SLOTS {
        return Err(Error::config(format!(
            "the streams are in {} slots of the Redis Cluster, and one worker serves at most \
             {MAX_SLOTS}; divide them among several workers, or give their names common hash tags",
            slots.len()
        )));
    }
    let streams = slots.into_iter().map(|(_, streams)| streams).collect();
    Ok(ServedSlots { streams, policy })
}

/// Makes the served streams of a slot. The index of each is its position in the list.
pub(super) fn served_streams(listed: &WeightedStreams) -> Vec<Arc<ServedStream>> {
    let streams = listed.iter().zip(0..);
    let streams = streams
        .map(|((keys, weight), index)| Arc::new(ServedStream::new(index, keys.clone(), *weight)));
    streams.collect()
}
