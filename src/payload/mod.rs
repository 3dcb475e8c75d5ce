//! Typed payloads: [`Json`], other formats, and raw bytes.
//!
//! ```
//! use campanile::{IntoPayload, Json};
//!
//! let payload = Json(("a", 1)).into_payload().unwrap();
//! assert_eq!(payload, r#"["a",1]"#);
//! ```

#[cfg(any(feature = "cbor", feature = "msgpack", feature = "protobuf"))]
mod codec;
mod content_type;
mod fault;
mod json;
mod read;

use std::ops::{Deref, DerefMut};

use bytes::Bytes;
use http::HeaderValue;
use serde::Serialize;

#[cfg(feature = "cbor")]
pub use self::codec::Cbor;
#[cfg(feature = "msgpack")]
pub use self::codec::MsgPack;
#[cfg(feature = "protobuf")]
pub use self::codec::Protobuf;
#[cfg(any(feature = "cbor", feature = "msgpack", feature = "protobuf"))]
pub(crate) use self::codec::for_each_codec;
pub(crate) use self::content_type::Format;
use crate::error::BoxError;

/// JSON: an extractor, a reply, and a payload to send.
///
/// As an extractor it rejects a payload that is not the JSON of a `T`. A task with such a payload
/// becomes a dead letter at once, since a retry would get the same payload. A request is answered
/// with `invalid`.
///
/// A message is rejected if its header `content-type` names another format, or if it is compressed.
/// `Json` itself writes no header: a message without a content type is JSON.
///
/// A float that is NaN or infinite cannot be sent: JSON has no number for it. `serde_json` would
/// write `null`, which a receiver reads as another value.
///
/// ```
/// use campanile::{Client, Json, Router};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Order {
///     id: u64,
/// }
///
/// async fn price(Json(order): Json<Order>) -> Json<u64> {
///     Json(100 * order.id)
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), campanile::Error> {
/// let app: Router = Router::new().rpc("orders.price", price);
/// let Json(price): Json<u64> = Client::new(app).request("orders.price", Json(Order { id: 7 })).await?;
/// assert_eq!(price, 700);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Json<T>(pub T);

impl<T> Deref for Json<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Json<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T> From<T> for Json<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

/// A type that can be sent as the payload of a message.
///
/// ```
/// use bytes::Bytes;
/// use campanile::{BoxError, Client, IntoPayload, Router};
///
/// struct Celsius(i32);
///
/// impl IntoPayload for Celsius {
///     fn into_payload(self) -> Result<Bytes, BoxError> {
///         self.0.to_string().into_payload()
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), campanile::Error> {
/// let app: Router = Router::new().task("measured", async |it: String| assert_eq!(it, "21"));
/// Client::new(app).enqueue("measured", Celsius(21)).await?;
/// # Ok(())
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a payload",
    label = "this cannot be sent",
    note = "send `()`, `Json(value)`, `Bytes`, `Vec<u8>`, `&[u8]`, `String` or `&str`"
)]
pub trait IntoPayload {
    /// Converts the value into a payload.
    ///
    /// # Errors
    /// If the value cannot be serialized.
    fn into_payload(self) -> Result<Bytes, BoxError>;

    /// Returns the value of the header `content-type`, which is sent with the payload. By default
    /// this is `None`, and no header is sent. The receiver then has to know the format. The
    /// extractor [`Json`] reads a payload without the header as JSON.
    fn content_type(&self) -> Option<HeaderValue> {
        None
    }
}

impl IntoPayload for () {
    fn into_payload(self) -> Result<Bytes, BoxError> {
        Ok(Bytes::new())
    }
}

impl IntoPayload for Bytes {
    fn into_payload(self) -> Result<Bytes, BoxError> {
        Ok(self)
    }
}

impl IntoPayload for Vec<u8> {
    fn into_payload(self) -> Result<Bytes, BoxError> {
        Ok(self.into())
    }
}

impl IntoPayload for String {
    fn into_payload(self) -> Result<Bytes, BoxError> {
        Ok(self.into())
    }
}

impl IntoPayload for &str {
    fn into_payload(self) -> Result<Bytes, BoxError> {
        Ok(Bytes::copy_from_slice(self.as_bytes()))
    }
}

impl IntoPayload for &[u8] {
    fn into_payload(self) -> Result<Bytes, BoxError> {
        Ok(Bytes::copy_from_slice(self))
    }
}

impl<T: Serialize> IntoPayload for Json<T> {
    fn into_payload(self) -> Result<Bytes, BoxError> {
        Ok(json::to_vec(&self.0)?.into())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    #[derive(Serialize)]
    enum Shape {
        Unit,
        New(f32),
        Pair(f64, Option<u8>),
        Named { radius: f64, nothing: () },
    }

    #[test]
    fn a_nan_or_infinity_is_refused_at_any_depth() {
        fn refused(value: impl Serialize) {
            let error = Json(value).into_payload().unwrap_err();
            assert_eq!(
                error.to_string(),
                "JSON has no number for NaN or an infinity"
            );
        }
        refused(f64::NAN);
        refused(f32::NEG_INFINITY);
        refused(Some(f64::INFINITY));
        refused(vec![None, Some(f64::NAN)]);
        refused((1, "a", [f32::NAN]));
        refused(BTreeMap::from([("a", f64::NAN)]));
        let error = |shape: Shape| Json(shape).into_payload().unwrap_err();
        error(Shape::New(f32::NAN));
        error(Shape::Pair(f64::NAN, None));
        error(Shape::Named {
            radius: f64::NAN,
            nothing: (),
        });
    }

    #[test]
    fn values_that_are_null_in_json_are_sent() {
        let sent = |value: serde_json::Value| {
            let payload = Json(&value).into_payload().unwrap();
            let read: serde_json::Value = serde_json::from_slice(&payload).unwrap();
            assert_eq!(read, value);
        };
        sent(json!(null));
        sent(json!({ "a": [null, 1.5, -0.0, "null", true, i64::MIN, u64::MAX], "null": {} }));
        let text = |shape: Shape| Json(shape).into_payload().unwrap();
        assert_eq!(text(Shape::Unit), r#""Unit""#);
        assert_eq!(text(Shape::New(1.5)), r#"{"New":1.5}"#);
        assert_eq!(text(Shape::Pair(2.5, None)), r#"{"Pair":[2.5,null]}"#);
        let named = Shape::Named {
            radius: 1.0,
            nothing: (),
        };
        assert_eq!(text(named), r#"{"Named":{"radius":1.0,"nothing":null}}"#);
        assert_eq!(
            Json(u128::MAX).into_payload().unwrap(),
            u128::MAX.to_string()
        );
        let keys = BTreeMap::from([(7, None::<u8>)]);
        assert_eq!(Json(keys).into_payload().unwrap(), r#"{"7":null}"#);
    }
}
