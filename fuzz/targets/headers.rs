//! Headers, in an entry and in a reply.
#![no_main]

use bytes::Bytes;
use campanile::{Message, Reply, transport::codec};
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: Vec<(&[u8], &[u8])>| {
    let mut allowed = HeaderMap::new();
    let mut fields: Vec<(Bytes, Bytes)> = Vec::new();
    let mut all_allowed = true;
    codec::encode(&Message::task("a", ""), |field, value| {
        fields.push((Bytes::copy_from_slice(field), Bytes::copy_from_slice(value)));
    });
    for (name, value) in input {
        fields.push(([b"h:", name].concat().into(), Bytes::copy_from_slice(value)));
        match (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            (Ok(name), Ok(value)) => {
                allowed.append(name, value);
            }
            _ => all_allowed = false,
        }
    }
    match codec::decode(fields.clone()) {
        Ok(decoded) => {
            assert!(all_allowed);
            assert_eq!(decoded.message.headers(), &allowed);
        }
        Err(refused) => {
            assert!(!all_allowed);
            assert_eq!(refused.fields, fields);
            assert!(refused.reason.contains("HTTP") && refused.reason.len() < 400);
        }
    }
    let mut reply = Reply::default();
    reply.headers = allowed;
    let envelope = codec::encode_reply("1", &Ok(reply.clone()));
    let decoded = codec::decode_reply(&envelope);
    let decoded = decoded
        .expect("an envelope")
        .answer
        .expect("it can be read")
        .expect("a success");
    assert_eq!(decoded.headers, reply.headers);
});
