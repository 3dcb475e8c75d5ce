//! Properties of all public functions that read bytes from outside. No input makes them panic. Data
//! that Campanile has written is read unchanged. Refused input gets a short reason. An entry that
//! cannot be read keeps its fields.
//!
//! | module | subject |
//! |---|---|
//! | `entries` | messages as the fields of an entry |
//! | `replies` | replies as envelopes |
//! | `sending` | the options of a sender |
//!
//! A case that fails is minimized, printed, and kept in `proptest-regressions/`. Later runs try it
//! first.

mod entries;
mod replies;
mod sending;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::{collection::vec, prelude::*};

fn any_bytes(most: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..most).prop_map(Bytes::from)
}

/// Headers that HTTP allows: any valid name, and values of any bytes but control characters.
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

/// Checks that a reason is short for any input, and that it names the fault.
fn is_a_reason(reason: &str) -> bool {
    let names = ["`", "HTTP", "headers", "envelope", "base64"];
    !reason.is_empty() && reason.len() < 400 && names.iter().any(|name| reason.contains(name))
}
