//! Encodes messages as the fields of an entry, and decodes them.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;

use super::{
    ATTEMPT_TIMEOUT, ATTEMPTS, IDEMPOTENCY_KEY, MAX_ATTEMPTS, PARTITION_KEY, TIME_TO_LIVE, excerpt,
    header,
};
use crate::{
    message::{
        CorrelationId, Due, IdempotencyKey, Kind, Message, MessageId, Name, PartitionKey, Parts,
        ReplyMode,
    },
    transport::Undecodable,
};

/// Calls `put` with each field of a message: `type`, `name`, `payload`, the time to live, the
/// idempotency key, the partition key, the limits of attempts, then the headers. A message with a
/// deadline has a time to live, which starts when the message is due. The transport adds the reply
/// channel of a request.
pub fn encode(message: &Message, mut put: impl FnMut(&[u8], &[u8])) {
    let parts = message.parts();
    put(b"type", parts.kind.as_str().as_bytes());
    put(b"name", parts.name.as_bytes());
    put(b"payload", message.payload());
    if let Some(deadline) = parts.deadline {
        // Zero would mean no deadline, so a deadline that has passed is encoded as 1.
        let wait = parts.due.map(Due::wait).unwrap_or_default();
        let life = deadline.remaining().saturating_sub(wait).as_millis();
        let life = life.clamp(1, u64::MAX.into());
        put(TIME_TO_LIVE.as_bytes(), life.to_string().as_bytes());
    }
    if let Some(key) = &parts.idempotency_key {
        put(IDEMPOTENCY_KEY.as_bytes(), key.as_bytes());
    }
    if let Some(key) = &parts.partition_key {
        put(PARTITION_KEY.as_bytes(), key.as_bytes());
    }
    if let Some(max) = parts.max_attempts {
        put(MAX_ATTEMPTS.as_bytes(), max.to_string().as_bytes());
    }
    if let Some(timeout) = parts.attempt_timeout {
        let millis = timeout.as_millis().clamp(1, u64::MAX.into());
        put(ATTEMPT_TIMEOUT.as_bytes(), millis.to_string().as_bytes());
    }
    let mut field = Vec::new();
    for (name, value) in &parts.headers {
        field.clear();
        field.extend_from_slice(b"h:");
        field.extend_from_slice(name.as_str().as_bytes());
        put(&field, value.as_bytes());
    }
}

/// A decoded entry.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Decoded {
    /// The message, without its id, attempt and deadline, which depend on the stream of the entry.
    pub message: Message,
    /// The channel to which the reply is published.
    pub reply_to: Option<Bytes>,
    /// The correlation id of a request.
    pub correlation_id: Option<Bytes>,
    /// The client that waits for a reliable reply.
    pub client: Option<Bytes>,
    /// The time to live.
    pub time_to_live: Option<Duration>,
    /// The id of the message's first entry. Trust it only in a stream that only the transport
    /// writes.
    pub origin: Option<Bytes>,
    /// The number of attempts so far. Trust it only in a stream that only the transport writes.
    pub attempts: Option<u32>,
    /// The UUID in the sender's receipt. `None` if the receipt has the entry's id.
    pub id: Option<MessageId>,
    /// The group that records the status of the task.
    pub recording_group: Option<Bytes>,
}

/// Decodes the fields of an entry.
///
/// # Errors
/// Returns the raw fields and a reason:
/// - if `type`, `name` or `payload` is missing, or a known field is repeated;
/// - if the type or a number is malformed;
/// - if the name is empty, longer than [`Name::MAX_LEN`], not UTF-8, or has a control character;
/// - if HTTP does not allow a header;
/// - if a request has no reply channel or no correlation id.
pub fn decode(mut fields: Vec<(Bytes, Bytes)>) -> Result<Decoded, Undecodable> {
    match ParsedEntry::parse(&fields) {
        Ok(entry) => Ok(entry.into_decoded(&mut fields)),
        Err(reason) => Err(Undecodable {
            reason,
            fields,
            id: None,
            stream: None,
        }),
    }
}

/// A valid entry. It stores the indices of fields and not their values, because a refused entry is
/// returned with all its raw fields.
struct ParsedEntry {
    kind: Kind,
    name: Name,
    payload: usize,
    headers: HeaderMap,
    reply_to: Option<usize>,
    correlation_id: Option<usize>,
    client: Option<usize>,
    origin: Option<usize>,
    time_to_live: Option<Duration>,
    attempts: Option<u32>,
    id: Option<usize>,
    record: Option<usize>,
    idempotency_key: Option<usize>,
    partition_key: Option<usize>,
    max_attempts: Option<u32>,
    attempt_timeout: Option<Duration>,
}

/// The indices of the fields that an entry may have once.
#[derive(Default)]
struct FieldIndices {
    kind: Option<usize>,
    name: Option<usize>,
    payload: Option<usize>,
    reply_to: Option<usize>,
    correlation_id: Option<usize>,
    origin: Option<usize>,
    attempts: Option<usize>,
    time_to_live: Option<usize>,
    client: Option<usize>,
    id: Option<usize>,
    record: Option<usize>,
    idempotency_key: Option<usize>,
    partition_key: Option<usize>,
    max_attempts: Option<usize>,
    attempt_timeout: Option<usize>,
}

impl ParsedEntry {
    fn parse(fields: &[(Bytes, Bytes)]) -> Result<Self, String> {
        let mut indices = FieldIndices::default();
        let mut headers = HeaderMap::new();
        for (index, (field, value)) in fields.iter().enumerate() {
            let field_index = match &field[..] {
                b"type" => &mut indices.kind,
                b"name" => &mut indices.name,
                b"payload" => &mut indices.payload,
                b"reply_to" => &mut indices.reply_to,
                b"correlation_id" => &mut indices.correlation_id,
                b"~o" => &mut indices.origin,
                b"~a" => &mut indices.attempts,
                b"~i" => &mut indices.id,
                b"~j" => &mut indices.record,
                b"~k" => &mut indices.idempotency_key,
                b"~n" => &mut indices.max_attempts,
                b"~l" => &mut indices.attempt_timeout,
                b"~p" => &mut indices.partition_key,
                b"~t" => &mut indices.time_to_live,
                b"~c" => &mut indices.client,
                [b'h', b':', name @ ..] => {
                    header::add(&mut headers, name, value)?;
                    continue;
                }
                _ => continue,
            };
            if field_index.replace(index).is_some() {
                let field = excerpt(field);
                return Err(format!("the field {field} occurs twice"));
            }
        }
        Self::check(fields, indices, headers)
    }

    fn check(
        fields: &[(Bytes, Bytes)],
        indices: FieldIndices,
        headers: HeaderMap,
    ) -> Result<Self, String> {
        let value = |index: Option<usize>| index.map(|index| &fields[index].1);
        let kind = match value(indices.kind).map(|kind| &kind[..]) {
            Some(b"task") => Kind::Task,
            Some(b"rpc") => Kind::Rpc,
            Some(b"event") => Kind::Event,
            Some(other) => return Err(format!("unknown `type`: {}", excerpt(other))),
            None => return Err("the field `type` is missing".into()),
        };
        let name = value(indices.name).ok_or("the field `name` is missing")?;
        if name.len() > Name::MAX_LEN {
            // The length is checked before the name is copied, because the name may have megabytes.
            return Err(format!(
                "the `name` has {} bytes, more than {}: {}",
                name.len(),
                Name::MAX_LEN,
                excerpt(name)
            ));
        }
        let name = match std::str::from_utf8(name) {
            Ok("") => return Err("the `name` is empty".into()),
            Ok(text) => Name::from(text),
            Err(_) => return Err(format!("the `name` is not UTF-8: {}", excerpt(name))),
        };
        if let Some(fault) = name.fault() {
            return Err(format!("{fault}: {}", excerpt(name.as_bytes())));
        }
        let payload = indices.payload.ok_or("the field `payload` is missing")?;
        if kind == Kind::Rpc {
            if value(indices.reply_to).is_none_or(Bytes::is_empty) {
                return Err("an RPC request without `reply_to`".into());
            }
            if indices.correlation_id.is_none() {
                return Err("an RPC request without `correlation_id`".into());
            }
        }
        Ok(Self {
            kind,
            name,
            payload,
            headers,
            reply_to: indices.reply_to,
            correlation_id: indices.correlation_id,
            client: indices.client,
            origin: indices.origin,
            time_to_live: parse_number(value(indices.time_to_live), TIME_TO_LIVE)?
                .map(Duration::from_millis),
            attempts: parse_number(value(indices.attempts), ATTEMPTS)?,
            id: indices.id,
            record: indices.record,
            idempotency_key: indices.idempotency_key,
            partition_key: indices.partition_key,
            // Zero counts as one, because at least one attempt has started when the entry is read.
            max_attempts: parse_number(value(indices.max_attempts), MAX_ATTEMPTS)?
                .map(|max: u32| max.max(1)),
            attempt_timeout: parse_number(value(indices.attempt_timeout), ATTEMPT_TIMEOUT)?
                .map(Duration::from_millis),
        })
    }

    fn into_decoded(self, fields: &mut [(Bytes, Bytes)]) -> Decoded {
        let mut value = |index: usize| std::mem::take(&mut fields[index].1);
        let mut parts = Parts::new(self.kind, self.name);
        parts.headers = self.headers;
        if self.client.is_none() {
            parts.reply_mode = ReplyMode::Fast;
        }
        let key = self.idempotency_key.map(&mut value);
        parts.idempotency_key = key.and_then(|key| IdempotencyKey::from_utf8(&key).ok());
        let key = self.partition_key.map(&mut value);
        parts.partition_key = key.and_then(|key| PartitionKey::from_utf8(&key).ok());
        parts.max_attempts = self.max_attempts;
        parts.attempt_timeout = self.attempt_timeout;
        let correlation_id = self.correlation_id.map(&mut value);
        if parts.kind == Kind::Rpc {
            let id = correlation_id.as_deref();
            parts.correlation_id = id.and_then(CorrelationId::from_utf8);
        }
        Decoded {
            message: Message::from_parts(parts, value(self.payload)),
            reply_to: self.reply_to.map(&mut value),
            correlation_id,
            client: self.client.map(&mut value),
            origin: self.origin.map(&mut value),
            time_to_live: self.time_to_live,
            attempts: self.attempts,
            id: self.id.map(&mut value).and_then(given_id),
            recording_group: self.record.map(&mut value),
        }
    }
}

/// Parses the field [`RECEIPT_ID`](super::RECEIPT_ID). Senders choose this value. Only a UUID is
/// accepted, so that no sender can use the id of another entry.
pub(crate) fn given_id(id: Bytes) -> Option<MessageId> {
    uuid::Uuid::try_parse_ascii(&id).ok()?;
    MessageId::from_utf8(&id).ok()
}

fn parse_number<T: std::str::FromStr>(
    value: Option<&Bytes>,
    field: &str,
) -> Result<Option<T>, String> {
    let Some(value) = value else { return Ok(None) };
    match std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
    {
        Some(number) => Ok(Some(number)),
        None => Err(format!(
            "the field `{field}` is not a number: {}",
            excerpt(value)
        )),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn fields(list: &[(&str, &[u8])]) -> Vec<(Bytes, Bytes)> {
        list.iter()
            .map(|(field, value)| (field.as_bytes().to_vec().into(), value.to_vec().into()))
            .collect()
    }

    fn reason(list: &[(&str, &[u8])]) -> String {
        let raw = fields(list);
        let error = decode(raw.clone()).expect_err("it should not be a message");
        assert_eq!(error.fields, raw, "the raw fields are kept");
        error.reason
    }

    #[test]
    fn a_message_with_repeated_and_binary_headers_is_decoded_as_it_was_encoded() {
        let mut message = Message::task("orders.create", &b"\x00\xff"[..]);
        let headers = message.headers_mut();
        headers.append("x-a", HeaderValue::from_static("1"));
        headers.append("x-a", HeaderValue::from_bytes(b"\xfe").unwrap());
        let mut raw = Vec::new();
        encode(&message, |field, value| {
            raw.push((Bytes::copy_from_slice(field), Bytes::copy_from_slice(value)));
        });
        raw.reverse();
        raw.push(("unknown".into(), "ignored".into()));
        let decoded = decode(raw).unwrap().message;
        assert_eq!(decoded.payload(), message.payload());
        let values: Vec<_> = decoded
            .headers()
            .get_all("x-a")
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        assert_eq!(values, [&b"\xfe"[..], b"1"]);
    }

    #[test]
    fn a_deadline_at_the_end_of_time_can_be_decoded() {
        let mut message = Message::task("a", "");
        let end = Duration::from_secs(i64::MAX as u64 - (1 << 40));
        message.parts_mut().deadline = Some(crate::Deadline::after(end));
        let mut raw = Vec::new();
        encode(&message, |field, value| {
            raw.push((Bytes::copy_from_slice(field), Bytes::copy_from_slice(value)));
        });
        let life = decode(raw).expect("it is a message").time_to_live;
        assert!(life > Some(Duration::from_secs(3_000_000_000)), "{life:?}");
    }

    #[test]
    fn a_request_has_the_correlation_id_of_its_reply() {
        let request = |id: &[u8]| {
            let list: [(&str, &[u8]); 5] = [
                ("type", b"rpc"),
                ("name", b"a"),
                ("payload", b""),
                ("reply_to", b"reply:1"),
                ("correlation_id", id),
            ];
            let decoded = decode(fields(&list)).expect("it is a message");
            assert_eq!(decoded.correlation_id.as_deref(), Some(id));
            let shown = decoded.message.parts().correlation_id.clone();
            shown.map(|id| id.to_string())
        };
        assert_eq!(request(b"vm-1").as_deref(), Some("vm-1"));
        // An id that is not UTF-8 is used for the reply, and not shown.
        assert_eq!(request(b"\xff"), None);
    }

    #[test]
    fn a_malformed_entry_is_refused_with_the_reason() {
        let base: [(&str, &[u8]); 3] = [("type", b"task"), ("name", b"a"), ("payload", b"")];
        assert!(decode(fields(&base)).is_ok());
        for (field, _) in base {
            let without: Vec<_> = base.iter().copied().filter(|(f, _)| *f != field).collect();
            assert_eq!(reason(&without), format!("the field `{field}` is missing"));
            let twice: Vec<_> = base.iter().copied().chain([(field, &b"x"[..])]).collect();
            assert_eq!(reason(&twice), format!("the field `{field}` occurs twice"));
        }
        let reason_with = |field: &'static str, value: &'static [u8]| {
            let list: Vec<_> = base
                .iter()
                .map(|(f, v)| {
                    if *f == field {
                        (field, value)
                    } else {
                        (*f, *v)
                    }
                })
                .collect();
            reason(&list)
        };
        assert_eq!(
            reason_with("type", b"job\xff"),
            r"unknown `type`: `job\xff`"
        );
        assert_eq!(
            reason_with("name", b"\xff"),
            r"the `name` is not UTF-8: `\xff`"
        );
        assert_eq!(reason_with("name", b""), "the `name` is empty");
        assert_eq!(
            reason_with("name", b"a\n\x1b[2J"),
            r"the name has a control character: `a\n\x1b[2J`"
        );
        assert_eq!(
            reason_with("type", b"rpc"),
            "an RPC request without `reply_to`"
        );
        let long = reason(&[
            ("type", b"task"),
            ("name", &[b'n'; 1 << 20]),
            ("payload", b""),
        ]);
        let start = "the `name` has 1048576 bytes, more than 1024: `nnn";
        assert!(long.starts_with(start) && long.len() < 200, "{long}");
        let reason_with_added = |field: &'static str, value: &'static [u8]| {
            reason(
                &base
                    .iter()
                    .copied()
                    .chain([(field, value)])
                    .collect::<Vec<_>>(),
            )
        };
        assert!(
            reason_with_added("h:bad name", b"x")
                .starts_with("a header name that HTTP does not allow")
        );
        assert!(reason_with_added("h:x", b"a\nb").starts_with("a value that HTTP does not allow"));
        assert!(reason_with_added("~t", b"soon").starts_with("the field `~t` is not a number"));
    }
}
