//! Arguments that take the payload.

use std::{convert::Infallible, fmt::Write as _};

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::{FromMessage, OptionalFromMessage};
use crate::{error::Rejection, message::Message, payload::Json};

impl<S: Sync> FromMessage<S> for Message {
    type Rejection = Infallible;

    async fn from_message(message: Message, _: &S) -> Result<Self, Infallible> {
        Ok(message)
    }
}

/// Implements the extractors of a payload type. As an `Option`, an empty payload is `None`.
macro_rules! payload_extractors {
    ($([$($parameter:ident)?] $type:ty: $read:expr, $rejection:ty;)*) => {$(
        impl<S: Sync, $($parameter: DeserializeOwned)?> FromMessage<S> for $type {
            type Rejection = $rejection;

            async fn from_message(message: Message, _: &S) -> Result<Self, $rejection> {
                $read(message.into_payload())
            }
        }

        impl<S: Sync, $($parameter: DeserializeOwned)?> OptionalFromMessage<S> for $type {
            type Rejection = $rejection;

            async fn from_message(message: Message, _: &S) -> Result<Option<Self>, $rejection> {
                match message.into_payload() {
                    payload if payload.is_empty() => Ok(None),
                    payload => $read(payload).map(Some),
                }
            }
        }
    )*};
}

payload_extractors! {
    [] Bytes: Ok, Infallible;
    [] Vec<u8>: |payload: Bytes| Ok(payload.into()), Infallible;
    [] String: text, Rejection;
    [T] Json<T>: json, Rejection;
}

fn text(payload: Bytes) -> Result<String, Rejection> {
    String::from_utf8(payload.into()).map_err(|error| {
        Rejection::permanent("the payload is not UTF-8 text").because(error.utf8_error())
    })
}

fn json<T: DeserializeOwned>(payload: Bytes) -> Result<Json<T>, Rejection> {
    // Checking the whole payload for UTF-8 once is cheaper than checking each string in it.
    let read = match std::str::from_utf8(&payload) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_slice(&payload),
    };
    read.map(Json)
        .map_err(|error| Rejection::permanent(describe(&error, &payload)))
}

/// Describes the place and the kind of an error, without the values that serde quotes. These values
/// are from the payload, which must not get into logs and may be megabytes long.
fn describe(error: &serde_json::Error, payload: &Bytes) -> String {
    if payload.is_empty() {
        return "the payload is empty where JSON was expected".to_owned();
    }
    let mut text = if error.is_data() {
        "the payload is JSON of another shape".to_owned()
    } else {
        "the payload is not JSON".to_owned()
    };
    let serde_text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let serde_text = serde_text.strip_suffix(&place).unwrap_or(&serde_text);
    // Serde's text is `<problem>: <value>, expected <type>`: only the part after the value is kept.
    if !error.is_data() || quotes_no_value(serde_text) {
        let _ = write!(text, ": {serde_text}");
    } else if let Some((_, expected)) = serde_text.rsplit_once(", expected ") {
        let _ = write!(text, ": expected {expected}");
    }
    if error.line() > 0 {
        text.push_str(&place);
    }
    text
}

/// Returns `true` if serde's error text names only fields and types, and no value of the payload.
fn quotes_no_value(serde_text: &str) -> bool {
    const BEGINNINGS: [&str; 4] = [
        "missing field ",
        "duplicate field ",
        "data did not match any variant of untagged enum ",
        "no variant of enum ",
    ];
    // Serde buffers flattened fields in a type that has no 128-bit integers. These are the errors
    // of that type.
    const FLATTENED: [&str; 2] = ["i128 is not supported", "u128 is not supported"];
    let begins = |text: &&str| serde_text.starts_with(*text);
    BEGINNINGS.iter().any(begins) || FLATTENED.contains(&serde_text)
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
        json::<T>(Bytes::from_static(payload.as_bytes()))
            .expect_err("it is of another shape")
            .to_string()
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
