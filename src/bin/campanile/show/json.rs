//! JSON for scripts.
//!
//! Payloads, header values and fields are strings if they are UTF-8, and otherwise objects:
//! `{"base64": "…"}`. Times are milliseconds since 1970, and durations are milliseconds.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use serde_json::{Map, Value, json};

/// Formats bytes: as a string if they are UTF-8, and otherwise as an object with base64.
pub(crate) fn bytes(bytes: impl AsRef<[u8]>) -> Value {
    let bytes = bytes.as_ref();
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({ "base64": BASE64_STANDARD.encode(bytes) }),
    }
}

/// Formats headers: each name with the list of its values.
pub(crate) fn headers(headers: &HeaderMap) -> Value {
    let values = |name: &HeaderName| headers.get_all(name).iter().map(bytes);
    let all = headers.keys().map(|name| {
        let values = values(name).collect();
        (name.to_string(), Value::Array(values))
    });
    Value::Object(all.collect::<Map<_, _>>())
}

/// Formats raw fields in their order. The result is a list of pairs, because a name may occur
/// twice.
pub(crate) fn fields(fields: &[(Bytes, Bytes)]) -> Value {
    let pair = |(field, value): &(Bytes, Bytes)| json!([bytes(field), bytes(value)]);
    fields.iter().map(pair).collect()
}

/// Formats a time as milliseconds since 1970.
pub(crate) fn time(time: SystemTime) -> Value {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    milliseconds(since_epoch)
}

/// Formats a duration as milliseconds.
pub(crate) fn milliseconds(duration: Duration) -> Value {
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX)
        .into()
}

/// Formats a document on one line that is safe on a terminal. JSON itself escapes the control
/// characters of ASCII. This function also escapes all other unprintable characters. They can occur
/// only in strings, so escapes are allowed there.
pub(crate) fn line(value: &Value) -> String {
    let json = value.to_string();
    let mut line = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\x7f' && (c.is_ascii() || c.escape_debug().len() == 1) {
            line.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(line, "\\u{unit:04x}");
            }
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unprintable_characters_are_escaped_and_keep_their_meaning() {
        let value = json!({ "a\u{9b}": "\x1b\x7f\u{202e}\u{e0001}🔔ä\"\\" });
        let line = line(&value);
        assert_eq!(
            line,
            r#"{"a\u009b":"\u001b\u007f\u202e\udb40\udc01🔔ä\"\\"}"#
        );
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), value);
    }

    #[test]
    fn bytes_that_are_no_text_are_base64() {
        assert_eq!(bytes("ä"), json!("ä"));
        assert_eq!(bytes(b"\xff\x00"), json!({ "base64": "/wA=" }));
    }

    #[test]
    fn a_repeated_header_keeps_its_values() {
        let mut map = HeaderMap::new();
        map.append("x-a", "1".parse().unwrap());
        map.append("x-b", "2".parse().unwrap());
        map.append("x-a", "3".parse().unwrap());
        assert_eq!(headers(&map), json!({ "x-a": ["1", "3"], "x-b": ["2"] }));
    }
}
