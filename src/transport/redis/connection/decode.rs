//! Decodes RESP2 and RESP3, incrementally.
//!
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>

use bytes::{Buf, Bytes, BytesMut};
use redis::{ErrorKind, RedisError, RedisResult};

use crate::transport::redis::response::{Value, server_error};

/// The maximum size of a line that contains a length, in bytes.
const MAX_LENGTH_LINE: usize = 32;
/// The maximum size of any other line, in bytes.
const MAX_LINE: usize = 1 << 20;
/// The maximum size of a string, in bytes. A larger allocation is impossible.
const MAX_STRING: usize = isize::MAX as usize;
/// The maximum nesting of aggregates. Responses to this crate's commands and scripts nest four
/// deep.
const MAX_DEPTH: usize = 16;
/// The maximum number of elements for which memory is allocated in advance. Bounded, because the
/// announced length may be wrong.
const PREALLOCATED: usize = 4096;

/// Decodes the values of one connection.
///
/// A value may have thousands of elements and arrive in many pieces. Each element is decoded once,
/// and strings are slices of the read buffer.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// The incomplete aggregates, the outermost first.
    open: Vec<OpenAggregate>,
}

/// An aggregate with its elements so far.
#[derive(Debug)]
struct OpenAggregate {
    kind: Aggregate,
    /// The number of elements that are not decoded yet.
    missing: usize,
    elements: Vec<Value>,
}

/// The kind of an aggregate.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Aggregate {
    /// An array or a set. RESP2 sends both as an array.
    Array,
    Map,
    Push,
    /// Attributes of the next value. They are ignored.
    Attribute,
}

/// The smallest part of the input that is decoded at a time.
enum Element {
    /// A value that is not an aggregate, or a null.
    Value(Value),
    /// The start of an aggregate with this many elements.
    Start(Aggregate, usize),
}

impl Decoder {
    /// Decodes the next value. Returns `None` if it is incomplete. After an error the input cannot
    /// be decoded any further.
    pub(super) fn decode(&mut self, input: &mut BytesMut) -> RedisResult<Option<Value>> {
        while let Some(element) = decode_element(input)? {
            let mut value = match element {
                Element::Value(value) => value,
                Element::Start(kind, missing) if missing > 0 => {
                    if self.open.len() == MAX_DEPTH {
                        return Err(malformed("aggregates are nested too deep"));
                    }
                    let elements = Vec::with_capacity(missing.min(PREALLOCATED));
                    self.open.push(OpenAggregate {
                        kind,
                        missing,
                        elements,
                    });
                    continue;
                }
                Element::Start(Aggregate::Attribute, _) => continue,
                Element::Start(kind, _) => kind.into_value(Vec::new()),
            };
            loop {
                let Some(open) = self.open.last_mut() else {
                    return Ok(Some(value));
                };
                open.elements.push(value);
                open.missing -= 1;
                if open.missing > 0 {
                    break;
                }
                let OpenAggregate { kind, elements, .. } = self.open.pop().expect("it is the last");
                if kind == Aggregate::Attribute {
                    break;
                }
                value = kind.into_value(elements);
            }
        }
        Ok(None)
    }
}

impl Aggregate {
    /// Makes the value of a complete aggregate.
    fn into_value(self, elements: Vec<Value>) -> Value {
        match self {
            Aggregate::Push => Value::Push(elements),
            Aggregate::Map => {
                let mut elements = elements.into_iter();
                let pairs = std::iter::from_fn(|| Some((elements.next()?, elements.next()?)));
                Value::Map(pairs.collect())
            }
            Aggregate::Array | Aggregate::Attribute => Value::Array(elements),
        }
    }
}

/// Decodes the next element. Returns `None` if it is incomplete.
fn decode_element(input: &mut BytesMut) -> RedisResult<Option<Element>> {
    let Some(&kind) = input.first() else {
        return Ok(None);
    };
    let (aggregate, values_per_element) = match kind {
        b'$' | b'=' | b'!' => return decode_string(kind, input),
        b'*' | b'~' => (Aggregate::Array, 1),
        b'>' => (Aggregate::Push, 1),
        b'%' => (Aggregate::Map, 2),
        b'|' => (Aggregate::Attribute, 2),
        _ => return decode_line(kind, input),
    };
    let Some((length, end)) = decode_length(input)? else {
        return Ok(None);
    };
    let element = match length {
        None => Element::Value(Value::Nil),
        Some(length) => {
            let elements = length.checked_mul(values_per_element);
            Element::Start(aggregate, elements.ok_or_else(|| malformed(TOO_LONG))?)
        }
    };
    input.advance(end);
    Ok(Some(element))
}

const TOO_LONG: &str = "a length is too large";

/// Decodes a line with a length. Returns the length and the end of the line. The length is `None`
/// for a RESP2 null. Returns `None` if the line is incomplete.
fn decode_length(input: &[u8]) -> RedisResult<Option<(Option<usize>, usize)>> {
    const NULL: &[u8] = b"-1\r\n";
    let mut length = 0_usize;
    for (at, &byte) in input.iter().enumerate().take(MAX_LENGTH_LINE).skip(1) {
        match byte {
            b'0'..=b'9' => {
                let digit = usize::from(byte - b'0');
                let longer = length.checked_mul(10).and_then(|it| it.checked_add(digit));
                length = longer.ok_or_else(|| malformed(TOO_LONG))?;
            }
            b'\r' if at > 1 => match input.get(at + 1) {
                Some(b'\n') => return Ok(Some((Some(length), at + 2))),
                Some(_) => return Err(malformed("a length is not a number")),
                None => return Ok(None),
            },
            b'-' if input[1..].starts_with(NULL) => return Ok(Some((None, 1 + NULL.len()))),
            b'-' if NULL.starts_with(&input[1..]) => return Ok(None),
            _ => return Err(malformed("a length is not a number")),
        }
    }
    match input.len() < MAX_LENGTH_LINE {
        true => Ok(None),
        false => Err(malformed("a length does not end")),
    }
}

/// Decodes an element with a length: a string, a verbatim string, or a bulk error.
fn decode_string(kind: u8, input: &mut BytesMut) -> RedisResult<Option<Element>> {
    let (length, start) = match decode_length(input)? {
        Some((Some(length), start)) => (length, start),
        Some((None, end)) => {
            input.advance(end);
            return Ok(Some(Element::Value(Value::Nil)));
        }
        None => return Ok(None),
    };
    if length > MAX_STRING {
        return Err(malformed("a string is too long"));
    }
    let end = start + length;
    let Some(rest) = input.get(end..end + 2) else {
        return Ok(None);
    };
    if rest != b"\r\n" {
        return Err(malformed("a string has another length"));
    }
    let mut string = input.split_to(end + 2).freeze();
    string.truncate(end);
    string.advance(start);
    Ok(Some(Element::Value(match kind {
        b'!' => server_error(&string),
        b'=' => {
            // A verbatim string begins with a format, as in `txt:`.
            if string.get(3) != Some(&b':') {
                return Err(malformed("a verbatim string without a format"));
            }
            Value::Text(string.split_off(4))
        }
        _ => Value::Text(string),
    })))
}

/// Decodes an element of one line.
fn decode_line(kind: u8, input: &mut BytesMut) -> RedisResult<Option<Element>> {
    if !b"+-:_#,(".contains(&kind) {
        return Err(malformed("an unknown type"));
    }
    let Some(end) = input.iter().take(MAX_LINE).position(|&byte| byte == b'\n') else {
        return match input.len() < MAX_LINE {
            true => Ok(None),
            false => Err(malformed("a line does not end")),
        };
    };
    let Some(text) = input[1..end].strip_suffix(b"\r") else {
        return Err(malformed("a line ends without a carriage return"));
    };
    // The types of RESP3 are mapped to their equivalents in RESP2.
    let value = match (kind, text) {
        (b'-', _) => server_error(text),
        (b':', _) => {
            let number = std::str::from_utf8(text).ok();
            let number = number.and_then(|number| number.parse().ok());
            Value::Int(number.ok_or_else(|| malformed("an integer is not a number"))?)
        }
        (b'_', b"") => Value::Nil,
        (b'#', b"t") => Value::Int(1),
        (b'#', b"f") => Value::Int(0),
        (b'_' | b'#', _) => return Err(malformed("neither null, true nor false")),
        _ => Value::Text(Bytes::copy_from_slice(text)),
    };
    input.advance(end + 1);
    Ok(Some(Element::Value(value)))
}

fn malformed(why: &str) -> RedisError {
    let text = "the server does not speak RESP";
    (ErrorKind::Parse, text, why.to_owned()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &str) -> RedisResult<Option<Value>> {
        Decoder::default().decode(&mut bytes.as_bytes().into())
    }

    #[test]
    fn aggregates_that_nest_too_deep_are_an_error() {
        let nested = |depth| format!("{}*0\r\n", "*1\r\n".repeat(depth));
        assert!(decoded(&nested(MAX_DEPTH)).unwrap().is_some());
        decoded(&nested(MAX_DEPTH + 1)).unwrap_err();
    }

    #[test]
    fn a_length_is_a_number_that_ends() {
        for (bytes, waits) in [
            ("*", true),
            ("*12\r", true),
            ("*1000000000000\r\n", true),
            ("*\r\n", false),
            ("*-2\r\n", false),
            ("*1\n", false),
            ("*99999999999999999999\r\n", false),
            ("$+1\r\na\r\n", false),
            ("$1\r\na", true),
            ("$1\r\na\r", true),
            ("$1\r\nab\n", false),
            ("$1000000000000\r\n", true),
            ("$18446744073709551615\r\n", false),
        ] {
            assert_eq!(matches!(decoded(bytes), Ok(None)), waits, "{bytes:?}");
        }
        for kind in ["*", "$"] {
            let endless = kind.to_owned() + &"1".repeat(MAX_LENGTH_LINE);
            decoded(&endless).unwrap_err();
            let nothing = decoded(&format!("{kind}-1\r\n"));
            assert_eq!(nothing.unwrap(), Some(Value::Nil));
        }
    }

    #[test]
    fn decoded_bytes_are_not_kept() {
        let mut decoder = Decoder::default();
        let mut input = BytesMut::from("*3\r\n:1\r\n$2\r\na");
        assert!(decoder.decode(&mut input).unwrap().is_none());
        assert_eq!(&input[..], b"$2\r\na");
        input.extend_from_slice(b"b\r\n+c\r\n:2\r\n");
        let texts = ["ab", "c"].map(|text| Value::Text(text.into()));
        let [b, c] = texts;
        let list = Value::Array(vec![Value::Int(1), b, c]);
        assert_eq!(decoder.decode(&mut input).unwrap(), Some(list));
        assert_eq!(decoder.decode(&mut input).unwrap(), Some(Value::Int(2)));
    }

    #[test]
    fn types_of_resp3_are_decoded_as_their_equivalents_in_resp2() {
        let text = |text: &'static str| Value::Text(text.into());
        for (bytes, expected) in [
            ("_\r\n", Value::Nil),
            ("#t\r\n", Value::Int(1)),
            ("#f\r\n", Value::Int(0)),
            (",1.25\r\n", text("1.25")),
            (",inf\r\n", text("inf")),
            (
                "(3492890328409238509324850943850943825024385\r\n",
                text("3492890328409238509324850943850943825024385"),
            ),
            ("=8\r\ntxt:a\r\nb\r\n", text("a\r\nb")),
            (
                "~2\r\n:1\r\n+a\r\n",
                Value::Array(vec![Value::Int(1), text("a")]),
            ),
            (
                "%1\r\n+a\r\n*0\r\n",
                Value::Map(vec![(text("a"), Value::Array(vec![]))]),
            ),
            ("%0\r\n", Value::Map(vec![])),
            (
                ">2\r\n+pubsub\r\n:1\r\n",
                Value::Push(vec![text("pubsub"), Value::Int(1)]),
            ),
            ("|1\r\n+ttl\r\n:3\r\n:7\r\n", Value::Int(7)),
            (
                "*1\r\n|1\r\n+ttl\r\n:3\r\n:7\r\n",
                Value::Array(vec![Value::Int(7)]),
            ),
            ("|0\r\n:7\r\n", Value::Int(7)),
        ] {
            assert_eq!(decoded(bytes).unwrap(), Some(expected), "{bytes:?}");
            for end in 0..bytes.len() {
                assert!(
                    decoded(&bytes[..end]).unwrap().is_none(),
                    "{bytes:?} until {end}"
                );
            }
        }
        let Some(Value::ServerError(error)) = decoded("!12\r\nOOM a\r\nlot b\r\n").unwrap() else {
            panic!("no error");
        };
        assert_eq!((error.code(), error.details()), ("OOM", Some("a  lot b")));
        for bytes in [
            "#x\r\n",
            "_x\r\n",
            "=3\r\ntxt\r\n",
            "*?\r\n",
            "$?\r\n",
            "%99999999999999999999\r\n",
            "%18446744073709551615\r\n",
            ":x\r\n",
            "+a\n",
        ] {
            decoded(bytes).expect_err(bytes);
        }
    }
}
