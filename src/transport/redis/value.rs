//! A decoded response.

use bytes::Bytes;
use redis::{RedisResult, ServerError};

/// A response, or a part of one.
#[derive(Debug, Clone, PartialEq, Default)]
#[allow(unreachable_pub, reason = "the fuzz targets make some")]
pub enum Value {
    #[default]
    Nil,
    Int(i64),
    /// A string of any bytes.
    Text(Bytes),
    Array(Vec<Value>),
    /// A map. Only with RESP3.
    Map(Vec<(Value, Value)>),
    /// A value that was sent without a request, such as a published message. Only with RESP3.
    Push(Vec<Value>),
    /// An error of the server.
    ServerError(ServerError),
    /// A value that none of our commands or scripts returns.
    Other,
}

impl Value {
    /// Turns a server's error into an `Err`.
    pub(super) fn into_result(self) -> RedisResult<Self> {
        match self {
            Value::ServerError(error) => Err(error.into()),
            value => Ok(value),
        }
    }
}
