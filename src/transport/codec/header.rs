//! Headers of entries and replies.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::excerpt;

/// Checks an untrusted header, and adds it.
pub(super) fn add(headers: &mut HeaderMap, name: &[u8], value: &Bytes) -> Result<(), String> {
    let parsed = HeaderName::from_bytes(name)
        .map_err(|_| format!("a header name that HTTP does not allow: {}", excerpt(name)))?;
    let value = HeaderValue::from_maybe_shared(value.clone()).map_err(|_| {
        let name = excerpt(parsed.as_str().as_bytes());
        format!("a value that HTTP does not allow in the header {name}")
    })?;
    headers
        .try_append(parsed, value)
        .map_err(|_| "more headers than can be kept".to_owned())?;
    Ok(())
}

/// The prefix of a header value that is encoded as base64 in a reply.
const BASE64_PREFIX: &str = "base64:";

/// Encodes a header value as a text in a reply's JSON.
pub(super) fn encode_value(value: &HeaderValue) -> String {
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) if !text.starts_with(BASE64_PREFIX) => text.to_owned(),
        _ => format!("{BASE64_PREFIX}{}", BASE64.encode(value)),
    }
}

/// Decodes a header value from a text in a reply's JSON.
pub(super) fn decode_value(text: &str) -> Bytes {
    text.strip_prefix(BASE64_PREFIX)
        .and_then(|encoded| BASE64.decode(encoded).ok())
        .map_or_else(|| Bytes::copy_from_slice(text.as_bytes()), Bytes::from)
}
