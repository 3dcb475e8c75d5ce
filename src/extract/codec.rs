//! Arguments that take a payload in another format than JSON.

use super::{Carries, FromMessage, OptionalFromMessage, payload::check_format};
use crate::{error::Rejection, message::Message, payload::for_each_codec};

/// Implements the extractors of a format. An `Option` of the format is `None` if the payload is
/// empty.
macro_rules! codec_extractors {
    ([$($codec:tt)*], [$($write:tt)*], [$($read:tt)*]) => {
        impl<S: Sync, T: $($read)*> FromMessage<S> for $($codec)*<T> {
            type Rejection = Rejection;

            async fn from_message(message: Message, _: &S) -> Result<Self, Rejection> {
                check_format(&message, Self::FORMAT)?;
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

/// Implements [`Carries`] for each codec. For example, a handler that takes a `MsgPack<T>` fits a
/// constant with the payload type `MsgPack<T>`.
macro_rules! carries {
    ([$($codec:tt)*], [$($write:tt)*], [$($read:tt)*]) => {
        impl<T> Carries<$($codec)*<T>> for $($codec)*<T> {}
    };
}

for_each_codec!(carries);
