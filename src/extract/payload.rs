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

/// A payload type: how it is read, and that nothing is an absent one.
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
    // To check all of it once is cheaper than each string by itself.
    let read = match std::str::from_utf8(&payload) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_slice(&payload),
    };
    read.map(Json)
        .map_err(|error| Rejection::permanent(describe(&error, &payload)))
}

/// Says where and what is wrong without the values that serde quotes: those come from the payload,
/// which belongs in no log and may be megabytes long.
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
    // Missing and duplicate fields are named by the type, not by the payload; what was expected
    // stands behind the quoted value.
    if !error.is_data() || told.starts_with("missing field") || told.starts_with("duplicate field")
    {
        let _ = write!(text, ": {told}");
    } else if let Some((_, expected)) = told.rsplit_once(", expected ") {
        let _ = write!(text, ": expected {expected}");
    }
    if error.line() > 0 {
        text.push_str(&place);
    }
    text
}
