//! Decodes entries of streams.

use std::fmt;

use bytes::Bytes;
use redis::{RedisWrite, ToRedisArgs, ToSingleRedisArg};

use crate::{
    error::Error,
    transport::redis::response::{
        Value, array, bytes, fields, fixed_array, integer, unexpected, wrong_length,
    },
};

/// One of the two Redis streams of a served stream. The number is the index of the served stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum WhichStream {
    /// The group's retry stream, which has the messages to redeliver.
    Retry(u32),
    /// The primary stream, which senders add to and all groups read.
    Primary(u32),
}

impl WhichStream {
    /// Returns both Redis streams of a served stream, the retry stream first.
    pub(super) fn both(index: u32) -> [WhichStream; 2] {
        [WhichStream::Retry(index), WhichStream::Primary(index)]
    }

    /// Returns the index of the served stream.
    pub(super) fn index(self) -> u32 {
        let (WhichStream::Retry(index) | WhichStream::Primary(index)) = self;
        index
    }

    pub(super) fn is_retry(self) -> bool {
        matches!(self, WhichStream::Retry(_))
    }

    /// Returns the flag that scripts take for this stream: `1` for the retry stream, or `0`.
    pub(super) fn flag(self) -> &'static str {
        if self.is_retry() { "1" } else { "0" }
    }
}

/// An entry's id, as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::transport::redis) struct StreamEntryId {
    pub(in crate::transport::redis) milliseconds: u64,
    pub(super) sequence: u64,
}

impl StreamEntryId {
    /// The lowest id. No entry has it.
    pub(in crate::transport::redis) const ZERO: Self = Self {
        milliseconds: 0,
        sequence: 0,
    };

    pub(in crate::transport::redis) fn parse(text: &[u8]) -> Option<Self> {
        let (milliseconds, sequence) = std::str::from_utf8(text).ok()?.split_once('-')?;
        // Rust's parser accepts a `+`, and Redis does not.
        let number = |text: &str| match text.starts_with('+') {
            true => None,
            false => text.parse().ok(),
        };
        Some(Self {
            milliseconds: number(milliseconds)?,
            sequence: number(sequence)?,
        })
    }

    /// Returns the id just before this one. Returns the lowest id unchanged.
    pub(in crate::transport::redis) fn before(self) -> Self {
        match (self.milliseconds, self.sequence) {
            (0, 0) => self,
            (milliseconds, 0) => Self {
                milliseconds: milliseconds - 1,
                sequence: u64::MAX,
            },
            (milliseconds, sequence) => Self {
                milliseconds,
                sequence: sequence - 1,
            },
        }
    }
}

impl fmt::Display for StreamEntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.milliseconds, self.sequence)
    }
}

impl ToRedisArgs for StreamEntryId {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        out.write_arg_fmt(self);
    }
}

impl ToSingleRedisArg for StreamEntryId {}

/// An entry that is pending for this consumer.
#[derive(Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) which: WhichStream,
    pub(super) id: StreamEntryId,
    /// The id as the server sent it.
    pub(super) text: Bytes,
    /// The number of deliveries of this entry, including this one.
    pub(super) deliveries: u32,
    pub(super) fields: Vec<(Bytes, Bytes)>,
}

impl Entry {
    /// Returns the size of the entry's fields, in bytes.
    pub(super) fn size(&self) -> usize {
        let fields = self.fields.iter();
        fields.map(|(field, value)| field.len() + value.len()).sum()
    }
}

/// Decodes the entries in a response to `XREADGROUP`. `find` finds a stream by its name.
pub(super) fn decode(
    response: Value,
    find: impl Fn(&[u8]) -> Option<WhichStream>,
) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    for_each_entry(response, |stream, id, fields| {
        let which = find(stream).ok_or_else(|| unexpected("a stream that was read", "another"))?;
        entries.push(decode_entry(which, id, 1, fields)?);
        Ok(())
    })?;
    Ok(entries)
}

/// Calls `take` for each entry in a response to a read, with the stream, the entry's id, and the
/// list of its fields. The response is `[[stream, [[id, [field, value, …]], …]], …]`. Under RESP3,
/// the outer list is a map. A read without entries returns nil.
pub(in crate::transport::redis) fn for_each_entry(
    response: Value,
    mut take: impl FnMut(&[u8], Bytes, Value) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut take_all = |name: Value, entries: Value| {
        let name = bytes(name)?;
        for entry in array(entries)? {
            let [id, fields] = fixed_array(entry)?;
            take(&name, bytes(id)?, fields)?;
        }
        Ok(())
    };
    match response {
        Value::Nil => Ok(()),
        Value::Map(streams) => streams
            .into_iter()
            .try_for_each(|(name, entries)| take_all(name, entries)),
        streams => array(streams)?.into_iter().try_for_each(|pair| {
            let [name, entries] = fixed_array(pair)?;
            take_all(name, entries)
        }),
    }
}

/// Decodes the entries in a script's response: `[[id, deliveries, [field, value, …]], …]`.
pub(super) fn decode_claimed(list: Value, which: WhichStream) -> Result<Vec<Entry>, Error> {
    let claimed = array(list)?.into_iter().map(|item| {
        let [id, deliveries, list] = fixed_array(item)?;
        // The count includes this delivery. Another client may have set the count to zero.
        let deliveries = integer(&deliveries)?.clamp(1, u32::MAX.into());
        decode_entry(which, bytes(id)?, deliveries as u32, list)
    });
    claimed.collect()
}

fn decode_entry(
    which: WhichStream,
    text: Bytes,
    deliveries: u32,
    list: Value,
) -> Result<Entry, Error> {
    Ok(Entry {
        which,
        id: parse_id(&text)?,
        text,
        deliveries,
        fields: fields(list)?,
    })
}

/// Decodes the response to a renewal: the time on Redis's clock, and the ids that are no longer
/// pending for this consumer.
pub(super) fn decode_renewed(response: Value) -> Result<(i64, Vec<StreamEntryId>), Error> {
    let mut response = array(response)?.into_iter();
    let time = response.next().ok_or_else(|| wrong_length(1, 0))?;
    let ids = response.map(|id| parse_id(&bytes(id)?));
    Ok((integer(&time)?, ids.collect::<Result<_, _>>()?))
}

/// Decodes the ids in a response to an `XPENDING` of a range:
/// `[[id, consumer, idle, deliveries], …]`.
pub(super) fn decode_pending(list: Value) -> Result<Vec<StreamEntryId>, Error> {
    let pending = array(list)?.into_iter().map(|item| {
        let [id, _, _, _] = fixed_array(item)?;
        parse_id(&bytes(id)?)
    });
    pending.collect()
}

/// Decodes a list of ids.
pub(super) fn decode_ids(list: Value) -> Result<Vec<StreamEntryId>, Error> {
    let ids = array(list)?.into_iter();
    ids.map(|id| parse_id(&bytes(id)?)).collect()
}

fn parse_id(text: &[u8]) -> Result<StreamEntryId, Error> {
    StreamEntryId::parse(text).ok_or_else(|| unexpected("the id of an entry", "another text"))
}

/// Returns the value of a field of an entry.
pub(in crate::transport::redis) fn value_of<'a>(
    fields: &'a [(Bytes, Bytes)],
    name: &str,
) -> Option<&'a Bytes> {
    fields
        .iter()
        .find_map(|(field, value)| (field == name).then_some(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bulk(text: &str) -> Value {
        Value::Text(text.to_owned().into())
    }

    fn raw_entry() -> Value {
        Value::Array(vec![
            bulk("7-1"),
            Value::Array(vec![bulk("name"), bulk("a")]),
        ])
    }

    #[test]
    fn responses_in_both_protocols_read_the_same() {
        let list = Value::Array(vec![raw_entry()]);
        let resp2 = Value::Array(vec![Value::Array(vec![bulk("r"), list.clone()])]);
        let resp3 = Value::Map(vec![(bulk("r"), list)]);
        let which = |name: &[u8]| (name == b"r").then_some(WhichStream::Retry(0));
        let entries = decode(resp2.clone(), which).unwrap();
        assert_eq!(entries, decode(resp3, which).unwrap());
        assert_eq!(entries[0].which, WhichStream::Retry(0));
        assert_eq!(entries[0].id.to_string(), "7-1");
        assert_eq!(entries[0].fields, [("name".into(), "a".into())]);
        assert_eq!(decode(Value::Nil, which).unwrap(), []);
        decode(resp2, |_| None).expect_err("it was not asked for");
    }

    #[test]
    fn an_id_is_two_numbers() {
        assert_eq!(StreamEntryId::parse(b"12-3").unwrap().to_string(), "12-3");
        for text in ["", "12", "12-", "-3", "a-3", "12-3-4", "+1-2", "1-+2"] {
            assert_eq!(StreamEntryId::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn no_id_is_between_an_id_and_the_one_before_it() {
        for (id, before) in [
            ("7-2", "7-1"),
            ("7-0", "6-18446744073709551615"),
            ("0-1", "0-0"),
            ("0-0", "0-0"),
        ] {
            let id = StreamEntryId::parse(id.as_bytes()).unwrap();
            assert_eq!(id.before().to_string(), before);
        }
    }

    #[test]
    fn a_response_that_is_cut_off_is_an_error() {
        let stream = |entries: Vec<Value>| {
            let entries = Value::Array(entries);
            decode(
                Value::Array(vec![Value::Array(vec![bulk("s"), entries])]),
                |_| Some(WhichStream::Primary(0)),
            )
        };
        assert_eq!(stream(vec![raw_entry()]).unwrap().len(), 1);
        let fields = |fields| Value::Array(vec![bulk("7-1"), Value::Array(fields)]);
        for entry in [
            Value::Array(vec![]),
            Value::Array(vec![bulk("7-1")]),
            Value::Array(vec![bulk("7"), Value::Array(vec![])]),
            fields(vec![bulk("name")]),
            fields(vec![bulk("name"), bulk("a"), bulk("payload")]),
        ] {
            let error = stream(vec![raw_entry(), entry.clone()]).expect_err("it is cut off");
            assert!(error.is_decode(), "{entry:?}: {error}");
        }
        let without_entries = Value::Array(vec![Value::Array(vec![bulk("s")])]);
        assert!(decode(without_entries, |_| Some(WhichStream::Primary(0))).is_err());
    }

    #[test]
    fn a_delivery_counts_at_least_as_one() {
        for (deliveries, expected) in [(-1, 1), (0, 1), (3, 3), (i64::MAX, u32::MAX)] {
            let item = vec![bulk("7-1"), Value::Int(deliveries), Value::Array(vec![])];
            let list = Value::Array(vec![Value::Array(item)]);
            assert_eq!(
                decode_claimed(list, WhichStream::Primary(0)).unwrap()[0].deliveries,
                expected
            );
        }
    }

    proptest! {
        #[test]
        fn an_id_is_read_as_it_is_written(milliseconds: u64, sequence: u64) {
            let id = StreamEntryId { milliseconds, sequence };
            prop_assert_eq!(StreamEntryId::parse(id.to_string().as_bytes()), Some(id));
        }

        #[test]
        fn only_digits_are_read_as_an_id(text in "[-+0-9 a\u{661}]{0,24}") {
            let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            if StreamEntryId::parse(text.as_bytes()).is_some() {
                let (milliseconds, sequence) = text.split_once('-').expect("two numbers");
                prop_assert!(digits(milliseconds) && digits(sequence), "{}", text);
            }
        }

        #[test]
        fn entries_are_read_whole_whatever_their_fields(
            entries in prop::collection::vec(
                (any::<(u64, u64)>(), prop::collection::vec(any::<(Vec<u8>, Vec<u8>)>(), 0..8)),
                0..8,
            ),
        ) {
            let list = entries.iter().map(|((milliseconds, sequence), fields)| {
                let values = fields.iter().flat_map(|(field, value)| [field, value]);
                let values = values.map(|value| Value::Text(value.clone().into()));
                let id = bulk(&format!("{milliseconds}-{sequence}"));
                Value::Array(vec![id, Value::Array(values.collect())])
            });
            let streams = Value::Map(vec![(bulk("s"), Value::Array(list.collect()))]);
            let found = decode(streams, |_| Some(WhichStream::Primary(0))).unwrap();
            let found: Vec<_> = found
                .into_iter()
                .map(|entry| {
                    let fields = entry.fields.into_iter();
                    let fields = fields.map(|(field, value)| (field.to_vec(), value.to_vec()));
                    ((entry.id.milliseconds, entry.id.sequence), fields.collect::<Vec<_>>())
                })
                .collect();
            prop_assert_eq!(found, entries);
        }
    }
}
