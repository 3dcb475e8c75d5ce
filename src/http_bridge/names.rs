//! Converts names to paths, and texts to header values.

use std::borrow::Cow;

use http::HeaderValue;
use percent_encoding::{
    AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode,
};

/// The characters that are escaped in a path: all except ASCII letters, digits, `-`, `_` and `~`.
/// The exceptions are the unreserved characters of [RFC
/// 3986](https://www.rfc-editor.org/rfc/rfc3986#section-2.3), without the dot.
const ESCAPED_IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'~');

/// The ASCII characters that are escaped in a header value. Non-ASCII characters are always
/// escaped. Both rules are from the [HTTP binding of
/// CloudEvents](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md#3132-http-header-values).
const ESCAPED_IN_HEADER: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// Converts a name into a path. The parts between dots become segments: `orders.create` is
/// `/orders/create`. All characters except ASCII letters, digits, `-`, `_` and `~` are
/// percent-encoded, so two names never have the same path.
///
/// ```
/// use campanile::http_bridge::path;
///
/// assert_eq!(path("orders.create"), "/orders/create");
/// assert_eq!(path("a/b c"), "/a%2Fb%20c");
/// ```
pub fn path(name: &str) -> String {
    let mut path = String::with_capacity(name.len() + 1);
    for part in name.split('.') {
        path.push('/');
        path.extend(utf8_percent_encode(part, ESCAPED_IN_PATH));
    }
    path
}

/// Rewrites a path with the escapes that [`path`] uses: `%2f` becomes `%2F`, `%61` becomes `a`, and
/// `!` becomes `%21`.
pub(super) fn canonical_path(path: &str) -> Cow<'_, str> {
    // A path does not change if its segments have only characters that are not escaped.
    let is_unreserved =
        |byte| matches!(byte, b'/' | b'-' | b'_' | b'~') || u8::is_ascii_alphanumeric(&byte);
    if path.bytes().all(is_unreserved) {
        return Cow::Borrowed(path);
    }
    let segments = path.split('/').map(|segment| {
        let decoded: Cow<'_, [u8]> = percent_decode_str(segment).into();
        percent_encoding::percent_encode(&decoded, ESCAPED_IN_PATH).to_string()
    });
    Cow::Owned(segments.collect::<Vec<_>>().join("/"))
}

/// Percent-encodes a text as the value of a header.
pub(super) fn encode_header_value(text: &str) -> HeaderValue {
    let encoded: Cow<'_, str> = utf8_percent_encode(text, ESCAPED_IN_HEADER).into();
    HeaderValue::from_str(&encoded).expect("nothing is left that HTTP does not allow")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_is_found_with_any_characters_escaped() {
        assert_eq!(canonical_path("/orders/create"), "/orders/create");
        assert_eq!(canonical_path("/%6frders/cr%65ate"), "/orders/create");
        assert_eq!(canonical_path("/a%2fb"), "/a%2Fb");
        assert_ne!(canonical_path("/a%2Fb"), "/a/b");
        assert_eq!(canonical_path("/caf%C3%A9"), path("café"));
        assert_eq!(canonical_path("/%zz%"), "/%25zz%25", "no escapes, but text");
    }

    proptest! {
        #[test]
        fn every_name_has_a_path_of_its_own(one in ".{0,20}", other in ".{0,20}") {
            prop_assert!(path(&one).parse::<http::Uri>().is_ok());
            prop_assert_eq!(canonical_path(&path(&one)).into_owned(), path(&one));
            prop_assert_eq!(one == other, path(&one) == path(&other));
        }

        // Paths of any legal characters, escaped or not.
        #[test]
        fn every_path_has_one_canonical_form(
            path in r"/([a-z0-9/.%!~$&'()*+,;=:@_-]|%[0-9a-fA-F]{2}){0,12}",
        ) {
            let form = canonical_path(&path).into_owned();
            prop_assert_eq!(&canonical_path(&form), &form, "it is not idempotent");
            let escaped: String = path
                .split('/')
                .map(|segment| {
                    let bytes: Vec<u8> = percent_decode_str(segment).collect();
                    bytes.iter().map(|byte| format!("%{byte:02x}")).collect::<String>()
                })
                .collect::<Vec<_>>()
                .join("/");
            prop_assert_eq!(&canonical_path(&escaped), &form, "{} is the same path", escaped);
        }

        #[test]
        fn a_path_without_escapes_has_the_canonical_form_of_its_name(name in "[a-z!~$&'()*+,;=:@_-]{1,12}") {
            prop_assert_eq!(canonical_path(&format!("/{name}")).into_owned(), path(&name));
        }

        #[test]
        fn any_text_becomes_a_header_value(text in "(?s).{0,40}") {
            let value = encode_header_value(&text);
            let back = percent_decode_str(value.to_str().unwrap()).decode_utf8().unwrap().into_owned();
            prop_assert_eq!(back, text);
        }
    }
}
