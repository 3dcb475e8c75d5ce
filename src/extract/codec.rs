//! Arguments that take a payload in another format than JSON.

use super::{Carries, FromMessage, OptionalFromMessage, payload::of_format};
use crate::{error::Rejection, message::Message, payload::for_each_codec};

/// Implements the extractors of a format. As an `Option`, an empty payload is `None`.
macro_rules! codec_extractors {
    ([$($codec:tt)*], [$($write:tt)*], [$($read:tt)*]) => {
        impl<S: Sync, T: $($read)*> FromMessage<S> for $($codec)*<T> {
            type Rejection = Rejection;

            async fn from_message(message: Message, _: &S) -> Result<Self, Rejection> {
                of_format(&message, Self::FORMAT)?;
                Self::decode(message.payload()).map_err(Rejection::permanent)
            }
        }

        impl<S: Sync, T: $($read)*> OptionalFromMessage<S> for $($codec)*<T> {
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

/// The payload of a constant with the payload type `MsgPack<T>` is taken as a `MsgPack<T>`, and so
/// on.
macro_rules! carries {
    ([$($codec:tt)*], [$($write:tt)*], [$($read:tt)*]) => {
        impl<T> Carries<$($codec)*<T>> for $($codec)*<T> {}
    };
}

for_each_codec!(carries);
