//! Entries as the server hands them out.

use std::fmt;

use bytes::Bytes;
use redis::{RedisWrite, ToRedisArgs, ToSingleRedisArg, Value};

/// Which of a group's two streams an entry is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    /// The stream that is sent to, and that the other groups read too.
    Main,
    /// The group's own stream, of what is delivered again.
    Retry,
}

impl Lane {
    pub(super) const BOTH: [Lane; 2] = [Lane::Retry, Lane::Main];

    /// As the scripts are told.
    pub(super) fn flag(self) -> &'static str {
        match self {
            Lane::Main => "0",
            Lane::Retry => "1",
        }
    }
}

/// The id of an entry, without an allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::transport::redis) struct EntryId {
    pub(super) milliseconds: u64,
    pub(super) sequence: u64,
}

impl EntryId {
    pub(in crate::transport::redis) fn parse(text: &[u8]) -> Option<Self> {
        let (milliseconds, sequence) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(Self {
            milliseconds: milliseconds.parse().ok()?,
            sequence: sequence.parse().ok()?,
        })
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.milliseconds, self.sequence)
    }
}

impl ToRedisArgs for EntryId {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        out.write_arg_fmt(self);
    }
}

impl ToSingleRedisArg for EntryId {}

/// An entry that is pending for this worker.
#[derive(Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) lane: Lane,
    pub(super) id: EntryId,
    /// The id as it came.
    pub(super) text: Bytes,
    /// How often this entry was delivered, this time included.
    pub(super) deliveries: u32,
    pub(super) fields: Vec<(Bytes, Bytes)>,
}

/// The entries in the answer to `XREADGROUP`.
pub(super) fn read(answer: Value, retry: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (stream, list) in streams(answer) {
        let lane = match bytes(stream) {
            Some(name) if name == retry.as_bytes() => Lane::Retry,
            _ => Lane::Main,
        };
        entries.extend(list.filter_map(|(id, fields)| entry(lane, id, 1, fields)));
    }
    entries
}

/// Each stream with its entries, an id and a list of fields each, in the answer to a read of
/// streams: `[[stream, [[id, [field, value, …]], …]], …]`, or a map of the same under RESP3.
pub(in crate::transport::redis) fn streams(
    answer: Value,
) -> impl Iterator<Item = (Value, impl Iterator<Item = (Bytes, Value)>)> {
    let streams = match answer {
        Value::Map(streams) => streams,
        streams => array(streams).into_iter().filter_map(pair).collect(),
    };
    streams.into_iter().map(|(name, entries)| {
        let entries = array(entries).into_iter().filter_map(|entry| {
            let (id, fields) = pair(entry)?;
            Some((bytes(id)?, fields))
        });
        (name, entries)
    })
}

/// The first two of a list.
fn pair(list: Value) -> Option<(Value, Value)> {
    let mut list = array(list).into_iter();
    Some((list.next()?, list.next()?))
}

/// The entries in the answer of a script: `[[id, deliveries, [field, value, …]], …]`.
pub(super) fn claimed(list: Value, lane: Lane) -> impl Iterator<Item = Entry> {
    array(list).into_iter().filter_map(move |item| {
        let mut item = array(item).into_iter();
        let (id, deliveries, list) = (item.next()?, item.next()?, item.next()?);
        let deliveries = u32::try_from(integer(&deliveries)?).unwrap_or(u32::MAX);
        entry(lane, bytes(id)?, deliveries, list)
    })
}

fn entry(lane: Lane, text: Bytes, deliveries: u32, list: Value) -> Option<Entry> {
    Some(Entry {
        lane,
        id: EntryId::parse(&text)?,
        text,
        deliveries,
        fields: fields(list),
    })
}

/// A flat list of fields and values as pairs.
pub(in crate::transport::redis) fn fields(list: Value) -> Vec<(Bytes, Bytes)> {
    let list = array(list);
    let mut fields = Vec::with_capacity(list.len() / 2);
    let mut list = list.into_iter();
    while let (Some(field), Some(value)) = (list.next(), list.next()) {
        fields.push((
            bytes(field).unwrap_or_default(),
            bytes(value).unwrap_or_default(),
        ));
    }
    fields
}

pub(in crate::transport::redis) fn array(value: Value) -> Vec<Value> {
    match value {
        Value::Array(list) => list,
        _ => Vec::new(),
    }
}

pub(in crate::transport::redis) fn bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(bytes.into()),
        Value::SimpleString(text) => Some(text.into()),
        _ => None,
    }
}

pub(in crate::transport::redis) fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

/// The value of a field that stands in the entry.
pub(in crate::transport::redis) fn value_of<'a>(
    fields: &'a [(Bytes, Bytes)],
    name: &str,
) -> Option<&'a Bytes> {
    fields
        .iter()
        .find_map(|(field, value)| (field == name).then_some(value))
}

/// The field of an entry that a script wrote in which the values of many fields are one blob.
const BLOB: &str = "~f";

/// Puts the fields of a blob in its place. What cannot be read stays as it is.
pub(in crate::transport::redis) fn unpacked(
    mut fields: Vec<(Bytes, Bytes)>,
) -> Vec<(Bytes, Bytes)> {
    let Some(at) = fields.iter().position(|(field, _)| field == BLOB) else {
        return fields;
    };
    if let Some(inner) = unpack(&fields[at].1) {
        fields.remove(at);
        fields.extend(inner);
    }
    fields
}

/// Reads a MessagePack array of byte strings, as `cmsgpack.pack` of Redis's Lua writes it.
/// <https://github.com/msgpack/msgpack/blob/master/spec.md>
pub(in crate::transport::redis) fn unpack(blob: &Bytes) -> Option<Vec<(Bytes, Bytes)>> {
    let mut at = 0;
    let count = match number(blob, &mut at, 1)? {
        head @ 0x90..=0x9f => head & 0x0f,
        0xdc => number(blob, &mut at, 2)?,
        0xdd => number(blob, &mut at, 4)?,
        _ => return None,
    };
    let mut fields = Vec::new();
    for _ in 0..count / 2 {
        fields.push((string(blob, &mut at)?, string(blob, &mut at)?));
    }
    (at == blob.len() && count % 2 == 0).then_some(fields)
}

fn string(blob: &Bytes, at: &mut usize) -> Option<Bytes> {
    let length = match number(blob, at, 1)? {
        head @ 0xa0..=0xbf => head & 0x1f,
        0xc4 | 0xd9 => number(blob, at, 1)?,
        0xc5 | 0xda => number(blob, at, 2)?,
        0xc6 | 0xdb => number(blob, at, 4)?,
        _ => return None,
    };
    let end = at.checked_add(length).filter(|&end| end <= blob.len())?;
    let text = blob.slice(*at..end);
    *at = end;
    Some(text)
}

fn number(blob: &Bytes, at: &mut usize, size: usize) -> Option<usize> {
    let end = *at + size;
    let digits = blob.get(*at..end)?;
    *at = end;
    Some(
        digits
            .iter()
            .fold(0, |sum, &digit| sum << 8 | usize::from(digit)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn raw_entry() -> Value {
        Value::Array(vec![
            bulk("7-1"),
            Value::Array(vec![bulk("name"), bulk("a")]),
        ])
    }

    #[test]
    fn answers_in_both_protocols_read_the_same() {
        let list = Value::Array(vec![raw_entry()]);
        let old = Value::Array(vec![Value::Array(vec![bulk("r"), list.clone()])]);
        let new = Value::Map(vec![(bulk("r"), list)]);
        let entries = read(old, "r");
        assert_eq!(entries, read(new, "r"));
        assert_eq!(entries[0].lane, Lane::Retry);
        assert_eq!(entries[0].id.to_string(), "7-1");
        assert_eq!(entries[0].fields, [("name".into(), "a".into())]);
        assert_eq!(read(Value::Nil, "r"), []);
    }

    #[test]
    fn a_blob_gives_back_its_fields_and_a_broken_one_stays() {
        let long = "v".repeat(300);
        let mut blob = b"\x94\xa1a\xa0\xd9\x02bb\xda\x01\x2c".to_vec();
        blob.extend_from_slice(long.as_bytes());
        let blob = Bytes::from(blob);
        let fields = unpacked(vec![
            ("~o".into(), "1-1".into()),
            ("~f".into(), blob.clone()),
        ]);
        assert_eq!(
            fields,
            [
                (Bytes::from("~o"), Bytes::from("1-1")),
                ("a".into(), "".into()),
                ("bb".into(), long.into()),
            ]
        );
        for end in 0..blob.len() {
            let broken = vec![(Bytes::from("~f"), blob.slice(..end))];
            assert_eq!(unpacked(broken.clone()), broken);
        }
    }

    #[test]
    fn an_id_is_two_numbers() {
        assert_eq!(EntryId::parse(b"12-3").unwrap().to_string(), "12-3");
        for text in ["", "12", "12-", "-3", "a-3", "12-3-4"] {
            assert_eq!(EntryId::parse(text.as_bytes()), None, "{text}");
        }
    }
}
