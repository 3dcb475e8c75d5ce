//! Properties of messages as the fields of an entry.

use std::time::Duration;

use bytes::Bytes;
use campanile::{Deadline, Due, Kind, Message, transport::codec};
use http::{HeaderName, HeaderValue};
use proptest::{collection::vec, prelude::*, sample::Index};

use super::{any_bytes, any_headers, is_a_reason};

type Fields = Vec<(Bytes, Bytes)>;

/// The name of a field: one that the codec reads, a similar one, or any bytes.
fn any_field() -> impl Strategy<Value = Bytes> {
    let known = [
        "type",
        "name",
        "payload",
        "reply_to",
        "correlation_id",
        "~o",
        "~a",
        "~t",
        "~i",
        "~k",
        "~c",
        "h:traceparent",
        "h:",
        "h:not allowed",
        "~x",
        "",
    ];
    prop_oneof![
        4 => prop::sample::select(known.to_vec()).prop_map(Bytes::from),
        1 => any_bytes(12),
        1 => any_bytes(12).prop_map(|name| [b"h:", &name[..]].concat().into()),
    ]
}

fn any_value() -> impl Strategy<Value = Bytes> {
    let known = [
        "task",
        "rpc",
        "event",
        "orders.create",
        "5",
        "-5",
        "1.5",
        "99999999999999999999",
        "",
    ];
    prop_oneof![
        3 => prop::sample::select(known.to_vec()).prop_map(Bytes::from),
        1 => any_bytes(100),
        1 => "\\PC{0,12}".prop_map(Bytes::from),
    ]
}

fn any_fields(most: usize) -> impl Strategy<Value = Fields> {
    vec((any_field(), any_value()), 0..most)
}

fn any_message() -> impl Strategy<Value = Message> {
    let kind = prop::sample::select(vec![Kind::Task, Kind::Event, Kind::Rpc]);
    (kind, "\\PC{1,40}", any_bytes(200), any_headers()).prop_map(
        |(kind, name, payload, headers)| {
            let mut message = Message::new(kind, name, payload);
            *message.headers_mut() = headers;
            message
        },
    )
}

/// The fields of a message as it is sent.
fn encoded(message: &Message) -> Fields {
    let mut fields = Vec::new();
    codec::encode(message, |field, value| {
        fields.push((Bytes::copy_from_slice(field), Bytes::copy_from_slice(value)));
    });
    if message.kind() == Kind::Rpc {
        fields.push(("reply_to".into(), "reply:1".into()));
        fields.push(("correlation_id".into(), "1".into()));
    }
    fields
}

/// Checks that each entry is either read, or refused with a reason and all of its fields.
fn is_read_or_refused(fields: Fields) -> bool {
    match codec::decode(fields.clone()) {
        Ok(decoded) => !decoded.message.name().is_empty(),
        Err(refused) => is_a_reason(&refused.reason) && refused.fields == fields,
    }
}

proptest! {
    #[test]
    fn any_fields_are_a_message_or_come_back_as_they_were(fields in any_fields(24)) {
        prop_assert!(is_read_or_refused(fields));
    }

    #[test]
    fn a_message_is_read_as_it_was_sent_with_any_other_fields_in_the_entry(
        message in any_message(),
        unknown in vec(("[~a-gi-z][a-z]{6,9}x", any_bytes(20)), 0..6),
        places in vec(any::<Index>(), 30),
    ) {
        // Only repeated headers have an order.
        let mut fields = encoded(&message);
        let unknown = unknown.into_iter().map(|(field, value)| (Bytes::from(field), value));
        for (place, field) in places.iter().zip(unknown) {
            fields.insert(place.index(fields.len() + 1), field);
        }
        for place in places {
            let (from, to) = (place.index(fields.len()), place.index(fields.len() / 2 + 1));
            if !fields[from].0.starts_with(b"h:") {
                let field = fields.remove(from);
                fields.insert(to, field);
            }
        }
        let decoded = codec::decode(fields).expect("a message").message;
        prop_assert_eq!(decoded.kind(), message.kind());
        prop_assert_eq!(decoded.name(), message.name());
        prop_assert_eq!(decoded.payload(), message.payload());
        prop_assert_eq!(decoded.headers(), message.headers());
    }

    #[test]
    fn a_message_with_a_field_too_many_too_few_or_changed_is_read_or_refused(
        message in any_message(),
        place in any::<Index>(),
        other in (any_field(), any_value()),
    ) {
        let fields = encoded(&message);
        let place = place.index(fields.len());
        let mut changed = fields.clone();
        changed[place] = other.clone();
        prop_assert!(is_read_or_refused(changed));
        let mut longer = fields.clone();
        longer.insert(place, other);
        prop_assert!(is_read_or_refused(longer));
        let mut shorter = fields;
        shorter.remove(place);
        prop_assert!(is_read_or_refused(shorter));
    }

    #[test]
    fn a_header_that_http_does_not_allow_is_refused(
        name in vec(any::<u8>(), 0..300),
        value in vec(any::<u8>(), 0..300),
    ) {
        let allowed = HeaderName::from_bytes(&name).is_ok() && HeaderValue::from_bytes(&value).is_ok();
        let mut fields = encoded(&Message::task("a", ""));
        fields.push(([b"h:", &name[..]].concat().into(), value.into()));
        prop_assert_eq!(codec::decode(fields.clone()).is_ok(), allowed);
        prop_assert!(is_read_or_refused(fields));
    }

    #[test]
    fn a_time_to_live_is_what_is_left_of_the_deadline(life: Duration, delay: Duration) {
        let mut message = Message::task("a", "");
        message.parts_mut().deadline = Some(Deadline::after(life));
        message.parts_mut().due = Some(Due::After(delay));
        let read = codec::decode(encoded(&message)).expect("a message").time_to_live;
        let read = read.expect("the message has a deadline");
        prop_assert!(read >= Duration::from_millis(1), "zero would mean no time to live");
        prop_assert!(read <= life.saturating_sub(delay).max(Duration::from_millis(1)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn an_entry_of_thousands_of_fields_is_read_or_refused(
        fields in any_fields(5_000),
        headers in 0..40_000usize,
    ) {
        prop_assert!(is_read_or_refused(fields));
        let mut fields = encoded(&Message::task("a", ""));
        fields.extend((0..headers).map(|n| (format!("h:x-{n}").into(), Bytes::new())));
        let read = codec::decode(fields.clone());
        prop_assert_eq!(read.is_ok(), headers <= 24_576, "a header map holds 24,576 names");
        prop_assert!(is_read_or_refused(fields));
    }
}
