//! Reads JSON, with errors that quote no value.

use std::fmt::Write as _;

use serde::de::DeserializeOwned;

use super::{Json, content_type::guess, fault::without_values};

impl<T: DeserializeOwned> Json<T> {
    /// Reads a payload.
    ///
    /// # Errors
    /// Returns the reason why the payload is not the JSON of a `T`. The reason quotes no value of
    /// the payload.
    pub(crate) fn read(payload: &[u8]) -> Result<T, String> {
        // Checking the whole payload for UTF-8 once is cheaper than checking each string in it.
        let read = match std::str::from_utf8(payload) {
            Ok(text) => serde_json::from_str(text),
            Err(_) => serde_json::from_slice(payload),
        };
        read.map_err(|error| describe(&error, payload))
    }
}

/// Describes the place and the kind of an error. Leaves out the values that serde quotes from the
/// payload: they must not get into logs, and may be megabytes long.
fn describe(error: &serde_json::Error, payload: &[u8]) -> String {
    if payload.is_empty() {
        return "the payload is empty where JSON was expected".to_owned();
    }
    let mut text = if error.is_data() {
        "the payload is JSON of another shape".to_owned()
    } else {
        match guess(payload) {
            Some(format) => format!("the payload is not JSON, it looks as if it is {format}"),
            None => "the payload is not JSON".to_owned(),
        }
    };
    let serde_text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let serde_text = serde_text.strip_suffix(&place).unwrap_or(&serde_text);
    if error.is_data() {
        if let Some(serde_text) = without_values(serde_text) {
            let _ = write!(text, ": {serde_text}");
        }
    } else {
        let _ = write!(text, ": {serde_text}");
    }
    if error.line() > 0 {
        text.push_str(&place);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Outer {
        #[serde(flatten)]
        _inner: Inner,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        _n: u128,
    }

    #[derive(Debug, Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        _Number(#[expect(dead_code, reason = "only its shape counts")] u8),
    }

    fn error_text<T: DeserializeOwned + std::fmt::Debug>(payload: &'static str) -> String {
        Json::<T>::read(payload.as_bytes()).expect_err("it is of another shape")
    }

    #[test]
    fn serdes_text_is_shown_if_it_contains_no_value() {
        assert_eq!(
            error_text::<Outer>(r#"{"_n":7}"#),
            "the payload is JSON of another shape: u128 is not supported at line 1 column 8"
        );
        let untagged = error_text::<Untagged>(r#""secret""#);
        assert!(
            untagged.contains(": data did not match any variant of untagged enum Untagged"),
            "{untagged}"
        );
    }

    #[test]
    fn a_value_of_the_payload_is_never_shown() {
        for text in [
            error_text::<u8>(r#""secret""#),
            error_text::<Outer>(r#"{"_n":"secret is not supported"}"#),
            error_text::<std::net::IpAddr>(r#""secret""#),
        ] {
            assert!(!text.contains("secret"), "{text}");
        }
    }
}
