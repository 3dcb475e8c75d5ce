//! Sets of streams for one worker, and the order between them.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
    str::FromStr,
    sync::Arc,
};

use foldhash::HashMap;

use super::Partitions;
use crate::{error::Error, message::Name};

/// The streams that one worker serves, and the order between them.
///
/// The worker uses the same group, capacity (`max_in_flight`) and connections for all streams. Each
/// stream has separate retries, dead letters and statistics.
///
/// ```
/// use campanile::transport::{Streams, memory::Memory};
///
/// let orders = Memory::new().streams(Streams::strict(["orders.urgent", "orders"]));
/// let tenants = Memory::new().streams(Streams::weighted([("paying", 9), ("free", 1)]));
/// ```
///
/// A set can be read from a configuration file or the environment:
///
/// ```
/// use campanile::transport::Streams;
///
/// let streams: Streams = "weighted: paying=9, free=1".parse()?;
/// assert_eq!(streams, Streams::weighted([("paying", 9), ("free", 1)]));
/// # Ok::<_, campanile::Error>(())
/// ```
///
/// # Ordering
/// The policy decides from which stream messages are *fetched* next. A message that was fetched
/// occupies a slot, even while it waits for a limit inside the application, such as a concurrency
/// limit in a layer. So if priority matters, use `max_in_flight` as the limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streams {
    pub(crate) members: Members,
    pub(crate) policy: StreamPolicy,
}

/// The names of a set's streams, or the registry that has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Members {
    /// The names and weights that the application lists. In an `Arc`, because the set is part of a
    /// handle that is cloned for each call.
    Listed(Arc<[(Name, u32)]>),
    /// The streams that senders register in the registry with this name.
    Registered(Name),
    /// The partitions of one stream.
    Partitioned(Partitions),
}

/// The order between the streams of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum StreamPolicy {
    /// A stream is read only while the streams before it have nothing to deliver.
    Strict,
    /// Streams share the slots in proportion to their weights.
    #[default]
    Weighted,
}

impl Streams {
    /// Creates a set with strict priority: a stream is read only while all streams before it have
    /// nothing to deliver. The last streams may wait forever.
    pub fn strict<N: Into<Name>>(names: impl IntoIterator<Item = N>) -> Self {
        let names = names.into_iter().map(|name| (name.into(), 1));
        Self {
            members: Members::Listed(names.collect()),
            policy: StreamPolicy::Strict,
        }
    }

    /// Creates a set whose streams share by weight. While all streams have messages, nine times as
    /// many are fetched from a stream with weight 9 as from a stream with weight 1. If a stream
    /// does not use its share, the other streams get it.
    pub fn weighted<N: Into<Name>>(weights: impl IntoIterator<Item = (N, u32)>) -> Self {
        let weights = weights
            .into_iter()
            .map(|(name, weight)| (name.into(), weight));
        Self {
            members: Members::Listed(weights.collect()),
            policy: StreamPolicy::Weighted,
        }
    }

    /// Creates a set whose streams take turns. All streams have the same share, so a stream with a
    /// long backlog does not delay the others.
    pub fn in_turn<N: Into<Name>>(names: impl IntoIterator<Item = N>) -> Self {
        Self::weighted(names.into_iter().map(|name| (name, 1)))
    }

    /// Creates a set of the streams that senders register. The streams take turns. Use this for
    /// sets that change, such as one stream for each tenant. Senders register a stream by sending
    /// to it with a handle that has this [`registry`](crate::transport::memory::Memory::registry).
    ///
    /// A worker finds a new stream within about a second. On Redis it stops serving a stream that
    /// no sender has used for 90 s, once the stream is empty.
    pub fn registered(registry: impl Into<Name>) -> Self {
        Self {
            members: Members::Registered(registry.into()),
            policy: StreamPolicy::Weighted,
        }
    }

    /// Creates a set of the partitions of one stream, for more messages than one server can handle,
    /// or for order by key. The partitions of `orders` are the streams `orders:0`, `orders:1` and
    /// so on. A Redis Cluster spreads them over its servers.
    ///
    /// A handle with this set sends each task and request to one partition. Messages with the same
    /// [`partition_key`](crate::client::Call::partition_key) go to the same partition, and messages
    /// without a key go to the partitions in turn. A worker serves all partitions in turn. The
    /// handle's statistics and dead letters are those of all partitions. For those of one partition
    /// use a handle of its stream, such as `orders:7`.
    ///
    /// ```
    /// # async fn run() -> Result<(), campanile::Error> {
    /// use campanile::{Client, transport::{Streams, memory::Memory}};
    ///
    /// let orders = Memory::new().streams(Streams::partitioned("orders", 16));
    /// let client = Client::new(orders.clone());
    /// client.enqueue("order.paid", "{}").partition_key("customer-7").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Ordering
    /// Messages with the same key are in the same partition, in the order in which they were sent.
    /// But the handlers of a worker run concurrently, and another worker may read the next message,
    /// so handlers may finish in another order. See [`owned`](Self::owned).
    ///
    /// # Errors
    /// All senders and workers need the same number of partitions, from 1 to 1024. The server
    /// records the number. A worker with a lower number is refused. A sender with a number that the
    /// stream has never had is refused, too.
    ///
    /// To increase the number, first start workers with the higher number. Senders with a former
    /// number still work, and log a warning. After an increase, a key may belong to another
    /// partition. Its messages from before and after the increase are then not in order.
    pub fn partitioned(stream: impl Into<Name>, partitions: usize) -> Self {
        Self {
            members: Members::Partitioned(Partitions::new(stream.into(), partitions)),
            policy: StreamPolicy::Weighted,
        }
    }

    /// Lets only one worker of the group own and read each partition at a time, so that order by
    /// key holds over all workers. Requires a [partitioned](Self::partitioned) set.
    ///
    /// The workers divide the partitions among themselves. When a worker starts or stops, they
    /// divide them again within seconds. When a worker dies, they divide them again after the
    /// duration of a [`lease`](crate::transport::Settings::lease) and a few more seconds. Either
    /// all workers of a group use `owned`, or none. Another group of the same stream may differ.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), campanile::Error> {
    /// use campanile::{Redis, transport::Streams};
    ///
    /// let orders = Redis::connect("redis://127.0.0.1/")
    ///     .await?
    ///     .streams(Streams::partitioned("orders", 16).owned());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Ordering
    /// Messages with the same key are handled one at a time, in the order in which they were sent.
    /// A message that fails is repeated after its back-off. Later messages with its key wait until
    /// it is done or a dead letter. Messages with other keys or without a key do not wait. Messages
    /// that a dead worker has left are handled one at a time, before newer messages. A replayed
    /// dead letter or a delayed task takes its place in the order when it is added to the stream,
    /// not when it was first sent.
    ///
    /// # Delivery guarantee
    /// The verdict of a former owner on a message that already belongs to the new owner has no
    /// effect. If a worker was wrongly considered dead, its handler may still run while the new
    /// owner handles the same message. Then the [`Lease`](crate::Lease) of the first handler is
    /// lost, and the loss is counted. Another system can tell the two handlers apart by their
    /// [`PartitionTerm`].
    ///
    /// # Panics
    /// If the set is not partitioned.
    ///
    /// [`PartitionTerm`]: crate::transport::PartitionTerm
    #[must_use]
    #[track_caller]
    pub fn owned(mut self) -> Self {
        match &mut self.members {
            Members::Partitioned(partitions) => partitions.owned = true,
            Members::Listed(_) | Members::Registered(_) => {
                panic!("only a partitioned stream has partitions that workers can own")
            }
        }
        self
    }

    /// Returns `true` if all streams have the same share.
    #[cfg(feature = "redis")]
    pub(crate) fn is_in_turn(&self) -> bool {
        let weights = match &self.members {
            Members::Listed(listed) => &listed[..],
            Members::Registered(_) | Members::Partitioned(_) => &[],
        };
        self.policy == StreamPolicy::Weighted
            && weights.windows(2).all(|pair| pair[0].1 == pair[1].1)
    }

    /// Returns an error if the set is invalid.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let listed = match &self.members {
            Members::Registered(registry) => {
                return match registry.fault() {
                    None => Ok(()),
                    Some(fault) => Err(Error::config(format!(
                        "the registry cannot be used: {fault}"
                    ))),
                };
            }
            Members::Partitioned(partitions) => return partitions.validate(),
            Members::Listed(listed) => listed,
        };
        if listed.is_empty() {
            return Err(Error::config(
                "the set of streams is empty: name at least one stream to serve",
            ));
        }
        let mut seen = HashSet::new();
        for (name, weight) in listed.iter() {
            if let Some(fault) = name.fault() {
                return Err(Error::config(format!(
                    "the stream `{name}` cannot be used: {fault}"
                )));
            }
            if !seen.insert(name) {
                return Err(Error::config(format!(
                    "the set of streams has `{name}` twice: name each stream once, and give it a \
                     higher weight if it needs a larger share"
                )));
            }
            if *weight == 0 {
                return Err(Error::config(format!(
                    "the stream `{name}` has weight 0 and would never be read: give it a weight of \
                     at least 1, or leave it out"
                )));
            }
        }
        Ok(())
    }
}

/// Reads `strict: a, b`, `in_turn: a, b`, `weighted: a=2, b=1`, `partitioned: name=16` or
/// `registered: name`.
impl FromStr for Streams {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let malformed = |reason: String| {
            Error::config(format!(
                "{reason}; write `strict: a, b`, `in_turn: a, b`, `weighted: a=2, b=1`, \
                 `partitioned: name=16` or `registered: name`"
            ))
        };
        let Some((policy, names)) = text.split_once(':') else {
            return Err(malformed(format!("`{text}` is not a set of streams")));
        };
        let names = names
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty());
        let streams = match policy.trim() {
            "strict" => Self::strict(names),
            "in_turn" => Self::in_turn(names),
            "weighted" => {
                let weights = names.map(|pair| {
                    name_and_number(pair)
                        .ok_or_else(|| malformed(format!("`{pair}` is not a stream with a weight")))
                });
                Self::weighted(weights.collect::<Result<Vec<_>, _>>()?)
            }
            "partitioned" => match names.collect::<Vec<_>>()[..] {
                [pair] => {
                    let (name, count) = name_and_number(pair).ok_or_else(|| {
                        malformed(format!("`{pair}` is not a stream with a number"))
                    })?;
                    Self::partitioned(name, count as usize)
                }
                _ => return Err(malformed(format!("`{text}` does not name one stream"))),
            },
            "registered" => match names.collect::<Vec<_>>()[..] {
                [registry] => Self::registered(registry),
                _ => return Err(malformed(format!("`{text}` does not name one registry"))),
            },
            unknown => {
                return Err(malformed(format!(
                    "`{unknown}` is not a policy for a set of streams"
                )));
            }
        };
        streams.validate()?;
        Ok(streams)
    }
}

/// Reads `name=number`.
fn name_and_number(pair: &str) -> Option<(&str, u32)> {
    let (name, number) = pair.rsplit_once('=')?;
    Some((name.trim_end(), number.trim_start().parse().ok()?))
}

/// The maximum number of deliveries of one stream in a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quota {
    /// The key of the stream in the schedule.
    pub(crate) stream: u32,
    /// The maximum number of deliveries.
    pub(crate) max: usize,
}

/// Divides the free slots of a worker among its streams.
///
/// Weights are implemented by start-time fair queueing (Goyal, Vin, Cheng 1996). Each stream has a
/// virtual time. It advances by the number of the stream's deliveries, divided by the stream's
/// weight. The stream with the lowest virtual time is read first. A stream that was idle continues
/// at the current virtual time, so it gets no extra share for its idle time.
#[derive(Debug, Default)]
pub(crate) struct StreamSchedule {
    policy: StreamPolicy,
    streams: Vec<ScheduledStream>,
    /// The virtual time at which the last fetch started.
    now: u64,
}

/// A stream of a schedule.
#[derive(Debug)]
struct ScheduledStream {
    stream: u32,
    weight: u32,
    /// The virtual time at which the stream's next delivery starts. If `now` is later, the delivery
    /// starts at `now`.
    next_start: u64,
}

/// The virtual time of one delivery with weight 1.
const TIME_PER_DELIVERY: u64 = 1 << 20;

impl StreamSchedule {
    pub(crate) fn new(policy: StreamPolicy) -> Self {
        Self {
            policy,
            streams: Vec::new(),
            now: 0,
        }
    }

    /// Adds a stream. Its key must be greater than the keys of all streams that were added before.
    pub(crate) fn add(&mut self, stream: u32, weight: u32) {
        self.streams.push(ScheduledStream {
            stream,
            weight: weight.max(1),
            next_start: self.now,
        });
    }

    /// Removes a stream. Only the Redis transport removes streams.
    #[cfg(feature = "redis")]
    pub(crate) fn remove(&mut self, stream: u32) {
        self.streams.retain(|it| it.stream != stream);
    }

    /// Divides `room`, the number of free slots, among the streams. Returns the streams in the
    /// order in which they are read. If a stream delivers less than its quota, the caller gives the
    /// remaining slots to the next streams.
    pub(crate) fn quotas(&mut self, room: usize) -> Vec<Quota> {
        if self.policy == StreamPolicy::Strict {
            let whole = |it: &ScheduledStream| Quota {
                stream: it.stream,
                max: room,
            };
            return self.streams.iter().map(whole).collect();
        }
        // Assigns the slots one by one, each to the stream with the lowest virtual time.
        let start_times =
            (0..self.streams.len()).map(|place| Reverse((self.start_time(place), place)));
        let mut queue: BinaryHeap<_> = start_times.collect();
        let mut quotas: Vec<Quota> = Vec::with_capacity(self.streams.len());
        let mut quota_index = HashMap::<usize, usize>::default();
        for _ in 0..room {
            let Some(mut first) = queue.peek_mut() else {
                break;
            };
            let Reverse((time, place)) = &mut *first;
            let it = &self.streams[*place];
            *time += TIME_PER_DELIVERY / u64::from(it.weight);
            let at = *quota_index.entry(*place).or_insert(quotas.len());
            match quotas.get_mut(at) {
                Some(quota) => quota.max += 1,
                None => quotas.push(Quota {
                    stream: it.stream,
                    max: 1,
                }),
            }
        }
        // Streams without a share come last. They are read only if the streams before them deliver
        // less than their quotas.
        let mut rest: Vec<_> = (self.streams.iter().enumerate())
            .filter(|(place, _)| !quota_index.contains_key(place))
            .map(|(_, it)| it)
            .collect();
        rest.sort_by_key(|it| it.next_start);
        quotas.extend(rest.into_iter().map(|it| Quota {
            stream: it.stream,
            max: 1,
        }));
        quotas
    }

    /// Returns the streams in the order of their virtual times, the lowest first. `None` if their
    /// shares differ.
    #[cfg(feature = "redis")]
    pub(crate) fn turn_order(&self) -> Option<Vec<u32>> {
        let has_equal_shares = self.policy == StreamPolicy::Weighted
            && (self.streams.windows(2)).all(|pair| pair[0].weight == pair[1].weight);
        let mut places: Vec<_> = (0..self.streams.len()).collect();
        places.sort_by_key(|place| self.start_time(*place));
        let streams = places.into_iter().map(|place| self.streams[place].stream);
        has_equal_shares.then(|| streams.collect())
    }

    /// Returns `true` if the streams have strict priority.
    #[cfg(feature = "redis")]
    pub(crate) fn is_strict(&self) -> bool {
        self.policy == StreamPolicy::Strict
    }

    /// Returns the stream to read next. `reserved` returns the maximum number of deliveries that
    /// the running reads of a stream may return, or `None` if the stream has nothing to deliver.
    #[cfg(feature = "redis")]
    pub(crate) fn next(&self, reserved: impl Fn(u32) -> Option<usize>) -> Option<u32> {
        let ready = self.streams.iter().enumerate().filter_map(|(place, it)| {
            let deliveries = reserved(it.stream)? as u64;
            let time = match self.policy {
                StreamPolicy::Strict => 0,
                StreamPolicy::Weighted => {
                    self.start_time(place) + deliveries * TIME_PER_DELIVERY / u64::from(it.weight)
                }
            };
            Some((time, it.stream))
        });
        ready.min().map(|(_, stream)| stream)
    }

    /// Returns the virtual time at which the next delivery of a stream starts. It is at least
    /// `now`.
    fn start_time(&self, place: usize) -> u64 {
        self.streams[place].next_start.max(self.now)
    }

    /// Records that deliveries of a stream were fetched.
    pub(crate) fn record_fetched(&mut self, stream: u32, deliveries: usize) {
        if deliveries == 0 {
            return;
        }
        // Streams are added in the order of their keys.
        let Ok(place) = self.streams.binary_search_by_key(&stream, |it| it.stream) else {
            return;
        };
        let start = self.start_time(place);
        let found = &mut self.streams[place];
        found.next_start = start + deliveries as u64 * TIME_PER_DELIVERY / u64::from(found.weight);
        self.now = start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads up to `room` deliveries, `rounds` times, from endless backlogs. Returns the number of
    /// deliveries of each stream.
    fn fetch(policy: StreamPolicy, weights: &[u32], room: usize, rounds: usize) -> Vec<usize> {
        let mut schedule = StreamSchedule::new(policy);
        for (stream, weight) in weights.iter().enumerate() {
            schedule.add(stream as u32, *weight);
        }
        let mut fetched = vec![0; weights.len()];
        for _ in 0..rounds {
            let mut left = room;
            while left > 0 {
                for quota in schedule.quotas(left) {
                    let count = quota.max.min(left);
                    left -= count;
                    fetched[quota.stream as usize] += count;
                    schedule.record_fetched(quota.stream, count);
                }
            }
        }
        fetched
    }

    #[test]
    fn strict_priority_reads_the_first_stream_alone_while_it_has_something() {
        assert_eq!(fetch(StreamPolicy::Strict, &[1, 1], 8, 3), [24, 0]);
    }

    #[test]
    fn streams_share_by_their_weights_whatever_the_room() {
        for room in [1, 3, 10, 64] {
            let fetched = fetch(StreamPolicy::Weighted, &[9, 1], room, 640 / room);
            let share = fetched[0] as f64 / fetched.iter().sum::<usize>() as f64;
            assert!((0.85..0.95).contains(&share), "{room}: {fetched:?}");
        }
        assert_eq!(fetch(StreamPolicy::Weighted, &[1, 1, 1], 1, 9), [3, 3, 3]);
    }

    #[cfg(feature = "redis")]
    #[test]
    fn the_next_stream_is_the_first_with_messages_or_the_one_furthest_behind() {
        let schedule = |policy| {
            let mut schedule = StreamSchedule::new(policy);
            schedule.add(0, 2);
            schedule.add(1, 1);
            schedule
        };
        let strict = schedule(StreamPolicy::Strict);
        assert_eq!(strict.next(|_| Some(8)), Some(0));
        assert_eq!(strict.next(|stream| (stream == 1).then_some(0)), Some(1));
        assert_eq!(strict.next(|_| None), None);
        let mut weighted = schedule(StreamPolicy::Weighted);
        assert_eq!(weighted.next(|_| Some(0)), Some(0));
        assert_eq!(
            weighted.next(|stream| Some(2 - 2 * stream as usize)),
            Some(1)
        );
        weighted.record_fetched(0, 3);
        weighted.record_fetched(1, 1);
        assert_eq!(weighted.next(|_| Some(0)), Some(1));
    }

    #[test]
    fn a_stream_that_was_idle_gets_no_extra_share() {
        let mut schedule = StreamSchedule::new(StreamPolicy::Weighted);
        schedule.add(0, 1);
        schedule.add(1, 1);
        for _ in 0..100 {
            schedule.record_fetched(0, 1);
        }
        // Stream 1 starts now: it is first once, and then both streams take turns.
        let mut order = Vec::new();
        for _ in 0..6 {
            let first = schedule.quotas(1)[0].stream;
            schedule.record_fetched(first, 1);
            order.push(first);
        }
        assert_eq!(order.iter().filter(|it| **it == 0).count(), 3, "{order:?}");
    }

    #[test]
    fn a_stream_that_was_idle_gets_the_same_quota_as_the_other() {
        let mut schedule = StreamSchedule::new(StreamPolicy::Weighted);
        schedule.add(0, 1);
        schedule.add(1, 1);
        for _ in 0..100 {
            schedule.record_fetched(0, 1);
        }
        let quotas = schedule.quotas(10).into_iter();
        let shares: Vec<_> = quotas.map(|quota| (quota.stream, quota.max)).collect();
        assert_eq!(shares, [(1, 5), (0, 5)]);
    }

    #[cfg(feature = "redis")]
    #[test]
    fn streams_are_in_turn_only_if_they_have_the_same_share() {
        let in_turn = |policy, weights: &[u32]| {
            let mut schedule = StreamSchedule::new(policy);
            for (stream, weight) in weights.iter().enumerate() {
                schedule.add(stream as u32, *weight);
            }
            schedule.record_fetched(0, 2);
            schedule.record_fetched(1, 1);
            schedule.turn_order()
        };
        let turns = in_turn(StreamPolicy::Weighted, &[1, 1, 1]);
        assert_eq!(turns, Some(vec![2, 1, 0]));
        assert_eq!(in_turn(StreamPolicy::Weighted, &[1, 2, 1]), None);
        assert_eq!(in_turn(StreamPolicy::Strict, &[1, 1, 1]), None);
    }

    #[test]
    fn an_invalid_set_is_refused_with_the_reason() {
        let none: [&str; 0] = [];
        for (streams, reason) in [
            (Streams::strict(none), "is empty"),
            (Streams::in_turn(["a", "b", "a"]), "has `a` twice"),
            (Streams::weighted([("a", 0)]), "has weight 0"),
            (Streams::in_turn(["a", ""]), "cannot be used"),
            (Streams::registered(""), "the registry cannot be used"),
        ] {
            let error = streams.validate().expect_err(reason).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_set_is_parsed_from_text_or_the_text_is_refused_with_the_valid_forms() {
        let read = |text: &str| text.parse::<Streams>();
        assert_eq!(read("strict: a, b").unwrap(), Streams::strict(["a", "b"]));
        assert_eq!(read("in_turn:a,b").unwrap(), Streams::in_turn(["a", "b"]));
        assert_eq!(
            read("weighted: a=b = 2, c=1").unwrap(),
            Streams::weighted([("a=b", 2), ("c", 1)])
        );
        assert_eq!(read("registered: t").unwrap(), Streams::registered("t"));
        for (text, reason) in [
            ("fair: a", "`fair` is not a policy"),
            ("a", "`a` is not a set"),
            ("weighted: a", "`a` is not a stream with a weight"),
            ("weighted: a=-1", "is not a stream with a weight"),
            ("registered: a, b", "does not name one registry"),
            ("strict: a, a", "twice"),
            ("strict:", "is empty"),
        ] {
            let error = read(text).expect_err(reason).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
