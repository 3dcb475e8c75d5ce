//! Properties of everything public that reads bytes from outside: whatever they are, there is no
//! panic; what we write is read as the same; what is refused says why, in a few words; and what
//! cannot be read keeps its fields.
//!
//! A case that fails is printed, made as small as it can be, and kept in `properties.proptest-regressions`
//! beside this file: it is tried first from then on.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use campanile::{
    Deadline, Due, Kind, Message, Reply, RpcCode, RpcError,
    transport::{codec, memory::Memory},
};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::{collection::vec, prelude::*, sample::Index};
use tower::ServiceExt;

type Fields = Vec<(Bytes, Bytes)>;

fn any_bytes(most: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..most).prop_map(Bytes::from)
}

/// The name of a field: one that means something, one that almost does, or any bytes.
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

/// Headers as HTTP allows them: any name, and values of any bytes but control characters.
fn any_headers() -> impl Strategy<Value = HeaderMap> {
    let value = prop_oneof![
        vec(prop_oneof![0x20..0x7fu8, 0x80..=0xffu8, Just(b'\t')], 0..24),
        "base64:[a-zA-Z0-9+/=]{0,8}".prop_map(String::into_bytes),
    ];
    vec(("[a-z0-9!#$%&'*+.^_`|~-]{1,12}", value), 0..8).prop_map(|headers| {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("an allowed name");
            map.append(
                name,
                HeaderValue::from_bytes(&value).expect("an allowed value"),
            );
        }
        map
    })
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

/// The fields that a message is sent as.
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

/// Whether a reason is one: short, whatever the input was, and it names what is wrong.
fn is_a_reason(reason: &str) -> bool {
    let names = ["`", "HTTP", "headers", "envelope", "base64"];
    !reason.is_empty() && reason.len() < 400 && names.iter().any(|name| reason.contains(name))
}

/// Whether entries are read, or refused as they were, with a reason.
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
    fn a_message_is_read_as_it_was_sent_whatever_else_is_in_the_entry(
        message in any_message(),
        unknown in vec(("[~a-gi-z][a-z]{6,9}x", any_bytes(20)), 0..6),
        places in vec(any::<Index>(), 30),
    ) {
        // Repeated headers keep their order, and nothing else has one.
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
        let read = read.expect("there is a deadline");
        prop_assert!(read >= Duration::from_millis(1), "zero would mean that there is none");
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
        prop_assert_eq!(read.is_ok(), headers <= 24_576, "what a map of headers holds");
        prop_assert!(is_read_or_refused(fields));
    }
}

fn any_answer() -> impl Strategy<Value = Result<Reply, RpcError>> {
    let codes = ["internal", "not_found", "quota", "", "ü\u{0}\""];
    let error = (prop::sample::select(codes.to_vec()), "(?s).{0,40}");
    let reply = (any_bytes(200), any_headers());
    prop_oneof![
        error.prop_map(|(code, text)| Err(RpcError::new(RpcCode::from(code), text))),
        reply.prop_map(|(payload, headers)| {
            let mut reply = Reply::new(payload);
            reply.headers = headers;
            Ok(reply)
        }),
    ]
}

/// JSON of any kind, an envelope's keys among it.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        "(?s).{0,12}".prop_map(Into::into),
        Just("YQ==".into()),
    ];
    leaf.prop_recursive(6, 40, 6, |inner| {
        let key = prop_oneof![
            prop::sample::select(vec!["correlation_id", "body", "error", "code", "headers"])
                .prop_map(str::to_owned),
            "[a-z]{1,4}",
        ];
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Into::into),
            vec((key, inner), 0..6)
                .prop_map(|pairs| { serde_json::Value::Object(pairs.into_iter().collect()) }),
        ]
    })
}

fn is_answer_or_reason(bytes: &[u8]) -> bool {
    match codec::decode_reply(bytes) {
        Ok(reply) => reply.answer.err().is_none_or(|reason| is_a_reason(&reason)),
        Err(reason) => is_a_reason(&reason),
    }
}

proptest! {
    #[test]
    fn a_reply_is_read_as_it_was_sent(id in "(?s).{0,40}", answer in any_answer()) {
        let reply = codec::decode_reply(&codec::encode_reply(&id, &answer)).expect("an envelope");
        prop_assert_eq!(reply.correlation_id, id);
        match (reply.answer.expect("it can be read"), answer) {
            (Ok(read), Ok(sent)) => {
                prop_assert_eq!(read.payload, sent.payload);
                prop_assert_eq!(read.headers, sent.headers);
            }
            (Err(read), Err(sent)) => {
                prop_assert_eq!(read.code(), sent.code());
                prop_assert!(!read.message().is_empty());
                prop_assert!(sent.message().is_empty() || read.message() == sent.message());
            }
            (read, sent) => prop_assert!(false, "{:?} became {:?}", sent, read),
        }
    }

    #[test]
    fn a_reply_of_the_go_library_is_read(id in "(?s).{0,40}", body in any_bytes(40), text in "(?s).{1,20}") {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let success = serde_json::json!({"error": "", "body": STANDARD.encode(&body), "correlation_id": id});
        let reply = codec::decode_reply(success.to_string().as_bytes()).expect("an envelope");
        prop_assert_eq!(reply.answer.expect("it can be read").expect("a success").payload, body);
        let failure = serde_json::json!({"correlation_id": id, "body": null, "error": text});
        let reply = codec::decode_reply(failure.to_string().as_bytes()).expect("an envelope");
        prop_assert_eq!(&reply.correlation_id, &id);
        let error = reply.answer.expect("it can be read").expect_err("a failure");
        prop_assert_eq!((error.code(), error.message()), (&RpcCode::Internal, &*text));
    }

    #[test]
    fn a_reply_that_is_cut_off_is_none(answer in any_answer(), end in any::<Index>()) {
        let bytes = codec::encode_reply("7", &answer);
        let reason = codec::decode_reply(&bytes[..end.index(bytes.len())]).expect_err("it is cut off");
        prop_assert!(is_a_reason(&reason), "{}", reason);
    }

    #[test]
    fn a_reply_with_a_changed_byte_is_an_answer_or_a_reason(
        answer in any_answer(),
        place in any::<Index>(),
        byte: u8,
    ) {
        let mut bytes = codec::encode_reply("7", &answer);
        let place = place.index(bytes.len());
        bytes[place] = byte;
        prop_assert!(is_answer_or_reason(&bytes));
    }

    #[test]
    fn any_bytes_and_any_json_are_an_answer_or_a_reason(bytes: Vec<u8>, json in any_json(), body in any_json()) {
        prop_assert!(is_answer_or_reason(&bytes));
        prop_assert!(is_answer_or_reason(json.to_string().as_bytes()));
        let envelope = serde_json::json!({"correlation_id": "7", "body": body, "headers": json});
        prop_assert!(is_answer_or_reason(envelope.to_string().as_bytes()));
    }

    #[test]
    fn a_body_that_is_no_base64_keeps_its_request(body in "[^A-Za-z0-9+/=]{1,12}", headers in any_headers()) {
        let names = headers.keys().map(|name| (name.as_str(), "plain"));
        let headers: Vec<_> = names.collect();
        let envelope = serde_json::json!({"correlation_id": "7", "body": body, "headers": headers});
        let reply = codec::decode_reply(envelope.to_string().as_bytes()).expect("an envelope");
        prop_assert_eq!(reply.correlation_id, "7");
        prop_assert!(reply.answer.expect_err("no base64").contains("base64"));
    }
}

#[test]
fn an_envelope_that_is_nested_without_end_is_refused() {
    for nested in [
        "[".repeat(100_000),
        r#"{"body":"#.repeat(100_000),
        r#"{"x":["#.repeat(50_000),
    ] {
        let envelope = format!(r#"{{"correlation_id":"7","x":{nested}"#);
        assert!(is_a_reason(
            &codec::decode_reply(envelope.as_bytes()).unwrap_err()
        ));
    }
}

/// A time, as far as this platform has it.
fn any_time() -> impl Strategy<Value = SystemTime> {
    (any::<bool>(), any::<Duration>()).prop_map(|(past, distance)| {
        let now = SystemTime::now();
        let time = if past {
            now.checked_sub(distance)
        } else {
            now.checked_add(distance)
        };
        time.unwrap_or(now)
    })
}

proptest! {
    #[test]
    fn what_cannot_be_asked_of_a_message_is_refused_in_words(
        event: bool,
        name in "\\PC{0,40}",
        times in 0..60usize,
        key in proptest::option::of("\\PC{0,40}"),
        life in proptest::option::of(any::<Duration>()),
        due in proptest::option::of(prop_oneof![
            any::<Duration>().prop_map(Due::After),
            any_time().prop_map(Due::At),
        ]),
        headers in any_headers(),
    ) {
        let kind = if event { Kind::Event } else { Kind::Task };
        let mut message = Message::new(kind, name.repeat(times), "");
        *message.headers_mut() = headers;
        let parts = message.parts_mut();
        parts.idempotency_key = key.map(|key| key.repeat(times).into());
        parts.deadline = life.map(Deadline::after);
        parts.due = due;
        let name_is_wrong = !(1..=1024).contains(&parts.name.len());
        let sent = Memory::new().oneshot(message).now_or_never().expect("memory waits for nobody");
        match sent {
            Ok(reply) => {
                prop_assert!(!name_is_wrong);
                prop_assert_eq!(reply.receipt().is_some(), kind == Kind::Task);
            }
            Err(error) => {
                let text = error.to_string();
                prop_assert!(error.is_invalid() || error.is_timeout(), "{}", text);
                prop_assert!(text.len() > 10 && text.len() < 200 && !text.ends_with('.'), "{}", text);
                prop_assert!(!name_is_wrong || text.starts_with("the name is"), "{}", text);
            }
        }
    }

    #[test]
    fn a_deadline_is_never_further_away_than_it_was_asked_for(after: Duration) {
        prop_assert!(Deadline::after(after).remaining() <= after);
    }
}
