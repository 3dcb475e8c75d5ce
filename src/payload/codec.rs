//! Payloads in other formats than JSON.

use std::ops::{Deref, DerefMut};

use crate::error::BoxError;

/// Invokes a macro for each format whose feature is enabled. The arguments are the type of the
/// format, the bounds of a value to write, and the bounds of a value to read.
macro_rules! for_each_codec {
    ($implement:ident) => {
        #[cfg(feature = "msgpack")]
        $implement!(
            [crate::payload::MsgPack],
            [serde::Serialize],
            [serde::de::DeserializeOwned]
        );
        #[cfg(feature = "cbor")]
        $implement!(
            [crate::payload::Cbor],
            [serde::Serialize],
            [serde::de::DeserializeOwned]
        );
        #[cfg(feature = "protobuf")]
        $implement!(
            [crate::payload::Protobuf],
            [prost::Message],
            [prost::Message + Default]
        );
    };
}
pub(crate) use for_each_codec;

/// Defines the type of a format.
macro_rules! codec {
    ($(#[$doc:meta])* $codec:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $codec<T>(pub T);

        impl<T> $codec<T> {
            /// The content type of the payloads.
            pub const CONTENT_TYPE: &'static str = super::Format::$codec.content_type();

            pub(crate) const FORMAT: super::Format = super::Format::$codec;
        }

        impl<T> Deref for $codec<T> {
            type Target = T;

            fn deref(&self) -> &T {
                &self.0
            }
        }

        impl<T> DerefMut for $codec<T> {
            fn deref_mut(&mut self) -> &mut T {
                &mut self.0
            }
        }

        impl<T> From<T> for $codec<T> {
            fn from(value: T) -> Self {
                Self(value)
            }
        }
    };
}

/// Describes an error of serde, without the value of the payload that serde's text may quote.
#[cfg(any(feature = "msgpack", feature = "cbor"))]
fn shape_fault(format: &str, serde_text: &str) -> String {
    match super::fault::without_values(serde_text) {
        Some(text) => format!("the payload is {format} of another shape: {text}"),
        None => format!("the payload is {format} of another shape"),
    }
}

#[cfg(feature = "msgpack")]
codec! {
    /// MessagePack: an extractor, a reply, and a payload to send. The feature `msgpack`.
    ///
    /// Structs are written as maps with the names of their fields, so that both sides can add
    /// fields. The extractor also reads structs that are written as arrays.
    ///
    /// It behaves like [`Json`](crate::Json), except that a message or a reply is sent with the
    /// header `content-type: application/msgpack`, and is rejected without this header.
    ///
    /// ```
    /// use campanile::{Client, MsgPack, Router};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), campanile::Error> {
    /// let app: Router = Router::new().rpc("double", async |MsgPack(n): MsgPack<u32>| MsgPack(2 * n));
    /// let MsgPack(n): MsgPack<u32> = Client::new(app).request("double", MsgPack(21)).await?;
    /// assert_eq!(n, 42);
    /// # Ok(())
    /// # }
    /// ```
    MsgPack
}

#[cfg(feature = "msgpack")]
impl<T: serde::Serialize> MsgPack<T> {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, BoxError> {
        Ok(rmp_serde::to_vec_named(&self.0)?)
    }
}

#[cfg(feature = "msgpack")]
impl<T: serde::de::DeserializeOwned> MsgPack<T> {
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, String> {
        use rmp_serde::decode::Error;

        let describe = |error| match error {
            Error::InvalidMarkerRead(_) | Error::InvalidDataRead(_) => {
                "the payload is MessagePack that ends too early".to_owned()
            }
            Error::DepthLimitExceeded => "the payload is nested too deep".to_owned(),
            Error::Syntax(text) => shape_fault("MessagePack", &text),
            // The texts of other errors quote numbers of the payload.
            _ => "the payload is MessagePack of another shape".to_owned(),
        };
        let mut deserializer = rmp_serde::Deserializer::new(std::io::Cursor::new(payload));
        deserializer.set_max_depth(MAX_DEPTH);
        let value = T::deserialize(&mut deserializer).map_err(describe)?;
        match payload.len() as u64 - deserializer.position() {
            0 => Ok(Self(value)),
            rest => Err(format!(
                "the payload has {rest} bytes behind its MessagePack value"
            )),
        }
    }
}

#[cfg(feature = "cbor")]
codec! {
    /// CBOR: an extractor, a reply, and a payload to send. The feature `cbor`.
    ///
    /// It behaves like [`Json`](crate::Json), except that a message or a reply is sent with the
    /// header `content-type: application/cbor`, and is rejected without this header.
    ///
    /// ```
    /// use campanile::{Client, Cbor, Router};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), campanile::Error> {
    /// let app: Router = Router::new().rpc("double", async |Cbor(n): Cbor<u32>| Cbor(2 * n));
    /// let Cbor(n): Cbor<u32> = Client::new(app).request("double", Cbor(21)).await?;
    /// assert_eq!(n, 42);
    /// # Ok(())
    /// # }
    /// ```
    Cbor
}

#[cfg(feature = "cbor")]
impl<T: serde::Serialize> Cbor<T> {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, BoxError> {
        let mut bytes = Vec::new();
        ciborium::into_writer(&self.0, &mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(feature = "cbor")]
impl<T: serde::de::DeserializeOwned> Cbor<T> {
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, String> {
        use ciborium::de::Error;

        let mut rest = payload;
        let value = ciborium::de::from_reader_with_recursion_limit(&mut rest, MAX_DEPTH);
        let value = value.map_err(|error| match error {
            Error::Io(_) => "the payload is CBOR that ends too early".to_owned(),
            Error::Syntax(at) => format!("the payload is not CBOR, at byte {at}"),
            Error::Semantic(_, text) => shape_fault("CBOR", &text),
            Error::RecursionLimitExceeded => "the payload is nested too deep".to_owned(),
        })?;
        match rest.len() {
            0 => Ok(Self(value)),
            rest => Err(format!(
                "the payload has {rest} bytes behind its CBOR value"
            )),
        }
    }
}

/// The maximum nesting of a payload, the same as that of `serde_json`.
#[cfg(any(feature = "msgpack", feature = "cbor"))]
const MAX_DEPTH: usize = 128;

#[cfg(feature = "protobuf")]
codec! {
    /// Protocol Buffers, with prost: an extractor, a reply, and a payload to send. The feature
    /// `protobuf`.
    ///
    /// It behaves like [`Json`](crate::Json), except that a message or a reply is sent with the
    /// header `content-type: application/protobuf`, and is rejected without this header. An empty
    /// payload is a message whose fields have their defaults.
    ///
    /// ```
    /// use campanile::{Client, Protobuf, Router};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), campanile::Error> {
    /// // prost implements `Message` also for `u64`. Usually the type is a generated message.
    /// let app: Router = Router::new().rpc("double", async |Protobuf(n): Protobuf<u64>| Protobuf(2 * n));
    /// let Protobuf(n): Protobuf<u64> = Client::new(app).request("double", Protobuf(21)).await?;
    /// assert_eq!(n, 42);
    /// # Ok(())
    /// # }
    /// ```
    Protobuf
}

#[cfg(feature = "protobuf")]
impl<T: prost::Message> Protobuf<T> {
    #[expect(clippy::unnecessary_wraps, reason = "the signature of every codec")]
    pub(crate) fn encode(&self) -> Result<Vec<u8>, BoxError> {
        Ok(self.0.encode_to_vec())
    }
}

#[cfg(feature = "protobuf")]
impl<T: prost::Message + Default> Protobuf<T> {
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, String> {
        let describe = |error| format!("the payload is no protobuf message of this type: {error}");
        T::decode(payload).map(Self).map_err(describe)
    }
}

/// Implements [`IntoPayload`](super::IntoPayload).
macro_rules! into_payload {
    ([$($codec:tt)*], [$($write:tt)*], [$($read:tt)*]) => {
        impl<T: $($write)*> super::IntoPayload for $($codec)*<T> {
            fn into_payload(self) -> Result<bytes::Bytes, BoxError> {
                Ok(self.encode()?.into())
            }

            fn content_type(&self) -> Option<http::HeaderValue> {
                Some(http::HeaderValue::from_static(Self::CONTENT_TYPE))
            }
        }
    };
}

for_each_codec!(into_payload);
