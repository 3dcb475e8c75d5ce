//! Lists the messages of a group, its consumers, and the streams of a handle.

use std::{
    future::ready,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Memory,
    broker::Broker,
    clock::BrokerClock,
    group::{GroupMessage, name_of},
};
use crate::{
    error::Error,
    message::{Attempt, MessageId, Name},
    transport::{
        ConsumerStats, ListedMessage, MessagePage, MessageQuery, MessageState, MessageStore,
        Messages, PAGE_BYTES, ParkedKey, Settings, StoreFuture, StreamPage, codec, format_position,
        invalid_position,
    },
};

/// The maximum number of registered streams on a page.
const MAX_STREAMS: usize = 100;

impl Memory {
    /// Returns read-only access to the messages of the stream, as this handle's group sees them.
    pub fn messages(&self) -> Messages {
        Messages::new(MemoryMessages {
            broker: self.broker.clone(),
            settings: self.settings.clone(),
        })
    }

    /// Lists the streams of this handle, page by page: its stream, the streams of its set, the
    /// partitions of its stream, or the streams in the registry that it serves. Start without a
    /// position, and continue with [`StreamPage::next`].
    ///
    /// # Errors
    /// If the position is invalid.
    pub async fn list_streams(&self, after: Option<&str>) -> Result<StreamPage, Error> {
        let registry = match StreamPage::of_handle(&self.settings) {
            Ok(page) => return Ok(page),
            Err(registry) => registry,
        };
        let from = after.map_or(Ok(0), |after| after.parse::<usize>());
        let from = from.map_err(|_| invalid_position())?;
        let mut streams = self.broker.registries.after(registry, from);
        let next = (streams.len() > MAX_STREAMS).then(|| (from + MAX_STREAMS).to_string());
        streams.truncate(MAX_STREAMS);
        Ok(StreamPage::new(streams, next))
    }

    /// Returns the groups of the stream, sorted by name; `None` if the stream does not exist.
    ///
    /// # Errors
    /// If the handle has a set of streams that is not a partitioned stream.
    pub async fn groups(&self) -> Result<Option<Vec<Name>>, Error> {
        let (_, parts) = self.settings.stream_and_parts()?;
        let streams = self.broker.streams();
        let found: Vec<_> = parts.iter().filter_map(|part| streams.get(part)).collect();
        if found.is_empty() {
            return Ok(None);
        }
        let groups = found
            .iter()
            .flat_map(|stream| stream.groups.keys().cloned());
        let mut groups: Vec<_> = groups.collect();
        groups.sort();
        groups.dedup();
        Ok(Some(groups))
    }

    /// Returns the consumers of the group, sorted by name; `None` if the stream or the group does
    /// not exist. Their idle times are always zero, because their leases need no renewal.
    ///
    /// # Errors
    /// If the handle has a set of streams that is not a partitioned stream.
    pub async fn consumers(&self) -> Result<Option<Vec<ConsumerStats>>, Error> {
        let (_, parts) = self.settings.stream_and_parts()?;
        let mut found: Option<Vec<ConsumerStats>> = None;
        for part in parts {
            let settings = self.settings.of_stream(part);
            let of_part = (self.broker).with_group(&settings, |group, _| group.consumers());
            let Some(of_part) = of_part else { continue };
            let found = found.get_or_insert_default();
            for (consumer, pending) in of_part {
                let (consumer, pending) = (name_of(consumer), pending as u64);
                match found.iter_mut().find(|known| known.consumer == consumer) {
                    Some(known) => known.pending += pending,
                    None => found.push(ConsumerStats {
                        consumer,
                        pending,
                        ..ConsumerStats::default()
                    }),
                }
            }
        }
        if let Some(found) = &mut found {
            found.sort_by(|a, b| a.consumer.cmp(&b.consumer));
        }
        Ok(found)
    }
}

/// The messages of a handle's group.
struct MemoryMessages {
    broker: Broker,
    settings: Settings,
}

/// Fills a page.
struct PageBuilder {
    page: MessagePage,
    /// The number of messages to skip, because earlier pages have listed them.
    skip: usize,
    /// The number of messages on this page and earlier pages.
    listed: usize,
    max: usize,
    bytes_left: usize,
}

impl PageBuilder {
    /// Adds a message. Returns `false` if the page is full.
    fn add(&mut self, fields: &[(Bytes, Bytes)], make: impl FnOnce() -> ListedMessage) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return true;
        }
        if self.page.messages.len() == self.max || self.bytes_left == 0 {
            self.page.next = Some(format_position(false, &self.listed.to_string()));
            return false;
        }
        let size = fields
            .iter()
            .map(|(field, value)| field.len() + value.len());
        self.bytes_left = self.bytes_left.saturating_sub(size.sum());
        self.listed += 1;
        self.page.messages.push(make());
        true
    }
}

impl MemoryMessages {
    fn fill(&self, query: &MessageQuery) -> Result<MessagePage, Error> {
        let stream = self.settings.one_stream()?.clone();
        let skip = match query.list_and_position()? {
            (false, "") => 0,
            (false, position) => position.parse().map_err(|_| invalid_position())?,
            (true, _) => return Err(invalid_position()),
        };
        let mut builder = PageBuilder {
            page: MessagePage::default(),
            skip,
            listed: skip,
            max: query.max.max(1),
            bytes_left: PAGE_BYTES,
        };
        let (broker, clock) = (&self.broker, &self.broker.context.clock);
        let mut streams = broker.streams();
        let Some(contents) = streams.get_mut(&stream) else {
            return Ok(builder.page);
        };
        contents.promote(&broker.context, &stream);
        let group = contents.groups.get(&self.settings.group);
        let add = |builder: &mut PageBuilder, found: GroupMessage<'_>| {
            builder.add(&found.entry.fields, || to_listed(&found, clock))
        };
        match (query.state, group) {
            (MessageState::Delayed, group) => {
                let again = group.into_iter().flat_map(|group| group.delayed_messages());
                let mut has_room = true;
                for found in again {
                    has_room = has_room && add(&mut builder, found);
                }
                for (at, id, fields) in contents.delayed.iter() {
                    has_room = has_room
                        && builder.add(fields, || {
                            let mut listed = decode_listed(id.as_str(), id.clone(), fields);
                            listed.due = Some(system_time_of(at, clock));
                            listed
                        });
                }
            }
            (MessageState::Running, Some(group)) => {
                let mut running = group.running_messages().into_iter();
                let _ = running.all(|found| add(&mut builder, found));
            }
            (MessageState::Waiting, Some(group)) => {
                let mut waiting = group.waiting_messages(&contents.log);
                let _ = waiting.all(|found| add(&mut builder, found));
            }
            (_, None) => {}
        }
        Ok(builder.page)
    }
}

fn decode_listed(entry: &str, id: MessageId, fields: &[(Bytes, Bytes)]) -> ListedMessage {
    let content = codec::decode(fields.to_vec()).map(|decoded| {
        let mut message = decoded.message;
        message.parts_mut().id = Some(id.clone());
        message
    });
    ListedMessage::new(entry, id, content)
}

fn to_listed(found: &GroupMessage<'_>, clock: &BrokerClock) -> ListedMessage {
    let id = found.entry.message_id();
    let mut listed = decode_listed(&found.entry.id.to_string(), id, &found.entry.fields);
    if let Ok(message) = &mut listed.content {
        let accepted = Duration::from_millis(found.entry.id.milliseconds);
        message.parts_mut().accepted_at = SystemTime::UNIX_EPOCH.checked_add(accepted);
    }
    listed.on_stream = found.on_stream;
    listed.attempt = Attempt(found.attempt);
    listed.consumer = found.consumer.map(name_of);
    listed.due = found.due.map(|at| system_time_of(at, clock));
    listed
}

fn system_time_of(at: Instant, clock: &BrokerClock) -> SystemTime {
    clock.now() + at.saturating_duration_since(Instant::now())
}

impl MessageStore for MemoryMessages {
    fn list(&self, query: MessageQuery) -> StoreFuture<'_, MessagePage> {
        Box::pin(ready(self.fill(&query)))
    }

    fn parked(&self) -> StoreFuture<'_, Vec<ParkedKey>> {
        let parked = self.settings.one_stream().map(|_| {
            let parked =
                (self.broker).with_group(&self.settings, |group, _| group.limits.parked_keys());
            parked.unwrap_or_default()
        });
        Box::pin(ready(parked))
    }
}
