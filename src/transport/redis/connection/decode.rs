//! Answers in RESP2, in whatever pieces they come.
//!
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>

use bytes::{Buf, Bytes, BytesMut};
use redis::{ErrorKind, RedisError, RedisResult};
use redis_protocol::resp2::{decode::decode_range, types::RangeFrame};

use crate::transport::redis::response::Value;

/// How long the head of a list or a text may be, with its length.
const HEAD: usize = 32;
/// How many bytes a text may have: there is no memory for more.
const LARGEST: usize = isize::MAX as usize;
/// How deep lists may stand in each other. Scripts and commands of ours are answered with four.
const DEPTH: usize = 16;
/// For how many elements there is room from the start, whatever the head promises.
const ROOM: usize = 4096;

/// Takes answers out of what has come. An answer may have a thousand entries and come in many
/// pieces: what it has taken apart it does not look at again, and texts are slices of what was read.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// The lists of which elements are missing, the outermost first.
    open: Vec<List>,
}

#[derive(Debug)]
struct List {
    missing: usize,
    elements: Vec<Value>,
}

enum Element {
    Whole(Value),
    /// The head of a list that has this many.
    Head(usize),
}

impl Answers {
    /// The next answer, if it has come whole. The error says that this is not RESP2, and nothing
    /// can be read after it.
    pub(super) fn take(&mut self, read: &mut BytesMut) -> RedisResult<Option<Value>> {
        while let Some(element) = element(read)? {
            let mut value = match element {
                Element::Head(missing @ 1..) => {
                    if self.open.len() == DEPTH {
                        return Err(malformed("lists stand too deep in each other".into()));
                    }
                    let elements = Vec::with_capacity(missing.min(ROOM));
                    self.open.push(List { missing, elements });
                    continue;
                }
                Element::Head(0) => Value::Array(Vec::new()),
                Element::Whole(value) => value,
            };
            loop {
                let Some(list) = self.open.last_mut() else {
                    return Ok(Some(value));
                };
                list.elements.push(value);
                list.missing -= 1;
                if list.missing > 0 {
                    break;
                }
                value = Value::Array(std::mem::take(&mut list.elements));
                self.open.pop();
            }
        }
        Ok(None)
    }
}

/// The next element, if it has come whole.
fn element(read: &mut BytesMut) -> RedisResult<Option<Element>> {
    match read.first() {
        Some(b'*') => Ok(head(read)?.map(|(count, end)| {
            read.advance(end);
            count.map_or(Element::Whole(Value::Nil), Element::Head)
        })),
        Some(b'$') => text(read),
        _ => other(read),
    }
}

/// The head of a list or a text, if it has come whole: how many elements or bytes follow, or that
/// there is none, and where it ends.
fn head(read: &[u8]) -> RedisResult<Option<(Option<usize>, usize)>> {
    let Some(end) = read.iter().take(HEAD).position(|&byte| byte == b'\n') else {
        return match read.len() < HEAD {
            true => Ok(None),
            false => Err(malformed("a length that does not end".into())),
        };
    };
    let number = match read[1..end].strip_suffix(b"\r") {
        Some(b"-1") => None,
        Some(digits @ [_, ..]) if digits.iter().all(u8::is_ascii_digit) => {
            let mut digits = digits.iter().map(|digit| usize::from(digit - b'0'));
            let number = digits.try_fold(0_usize, |number, digit| {
                number.checked_mul(10)?.checked_add(digit)
            });
            Some(number.ok_or_else(|| malformed("a length that is too long".into()))?)
        }
        _ => return Err(malformed("a length is no number".into())),
    };
    Ok(Some((number, end + 1)))
}

/// A text of any bytes: the most frequent element by far.
fn text(read: &mut BytesMut) -> RedisResult<Option<Element>> {
    let (length, from) = match head(read)? {
        Some((Some(length), from)) => (length, from),
        Some((None, end)) => {
            read.advance(end);
            return Ok(Some(Element::Whole(Value::Nil)));
        }
        None => return Ok(None),
    };
    if length > LARGEST {
        return Err(malformed("a text is too long".into()));
    }
    let end = from + length;
    let Some(rest) = read.get(end..end + 2) else {
        return Ok(None);
    };
    if rest != b"\r\n" {
        return Err(malformed("a text has another length".into()));
    }
    read.advance(from);
    let text = read.split_to(length).freeze();
    read.advance(2);
    Ok(Some(Element::Whole(Value::Text(text))))
}

/// What is neither a list nor a text of any bytes.
fn other(read: &mut BytesMut) -> RedisResult<Option<Element>> {
    let decoded = decode_range(read).map_err(|error| malformed(error.to_string()))?;
    let Some((frame, length)) = decoded else {
        return Ok(None);
    };
    let value = match frame {
        RangeFrame::SimpleString((from, to)) => {
            Value::Text(Bytes::copy_from_slice(&read[from..to]))
        }
        RangeFrame::Integer(number) => Value::Int(number),
        RangeFrame::Null => Value::Nil,
        // The driver alone makes its errors.
        RangeFrame::Error(_) => {
            redis::parse_redis_value(&read[..length]).map_or(Value::Other, Value::from)
        }
        RangeFrame::Array(_) | RangeFrame::BulkString(_) => unreachable!("their heads tell them"),
    };
    read.advance(length);
    Ok(Some(Element::Whole(value)))
}

fn malformed(why: String) -> RedisError {
    (ErrorKind::Parse, "what came is not RESP2", why).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(said: &str) -> RedisResult<Option<Value>> {
        Answers::default().take(&mut said.as_bytes().into())
    }

    #[test]
    fn lists_stand_in_each_other_only_so_deep() {
        let nested = |depth| format!("{}*0\r\n", "*1\r\n".repeat(depth));
        assert!(taken(&nested(DEPTH)).unwrap().is_some());
        taken(&nested(DEPTH + 1)).unwrap_err();
    }

    #[test]
    fn a_length_is_a_number_that_ends() {
        for (said, waits) in [
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
            assert_eq!(matches!(taken(said), Ok(None)), waits, "{said:?}");
        }
        for kind in ["*", "$"] {
            let endless = kind.to_owned() + &"1".repeat(HEAD);
            taken(&endless).unwrap_err();
            let nothing = taken(&format!("{kind}-1\r\n"));
            assert_eq!(nothing.unwrap(), Some(Value::Nil));
        }
    }

    #[test]
    fn what_was_taken_apart_is_not_kept() {
        let mut answers = Answers::default();
        let mut read = BytesMut::from("*3\r\n:1\r\n$2\r\na");
        assert!(answers.take(&mut read).unwrap().is_none());
        assert_eq!(&read[..], b"$2\r\na");
        read.extend_from_slice(b"b\r\n+c\r\n:2\r\n");
        let texts = ["ab", "c"].map(|text| Value::Text(text.into()));
        let [b, c] = texts;
        let list = Value::Array(vec![Value::Int(1), b, c]);
        assert_eq!(answers.take(&mut read).unwrap(), Some(list));
        assert_eq!(answers.take(&mut read).unwrap(), Some(Value::Int(2)));
    }
}
