//! Lists the messages of a group, and the streams of a handle.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use redis::Cmd;

use super::{
    Redis, dead_letters,
    entry::{StreamEntryId, value_of},
    keys::{self, Keys},
    msgpack,
    pipeline::Resend,
    response::{Value, array, bytes, count, fields, fixed_array, integer, text, unexpected},
    scripts::{self, Script},
};
use crate::{
    error::Error,
    message::{Attempt, MessageId, Name},
    transport::{
        ListedMessage, MessagePage, MessageQuery, MessageState, MessageStore, Messages, PAGE_BYTES,
        ParkedKey, StoreFuture, StreamPage, codec, format_position, invalid_position,
    },
};

/// The maximum number of keys with parked messages in a list.
const MAX_PARKED: usize = 100;
/// The approximate maximum number of registered streams in a page.
const MAX_STREAMS: usize = 100;

impl Redis {
    /// Returns read-only access to the messages of the stream, as this handle's group sees them.
    pub fn messages(&self) -> Messages {
        Messages::new(RedisMessages(self.clone()))
    }

    /// Returns the key of the handle's stream on the server: its name in the namespace.
    ///
    /// # Errors
    /// If the handle has a set of streams, or a partitioned stream.
    pub fn stream_key(&self) -> Result<Name, Error> {
        Ok(self.options.namespace.apply(self.settings.one_stream()?))
    }

    /// Lists the streams of this handle, page by page: its only stream, the streams of its set, the
    /// partitions of its stream or, if it serves a registry, the streams in that registry. Start
    /// without a position, and continue with [`StreamPage::next`].
    ///
    /// Reads a registry with [`ZSCAN`](https://redis.io/docs/latest/commands/zscan/).
    ///
    /// # Errors
    /// If the server cannot be reached or refuses the command, or the position is invalid.
    pub async fn list_streams(&self, after: Option<&str>) -> Result<StreamPage, Error> {
        let registry = match StreamPage::of_handle(&self.settings) {
            Ok(page) => return Ok(page),
            Err(registry) => registry,
        };
        let cursor = after.unwrap_or("0");
        if cursor.is_empty() || !cursor.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(invalid_position());
        }
        let key = keys::registry(&self.options.namespace, registry);
        let mut cmd = redis::cmd("ZSCAN");
        cmd.arg(&key).arg(cursor).arg("COUNT").arg(MAX_STREAMS);
        let pipeline = self.shared.pipeline.for_key(&key);
        decode_streams(pipeline.command(cmd, Resend::Never).await?)
    }
}

/// Decodes a response to `ZSCAN`: the next cursor, and a flat list of members and scores.
pub(super) fn decode_streams(response: Value) -> Result<StreamPage, Error> {
    let [next, members] = fixed_array(response)?;
    let next = text(next)?;
    let names = fields(members)?.into_iter();
    let names = names.filter_map(|(name, _)| Name::from_utf8(&name).ok());
    let streams = names.filter(|name| name.fault().is_none()).collect();
    Ok(StreamPage::new(streams, (next != "0").then_some(next)))
}

/// The messages of the handle's group.
struct RedisMessages(Redis);

impl RedisMessages {
    fn keys(&self) -> Result<Keys, Error> {
        let stream = self.0.settings.one_stream()?;
        Keys::new(&self.0.options.namespace, stream, &self.0.settings.group)
    }

    async fn script(
        &self,
        keys: &Keys,
        script: &'static Script,
        names: &[&str],
        args: impl Fn(&mut Cmd),
    ) -> Result<Value, Error> {
        let pipeline = self.0.shared.pipeline.for_key(&keys.stream_key);
        pipeline.script(script, names, args, Resend::Never).await
    }

    /// Lists a page of messages: first those of the retry stream, then those of the primary stream.
    async fn list_messages(&self, query: MessageQuery) -> Result<MessagePage, Error> {
        let keys = self.keys()?;
        let (mut is_primary, mut after) = query.list_and_position()?;
        let mut page = MessagePage::default();
        let max = query.max.max(1);
        loop {
            let max_more = max - page.messages.len();
            let (found, next) = self
                .list_part(&keys, query.state, is_primary, after, max_more)
                .await?;
            page.messages.extend(found);
            page.next = match &next {
                Some(next) => Some(format_position(is_primary, next)),
                None if is_primary => None,
                None => Some(format_position(true, "")),
            };
            let is_full = page.messages.len() >= max;
            if is_full || next.is_some() || is_primary {
                return Ok(page);
            }
            // The page is not full, and the retry stream has no more messages.
            (is_primary, after) = (true, "");
        }
    }

    /// Lists messages of the primary stream, or of the retry stream if `is_primary` is `false`.
    /// Also returns the position of the next messages, if there are more.
    async fn list_part(
        &self,
        keys: &Keys,
        state: MessageState,
        is_primary: bool,
        after: &str,
        max: usize,
    ) -> Result<(Vec<ListedMessage>, Option<String>), Error> {
        let (stream, due, bodies) = match is_primary {
            true => (&*keys.stream_key, &keys.stream_due, &keys.stream_bodies),
            false => (&*keys.retry_key, &keys.due, &keys.bodies),
        };
        // Delayed messages are in a sorted set, and all others in a stream.
        if state == MessageState::Delayed {
            let (time, member) = after.split_once(' ').unwrap_or_default();
            let args = |cmd: &mut Cmd| {
                cmd.arg(time).arg(member).arg(max).arg(PAGE_BYTES);
            };
            let names = [&**due, bodies];
            let response = self.script(keys, &scripts::LIST_DUE, &names, args);
            return decode_delayed(response.await?, is_primary);
        }
        if !after.is_empty() && StreamEntryId::parse(after.as_bytes()).is_none() {
            return Err(invalid_position());
        }
        let args = |cmd: &mut Cmd| {
            cmd.arg(keys.group.as_str())
                .arg(after)
                .arg(max)
                .arg(PAGE_BYTES);
        };
        let names = [stream];
        match state {
            MessageState::Running => {
                let response = self.script(keys, &scripts::LIST_PENDING, &names, args);
                decode_running(response.await?, is_primary)
            }
            _ => {
                let response = self.script(keys, &scripts::LIST_UNREAD, &names, args);
                decode_waiting(response.await?, is_primary)
            }
        }
    }
}

impl MessageStore for RedisMessages {
    fn list(&self, query: MessageQuery) -> StoreFuture<'_, MessagePage> {
        Box::pin(self.list_messages(query))
    }

    fn parked(&self) -> StoreFuture<'_, Vec<ParkedKey>> {
        Box::pin(async move {
            let keys = self.keys()?;
            let args = |cmd: &mut Cmd| {
                cmd.arg(keys.group.as_str()).arg(MAX_PARKED);
            };
            let parking = keys.parking();
            let names = [&*parking];
            let response = self.script(&keys, &scripts::LIST_PARKED, &names, args);
            decode_parked(response.await?)
        })
    }
}

/// A part of a list, and the position of the next part if there is one.
type ListPart = (Vec<ListedMessage>, Option<String>);

/// Decodes unread entries.
pub(super) fn decode_waiting(response: Value, is_primary: bool) -> Result<ListPart, Error> {
    let (found, more) = dead_letters::decode_page(response)?;
    let messages = found
        .into_iter()
        .map(|(id, fields)| decode_message(&id, fields, is_primary));
    let messages: Vec<_> = messages.collect();
    let next = messages.last().filter(|_| more);
    let next = next.map(|last| last.entry.clone());
    Ok((messages, next))
}

/// Decodes pending entries.
pub(super) fn decode_running(response: Value, is_primary: bool) -> Result<ListPart, Error> {
    let [found, more] = fixed_array(response)?;
    let messages = array(found)?.into_iter().map(|found| {
        let [id, consumer, idle, deliveries, list] = fixed_array(found)?;
        let id = text(id)?;
        if StreamEntryId::parse(id.as_bytes()).is_none() {
            return Err(unexpected("the id of an entry", "another text"));
        }
        let mut message = decode_message(&id, fields(list)?, is_primary);
        // `attempt` is the number of the next delivery. `deliveries` includes the current one.
        let earlier = message.attempt.0.saturating_sub(1);
        let deliveries = u32::try_from(count(&deliveries)?).unwrap_or(u32::MAX);
        message.attempt = Attempt(earlier.saturating_add(deliveries));
        message.consumer = Some(String::from_utf8_lossy(&bytes(consumer)?).into_owned());
        message.idle = u64::try_from(integer(&idle)?)
            .ok()
            .map(Duration::from_millis);
        Ok(message)
    });
    let messages = messages.collect::<Result<Vec<_>, _>>()?;
    let is_over = count(&more)? == 0;
    let next = messages.last().filter(|_| !is_over);
    let next = next.map(|last| last.entry.clone());
    Ok((messages, next))
}

/// Decodes delayed messages.
pub(super) fn decode_delayed(response: Value, is_primary: bool) -> Result<ListPart, Error> {
    let [found, more] = fixed_array(response)?;
    let (mut messages, mut next) = (Vec::new(), None);
    for found in array(found)? {
        let [member, time, body] = fixed_array(found)?;
        let (member, time) = (text(member)?, text(time)?);
        let milliseconds = time.parse::<f64>();
        let milliseconds = milliseconds.map_err(|_| unexpected("a time", "another text"))?;
        let due = Duration::from_millis(milliseconds.max(0.0) as u64);
        let mut message = decode_message(
            &member,
            msgpack::unpack(&bytes(body)?).unwrap_or_default(),
            is_primary,
        );
        message.due = UNIX_EPOCH.checked_add(due);
        next = Some(format!("{time} {member}"));
        messages.push(message);
    }
    let is_over = count(&more)? == 0;
    Ok((messages, next.filter(|_| !is_over)))
}

/// Decodes the keys with parked messages.
pub(super) fn decode_parked(response: Value) -> Result<Vec<ParkedKey>, Error> {
    let keys = array(response)?.into_iter().map(|found| {
        let [key, parked, taken, permits] = fixed_array(found)?;
        let permits = u64::try_from(integer(&permits)?).ok();
        let key = text(key)?;
        Ok(ParkedKey::new(
            &key,
            count(&parked)?,
            count(&taken)?,
            permits,
        ))
    });
    keys.collect()
}

/// Decodes a message. Its attempt is the number of its next delivery.
fn decode_message(entry: &str, fields: Vec<(Bytes, Bytes)>, is_primary: bool) -> ListedMessage {
    // The transport writes packed and internal fields to the retry stream. On the primary stream,
    // fields with the same names come from a sender, and are not decoded.
    let fields = match is_primary {
        true => fields,
        false => msgpack::with_unpacked_fields(fields),
    };
    let origin = value_of(&fields, codec::ORIGIN).filter(|_| !is_primary);
    let origin = origin.and_then(|origin| String::from_utf8(origin.to_vec()).ok());
    let attempts = value_of(&fields, codec::ATTEMPTS).filter(|_| !is_primary);
    let attempts = attempts.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    let given_id = value_of(&fields, codec::RECEIPT_ID).cloned();
    let original_entry = origin.as_deref().unwrap_or(entry);
    let accepted_at = StreamEntryId::parse(original_entry.as_bytes())
        .and_then(|id| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(id.milliseconds)));
    let id = given_id
        .and_then(codec::given_id)
        .unwrap_or_else(|| MessageId::from(original_entry));
    let content = codec::decode(fields).map(|decoded| {
        let mut message = decoded.message;
        let parts = message.parts_mut();
        parts.id = Some(id.clone());
        parts.accepted_at = accepted_at;
        message
    });
    let mut listed = ListedMessage::new(entry, id, content);
    listed.on_stream = is_primary;
    listed.attempt = Attempt(u32::saturating_add(attempts.unwrap_or(0), 1));
    listed
}
