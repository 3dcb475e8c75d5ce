//! Responses to commands and scripts, with one value or all values replaced.
#![no_main]

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use campanile::fuzzing::{self, Decode, Value};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
enum Response {
    Nil,
    Other,
    Int(i64),
    Text(Vec<u8>),
    Id(u64, u64),
    List(Vec<Response>),
    Map(Vec<(Response, Response)>),
}

impl Response {
    fn value(self) -> Value {
        let all = |list: Vec<Response>| list.into_iter().map(Response::value).collect();
        match self {
            Response::Nil => Value::Nil,
            Response::Other => Value::Other,
            Response::Int(number) => Value::Int(number),
            Response::Text(text) => Value::Text(text.into()),
            Response::Id(milliseconds, sequence) => {
                Value::Text(format!("{milliseconds}-{sequence}").into())
            }
            Response::List(list) => Value::Array(all(list)),
            Response::Map(pairs) => {
                let pairs = pairs.into_iter();
                Value::Map(
                    pairs
                        .map(|(key, value)| (key.value(), value.value()))
                        .collect(),
                )
            }
        }
    }
}

/// Replaces the value at a position, if there is one. A list comes before its elements. Returns the
/// number of positions in `value` that were passed.
fn replace_at(value: &mut Value, position: usize, replacement: &Value) -> usize {
    if position == 0 {
        *value = replacement.clone();
        return 1;
    }
    let mut passed = 1;
    if let Value::Array(list) = value {
        for element in list {
            if passed <= position {
                passed += replace_at(element, position - passed, replacement);
            }
        }
    }
    passed
}

static DECODERS: LazyLock<Vec<(&str, Value, Decode)>> = LazyLock::new(fuzzing::decoders);

fuzz_target!(|input: (Response, u8, u8)| {
    let (replacement, decoder, position) = input;
    let replacement = replacement.value();
    let (source, example, decode) = &DECODERS[usize::from(decoder) % DECODERS.len()];
    let mut response = example.clone();
    replace_at(&mut response, usize::from(position % 32), &replacement);
    for response in [response, replacement] {
        if let Err(error) = decode(response) {
            assert!(error.is_decode(), "{source}: {error}");
            assert!(error.to_string().len() < 400, "{source}: {error}");
        }
    }
});
