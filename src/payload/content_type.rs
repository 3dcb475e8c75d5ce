//! The content types of payloads.

use std::borrow::Cow;

use http::{
    HeaderMap,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};

/// A format that payloads are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    #[cfg(feature = "msgpack")]
    MsgPack,
    #[cfg(feature = "cbor")]
    Cbor,
    #[cfg(feature = "protobuf")]
    Protobuf,
}

/// The maximum length of a header's value in an error, in bytes.
const MAX_SHOWN: usize = 80;

impl Format {
    /// Returns the content type of this format.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            #[cfg(feature = "msgpack")]
            Format::MsgPack => "application/msgpack",
            #[cfg(feature = "cbor")]
            Format::Cbor => "application/cbor",
            #[cfg(feature = "protobuf")]
            Format::Protobuf => "application/protobuf",
        }
    }

    /// Returns `true` if a payload with this content type may be of this format. `essence` is the
    /// content type in lower case, without parameters.
    fn accepts(self, essence: &str) -> bool {
        match self {
            // Many senders set the types in the second and the third line for any payload.
            Format::Json => {
                matches!(essence, "application/json" | "text/json")
                    || matches!(essence, "text/plain" | "application/octet-stream")
                    || matches!(essence, "" | "application/x-www-form-urlencoded")
                    || essence.ends_with("+json")
            }
            #[cfg(feature = "msgpack")]
            Format::MsgPack => matches!(
                essence,
                "application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack"
            ),
            #[cfg(feature = "cbor")]
            Format::Cbor => essence == "application/cbor" || essence.ends_with("+cbor"),
            #[cfg(feature = "protobuf")]
            Format::Protobuf => matches!(
                essence,
                "application/protobuf"
                    | "application/x-protobuf"
                    | "application/vnd.google.protobuf"
            ),
        }
    }

    /// Checks that the headers of a message or a reply fit this format. A message or a reply
    /// without a content type is JSON.
    ///
    /// # Errors
    /// If the headers name another format or a compression, or if there is no content type and this
    /// format is not JSON. The error describes the format of the payload.
    pub(crate) fn check_headers(self, headers: &HeaderMap) -> Result<(), String> {
        if let Some(encoding) = headers.get(CONTENT_ENCODING)
            && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
        {
            return Err(format!("compressed ({})", shown(encoding.as_bytes())));
        }
        let Some(content_type) = headers.get(CONTENT_TYPE) else {
            return match self {
                Format::Json => Ok(()),
                #[allow(
                    unreachable_patterns,
                    reason = "without the features there is only JSON"
                )]
                _ => Err("without a content type, which means application/json".to_owned()),
            };
        };
        let essence = content_type.as_bytes().split(|byte| *byte == b';').next();
        let essence = essence
            .unwrap_or_default()
            .trim_ascii()
            .to_ascii_lowercase();
        match std::str::from_utf8(&essence).is_ok_and(|essence| self.accepts(essence)) {
            true => Ok(()),
            false => Err(shown(content_type.as_bytes()).into_owned()),
        }
    }
}

/// Returns a header's value for an error: shortened, and without control characters.
fn shown(value: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(&value[..value.len().min(MAX_SHOWN)]);
    let is_whole = value.len() <= MAX_SHOWN && !text.contains(char::is_control);
    match is_whole {
        true => text,
        false => format!("{}…", text.escape_debug()).into(),
    }
}

/// Guesses the format of a payload that is no JSON, by its first bytes.
pub(crate) fn guess(payload: &[u8]) -> Option<&'static str> {
    match payload {
        [0x1f, 0x8b, ..] => Some("compressed with gzip"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("compressed with zstd"),
        // The tag that marks CBOR, and CBOR maps with text keys.
        [0xd9, 0xd9, 0xf7, ..] | [0xa1..=0xb9 | 0xbf, 0x60..=0x7b, ..] => Some("CBOR"),
        // MessagePack maps with text keys.
        [0x81..=0x8f, 0xa0..=0xbf | 0xd9..=0xdb, ..] | [0xde | 0xdf, _, ..] => Some("MessagePack"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn checked(format: Format, content_type: &str) -> Result<(), String> {
        let value = HeaderValue::from_str(content_type).unwrap();
        format.check_headers(&HeaderMap::from_iter([(CONTENT_TYPE, value)]))
    }

    #[test]
    fn json_is_known_under_all_its_names() {
        for name in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/problem+json",
            "text/plain",
            "",
        ] {
            assert_eq!(checked(Format::Json, name), Ok(()), "{name}");
        }
        assert_eq!(Format::Json.check_headers(&HeaderMap::new()), Ok(()));
        let other = checked(Format::Json, "application/cbor");
        assert_eq!(other, Err("application/cbor".to_owned()));
        assert!(checked(Format::Json, "application/jsonx").is_err());
    }

    #[test]
    fn a_long_content_type_is_shortened() {
        let text = checked(Format::Json, &"x".repeat(1 << 20)).unwrap_err();
        assert!(text.len() < 200, "{} bytes", text.len());
    }

    #[test]
    fn a_compressed_payload_is_no_json() {
        let gzip = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static("gzip"))]);
        assert_eq!(
            Format::Json.check_headers(&gzip),
            Err("compressed (gzip)".to_owned())
        );
    }
}
