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

/// Implements the extractors of a payload type; as an `Option`, an empty payload is `None`.
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
    // Checking the whole payload once is cheaper than checking each string.
    let read = match std::str::from_utf8(&payload) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_slice(&payload),
    };
    read.map(Json)
        .map_err(|error| Rejection::permanent(describe(&error, &payload)))
}

/// Names the place and the kind of an error without the values that serde quotes: those are from
/// the payload, which must not get into logs and may be megabytes long.
fn describe(error: &serde_json::Error, payload: &Bytes) -> String {
    if payload.is_empty() {
        return "the payload is empty where JSON was expected".to_owned();
    }
    let mut text = if error.is_data() {
        "the payload is JSON of another shape".to_owned()
    } else {
        "the payload is not JSON".to_owned()
    };
    let told = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let told = told.strip_suffix(&place).unwrap_or(&told);
    // The text quotes the value before the expected type.
    if !error.is_data() || holds_no_value(told) {
        let _ = write!(text, ": {told}");
    } else if let Some((_, expected)) = told.rsplit_once(", expected ") {
        let _ = write!(text, ": expected {expected}");
    }
    if error.line() > 0 {
        text.push_str(&place);
    }
    text
}

/// Returns whether serde's error text consists of the type's names and quotes nothing of the
/// payload.
fn holds_no_value(told: &str) -> bool {
    const BEGINNINGS: [&str; 4] = [
        "missing field ",
        "duplicate field ",
        "data did not match any variant of untagged enum ",
        "no variant of enum ",
    ];
    // Serde's derived code stores flattened fields in a form without these.
    let of_flattened = ["i128 is not supported", "u128 is not supported"];
    BEGINNINGS.iter().any(|text| told.starts_with(text)) || of_flattened.contains(&told)
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

    fn told<T: DeserializeOwned + std::fmt::Debug>(payload: &'static str) -> String {
        json::<T>(Bytes::from_static(payload.as_bytes()))
            .expect_err("it is of another shape")
            .to_string()
    }

    #[test]
    fn serdes_own_words_are_shown_where_they_hold_no_value() {
        assert_eq!(
            told::<Outer>(r#"{"_n":7}"#),
            "the payload is JSON of another shape: u128 is not supported at line 1 column 8"
        );
        let untagged = told::<Untagged>(r#""secret""#);
        assert!(
            untagged.contains(": data did not match any variant of untagged enum Untagged"),
            "{untagged}"
        );
    }

    #[test]
    fn a_value_of_the_payload_is_never_shown() {
        for text in [
            told::<u8>(r#""secret""#),
            told::<Outer>(r#"{"_n":"secret is not supported"}"#),
            told::<std::net::IpAddr>(r#""secret""#),
        ] {
            assert!(!text.contains("secret"), "{text}");
        }
    }
}
