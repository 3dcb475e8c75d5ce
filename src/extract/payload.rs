//! Arguments that take the payload.

use std::{convert::Infallible, fmt::Write as _};

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::{FromMessage, OptionalFromMessage};
#[cfg(feature = "cbor")]
use crate::payload::Cbor;
#[cfg(feature = "msgpack")]
use crate::payload::MsgPack;
#[cfg(feature = "protobuf")]
use crate::payload::Protobuf;
use crate::{
    error::Rejection,
    message::Message,
    payload::{Format, Json, for_each_codec, guess, without_values},
};

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
                $read(message)
            }
        }

        impl<S: Sync, $($parameter: DeserializeOwned)?> OptionalFromMessage<S> for $type {
            type Rejection = $rejection;

            async fn from_message(message: Message, _: &S) -> Result<Option<Self>, $rejection> {
                match message.payload().is_empty() {
                    true => Ok(None),
                    false => $read(message).map(Some),
                }
            }
        }
    )*};
}

payload_extractors! {
    [] Bytes: |message: Message| Ok(message.into_payload()), Infallible;
    [] Vec<u8>: |message: Message| Ok(message.into_payload().into()), Infallible;
    [] String: text, Rejection;
    [T] Json<T>: json, Rejection;
}

fn text(message: Message) -> Result<String, Rejection> {
    String::from_utf8(message.into_payload().into()).map_err(|error| {
        Rejection::permanent("the payload is not UTF-8 text").because(error.utf8_error())
    })
}

fn json<T: DeserializeOwned>(message: Message) -> Result<Json<T>, Rejection> {
    of_format(&message, Format::Json)?;
    let payload = message.into_payload();
    // Checking the whole payload for UTF-8 once is cheaper than checking each string in it.
    let read = match std::str::from_utf8(&payload) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_slice(&payload),
    };
    read.map(Json)
        .map_err(|error| Rejection::permanent(describe(&error, &payload)))
}

/// Rejects a message whose headers name another format.
fn of_format(message: &Message, format: Format) -> Result<(), Rejection> {
    format.check(message.headers()).map_err(|other| {
        let takes = format.content_type();
        Rejection::permanent(format!(
            "this message is {other}, and the handler takes {takes}"
        ))
    })
}

/// Implements the extractors of a format. As an `Option`, an empty payload is `None`.
#[cfg(any(feature = "msgpack", feature = "cbor", feature = "protobuf"))]
macro_rules! codec_extractors {
    ($codec:ident, [$($write:tt)*], [$($read:tt)*]) => {
        impl<S: Sync, T: $($read)*> FromMessage<S> for $codec<T> {
            type Rejection = Rejection;

            async fn from_message(message: Message, _: &S) -> Result<Self, Rejection> {
                of_format(&message, Self::FORMAT)?;
                Self::decode(message.payload()).map_err(Rejection::permanent)
            }
        }

        impl<S: Sync, T: $($read)*> OptionalFromMessage<S> for $codec<T> {
            type Rejection = Rejection;

            async fn from_message(message: Message, state: &S) -> Result<Option<Self>, Rejection> {
                match message.payload().is_empty() {
                    true => Ok(None),
                    false => <Self as FromMessage<S>>::from_message(message, state).await.map(Some),
                }
            }
        }
    };
}

for_each_codec!(codec_extractors);

/// Describes the place and the kind of an error, without the values that serde quotes. These values
/// are from the payload, which must not get into logs and may be megabytes long.
fn describe(error: &serde_json::Error, payload: &Bytes) -> String {
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
        json::<T>(Message::task("t", payload))
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
