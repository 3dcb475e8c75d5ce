//! Arguments that take the payload.

use std::convert::Infallible;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::{FromMessage, OptionalFromMessage};
use crate::{
    error::Rejection,
    message::Message,
    payload::{Format, Json},
};

impl<S: Sync> FromMessage<S> for Message {
    type Rejection = Infallible;

    async fn from_message(message: Message, _: &S) -> Result<Self, Infallible> {
        Ok(message)
    }
}

/// Implements the extractors of a payload type. An `Option` of the type is `None` if the payload is
/// empty.
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
    check_format(&message, Format::Json)?;
    let payload = message.into_payload();
    Json::read(&payload).map(Json).map_err(Rejection::permanent)
}

/// Rejects a message whose headers name another format than `format`.
pub(super) fn check_format(message: &Message, format: Format) -> Result<(), Rejection> {
    format.check_headers(message.headers()).map_err(|other| {
        let takes = format.content_type();
        Rejection::permanent(format!(
            "this message is {other}, and the handler takes {takes}"
        ))
    })
}
