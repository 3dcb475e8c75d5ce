//! The fields of a stream entry.
#![no_main]

use bytes::Bytes;
use campanile::{Kind, transport::codec};
use libfuzzer_sys::fuzz_target;

/// Names of known fields, so that the fuzzer need not find them.
const KNOWN_FIELDS: [&str; 13] = [
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
    "h:x",
];
const KINDS: [&str; 3] = ["task", "rpc", "event"];

#[derive(Debug, arbitrary::Arbitrary)]
struct Field<'a> {
    /// The index of a known field that replaces the name.
    known_index: Option<u8>,
    /// The index of a kind that replaces the value.
    kind_index: Option<u8>,
    name: &'a [u8],
    value: &'a [u8],
}

/// Returns the known text with this index, or `otherwise` if there is no index.
fn pick(known: &[&'static str], index: Option<u8>, otherwise: &[u8]) -> Bytes {
    match index {
        Some(index) => known[usize::from(index) % known.len()].into(),
        None => Bytes::copy_from_slice(otherwise),
    }
}

fuzz_target!(|fields: Vec<Field<'_>>| {
    let fields: Vec<_> = fields
        .iter()
        .map(|field| {
            (
                pick(&KNOWN_FIELDS, field.known_index, field.name),
                pick(&KINDS, field.kind_index, field.value),
            )
        })
        .collect();
    let decoded = match codec::decode(fields.clone()) {
        Ok(decoded) => decoded,
        Err(refused) => {
            assert_eq!(refused.fields, fields);
            assert!(
                !refused.reason.is_empty() && refused.reason.len() < 400,
                "{}",
                refused.reason
            );
            return;
        }
    };
    let message = decoded.message;
    let mut encoded = Vec::new();
    codec::encode(&message, |field, value| {
        encoded.push((Bytes::copy_from_slice(field), Bytes::copy_from_slice(value)));
    });
    if message.kind() == Kind::Rpc {
        encoded.push((
            codec::REPLY_TO.into(),
            decoded.reply_to.expect("a request has one"),
        ));
        encoded.push((
            codec::CORRELATION_ID.into(),
            decoded.correlation_id.expect("a request has one"),
        ));
    }
    let again = codec::decode(encoded)
        .expect("what was read can be written")
        .message;
    assert_eq!(again.kind(), message.kind());
    assert_eq!(again.name(), message.name());
    assert_eq!(again.payload(), message.payload());
    assert_eq!(again.headers(), message.headers());
    assert_eq!(
        again.parts().idempotency_key,
        message.parts().idempotency_key
    );
});
