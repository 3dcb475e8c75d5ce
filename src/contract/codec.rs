//! Constants whose payload or reply has another format than JSON.

use super::{ContractReply, EncodedPayload, PayloadFor};
use crate::{
    error::BoxError,
    payload::for_each_codec,
    reply::{FromReply, Reply},
};

/// Implements [`PayloadFor`] for a codec: under a constant with the payload type `MsgPack<T>`, for
/// example, a `MsgPack<T>` can be sent.
macro_rules! payload_for {
    ([$($codec:tt)*], [$($write:tt)*], [$($read:tt)*]) => {
        impl<T: $($write)*> PayloadFor<$($codec)*<T>> for $($codec)*<T> {
            fn encode(self) -> Result<EncodedPayload, BoxError> {
                EncodedPayload::new(self)
            }
        }
    };
}

for_each_codec!(payload_for);

/// Implements [`ContractReply`] for a codec: a reply of the type `MsgPack<T>`, for example, is read
/// as a `MsgPack<T>`.
macro_rules! contract_reply {
    ([$($codec:tt)*], [$($write:tt)*], [$($read:tt)*]) => {
        impl<T: $($read)*> ContractReply for $($codec)*<T> {
            fn read(reply: Reply) -> Result<Self, BoxError> {
                Self::from_reply(reply)
            }
        }
    };
}

for_each_codec!(contract_reply);
