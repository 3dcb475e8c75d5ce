//! The JSON Schemas of payload and reply types.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::Value;

use super::Direction;
#[cfg(feature = "cbor")]
use crate::payload::Cbor;
#[cfg(feature = "msgpack")]
use crate::payload::MsgPack;

/// A payload or reply type with a JSON Schema. Implemented for every [`JsonSchema`].
pub trait PayloadSchema {
    /// The content type of the payload.
    const CONTENT_TYPE: &'static str;

    /// Returns the schema (JSON Schema, draft 7).
    #[doc(hidden)]
    fn schema(direction: Direction) -> Value;
}

impl<T: JsonSchema> PayloadSchema for T {
    const CONTENT_TYPE: &'static str = "application/json";

    fn schema(direction: Direction) -> Value {
        schema_of::<T>(direction)
    }
}

fn schema_of<T: JsonSchema>(direction: Direction) -> Value {
    let settings = match direction {
        Direction::Payload => SchemaSettings::draft07().for_deserialize(),
        Direction::Reply => SchemaSettings::draft07().for_serialize(),
    };
    settings.into_generator().into_root_schema_for::<T>().into()
}

/// Implements [`PayloadSchema`] for a codec of serde types. The schema describes the value inside.
#[cfg(any(feature = "msgpack", feature = "cbor"))]
macro_rules! codec_schema {
    ($codec:ident) => {
        impl<T: JsonSchema> PayloadSchema for $codec<T> {
            const CONTENT_TYPE: &'static str = $codec::<T>::CONTENT_TYPE;

            fn schema(direction: Direction) -> Value {
                schema_of::<T>(direction)
            }
        }
    };
}

#[cfg(feature = "msgpack")]
codec_schema!(MsgPack);
#[cfg(feature = "cbor")]
codec_schema!(Cbor);
