//! Constants whose payload or reply has another format than JSON.

use super::{ContractReply, Encoded, PayloadFor};
use crate::{
    error::BoxError,
    payload::for_each_codec,
    reply::{FromReply, Reply},
};

/// Lets a constant with the payload type `MsgPack<T>` send a `MsgPack<T>`, and likewise for each
/// codec.
macro_rules! payload_for {
    ([$($codec:tt)*], [$($write:tt)*], [$($read:tt)*]) => {
        impl<T: $($write)*> PayloadFor<$($codec)*<T>> for $($codec)*<T> {
            fn encode(self) -> Result<Encoded, BoxError> {
                Encoded::new(self)
            }
        }
    };
}

for_each_codec!(payload_for);

/// Reads the reply to a constant with the reply type `MsgPack<T>` as a `MsgPack<T>`, and likewise
/// for each codec.
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
