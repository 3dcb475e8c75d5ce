//! Decodes the server's responses.
//!
//! A response of an unexpected form is an error. It must not be decoded as an empty response: it
//! may contain entries that the server has made pending for this consumer.

use bytes::Bytes;

use super::error;
pub(super) use super::value::Value;
use crate::error::{Error, ErrorKind};

/// Makes a server error from its text. The first word of the text is the error code.
pub(super) fn server_error(text: &[u8]) -> Value {
    // Only redis-rs can make a `ServerError`, by parsing a line.
    let text = String::from_utf8_lossy(text).replace(['\r', '\n'], " ");
    match redis::parse_redis_value(format!("-{text}\r\n").as_bytes()) {
        Ok(redis::Value::ServerError(error)) => Value::ServerError(error::inner_error(error)),
        _ => Value::Other,
    }
}

/// Returns the error for a response with `found` instead of `expected`. Both texts describe the
/// form of a value. They never quote a value, which may be a payload.
pub(super) fn unexpected(expected: &str, found: &str) -> Error {
    Error::new(
        ErrorKind::Decode,
        format!(
            "Redis answered with {found} in place of {expected}; is it Redis 6.2 or newer, without \
             a proxy that changes its answers?"
        ),
    )
}

/// Describes the form of a value.
pub(super) fn form(value: &Value) -> &'static str {
    match value {
        Value::Nil => "nothing",
        Value::Int(_) => "a number",
        Value::Array(_) => "a list",
        Value::Text(_) => "a text",
        Value::Map(_) => "a map",
        Value::ServerError(_) => "an error",
        Value::Push(_) | Value::Other => "something else",
    }
}

/// Returns the error for a list with `found` elements instead of `expected`.
pub(super) fn wrong_length(expected: usize, found: usize) -> Error {
    unexpected(&format!("a list of {expected}"), &format!("one of {found}"))
}

/// Decodes a list.
pub(super) fn array(value: Value) -> Result<Vec<Value>, Error> {
    match value {
        Value::Array(list) => Ok(list),
        other => Err(unexpected("a list", form(&other))),
    }
}

/// Decodes a list of `N` values.
pub(super) fn fixed_array<const N: usize>(value: Value) -> Result<[Value; N], Error> {
    array(value)?
        .try_into()
        .map_err(|list: Vec<_>| wrong_length(N, list.len()))
}

/// Decodes a list of `N` numbers.
pub(super) fn integers<const N: usize>(value: Value) -> Result<[i64; N], Error> {
    let mut numbers = [0; N];
    for (number, value) in numbers.iter_mut().zip(fixed_array::<N>(value)?) {
        *number = integer(&value)?;
    }
    Ok(numbers)
}

/// Decodes a string of any bytes.
pub(super) fn bytes(value: Value) -> Result<Bytes, Error> {
    match value {
        Value::Text(text) => Ok(text),
        other => Err(unexpected("a text", form(&other))),
    }
}

/// Decodes a string. Invalid UTF-8 is replaced.
pub(super) fn text(value: Value) -> Result<String, Error> {
    Ok(String::from_utf8_lossy(&bytes(value)?).into_owned())
}

/// Decodes a number, or a string that contains a number.
pub(super) fn integer(value: &Value) -> Result<i64, Error> {
    let number = match value {
        Value::Int(number) => Some(*number),
        Value::Text(text) => std::str::from_utf8(text)
            .ok()
            .and_then(|text| text.parse().ok()),
        _ => None,
    };
    number.ok_or_else(|| unexpected("a number", form(value)))
}

/// Decodes a number that must not be negative.
pub(super) fn count(value: &Value) -> Result<u64, Error> {
    u64::try_from(integer(value)?).map_err(|_| unexpected("a count", "a number below zero"))
}

/// Decodes a hash: a flat list of fields and values, or a map.
pub(super) fn fields(list: Value) -> Result<Vec<(Bytes, Bytes)>, Error> {
    let list = match list {
        // Only with RESP3.
        Value::Map(pairs) => {
            let pairs = pairs.into_iter();
            return pairs
                .map(|(field, value)| Ok((bytes(field)?, bytes(value)?)))
                .collect();
        }
        list => array(list)?,
    };
    let mut fields = Vec::with_capacity(list.len() / 2);
    let mut list = list.into_iter();
    while let Some(field) = list.next() {
        let value = list.next().unwrap_or_default();
        fields.push((bytes(field)?, bytes(value)?));
    }
    Ok(fields)
}

/// Finds the value of a key in a map. RESP2 sends a map as a flat list of keys and values.
pub(super) fn map_value(map: Value, key: &str) -> Result<Value, Error> {
    let found = match map {
        Value::Map(pairs) => pairs.into_iter().find_map(|(name, value)| {
            let name = bytes(name).ok()?;
            (name == key).then_some(value)
        }),
        list => {
            let mut list = array(list)?.into_iter();
            std::iter::from_fn(|| Some((list.next()?, list.next()?))).find_map(|(name, value)| {
                let name = bytes(name).ok()?;
                (name == key).then_some(value)
            })
        }
    };
    found.ok_or_else(|| unexpected(&format!("a map with `{key}`"), "one without"))
}
