//! Answers of commands and scripts, with one value or all values replaced.
#![no_main]

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use campanile::fuzzing::{self, Read, Value};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
enum Answer {
    Nil,
    Other,
    Int(i64),
    Text(Vec<u8>),
    Id(u64, u64),
    List(Vec<Answer>),
    Map(Vec<(Answer, Answer)>),
}

impl Answer {
    fn value(self) -> Value {
        let all = |list: Vec<Answer>| list.into_iter().map(Answer::value).collect();
        match self {
            Answer::Nil => Value::Nil,
            Answer::Other => Value::Other,
            Answer::Int(number) => Value::Int(number),
            Answer::Text(text) => Value::Text(text.into()),
            Answer::Id(milliseconds, sequence) => {
                Value::Text(format!("{milliseconds}-{sequence}").into())
            }
            Answer::List(list) => Value::Array(all(list)),
            Answer::Map(pairs) => {
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

/// Replaces the value at a position, if it exists, and counts the positions passed.
fn put(value: &mut Value, place: usize, other: &Value) -> usize {
    if place == 0 {
        *value = other.clone();
        return 1;
    }
    let mut passed = 1;
    if let Value::Array(list) = value {
        for element in list {
            if passed <= place {
                passed += put(element, place - passed, other);
            }
        }
    }
    passed
}

static READERS: LazyLock<Vec<(&str, Value, Read)>> = LazyLock::new(fuzzing::readers);

fuzz_target!(|input: (Answer, u8, u8)| {
    let (answer, reader, place) = input;
    let other = answer.value();
    let (of, answer, read) = &READERS[usize::from(reader) % READERS.len()];
    let mut answer = answer.clone();
    put(&mut answer, usize::from(place % 32), &other);
    for answer in [answer, other] {
        if let Err(error) = read(answer) {
            assert!(error.is_decode(), "{of}: {error}");
            assert!(error.to_string().len() < 400, "{of}: {error}");
        }
    }
});
