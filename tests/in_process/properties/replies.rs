//! Properties of replies as envelopes.

use campanile::{Reply, RpcCode, RpcError, transport::codec};
use proptest::{collection::vec, prelude::*, sample::Index};

use super::{any_bytes, any_headers, is_a_reason};

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

/// Any JSON, including the keys of an envelope.
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
        let envelope = codec::encode_reply(&id, &answer);
        let reply = codec::decode_reply(&envelope).expect("an envelope");
        prop_assert_eq!(reply.correlation_id, id);
        match (reply.answer.expect("the answer can be read"), answer) {
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
        let success = success.to_string();
        let reply = codec::decode_reply(success.as_bytes()).expect("an envelope");
        prop_assert_eq!(reply.answer.expect("the answer can be read").expect("a success").payload, body);
        let failure = serde_json::json!({"correlation_id": id, "body": null, "error": text});
        let failure = failure.to_string();
        let reply = codec::decode_reply(failure.as_bytes()).expect("an envelope");
        prop_assert_eq!(&reply.correlation_id, &id);
        let error = reply.answer.expect("the answer can be read").expect_err("a failure");
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
        let headers: std::collections::BTreeMap<_, _> = names.collect();
        let envelope = serde_json::json!({"correlation_id": "7", "body": body, "headers": headers});
        let text = envelope.to_string();
        let reply = codec::decode_reply(text.as_bytes()).expect("an envelope");
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
