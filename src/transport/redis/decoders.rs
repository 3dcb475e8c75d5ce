//! Lists all functions that decode responses, for tests and fuzz targets that pass malformed
//! responses to them.

use std::time::Duration;

#[cfg(feature = "schedule")]
use super::schedules;
use super::{
    backlog, consumer::decoders, dead_letters, messages, producer, producer::schedule::Promoted,
    response::Value, stats, tail, task_feed, tasks, workers,
};
use crate::{error::Error, message::Replicas};

/// A function that decodes a response.
pub(crate) struct ResponseDecoder {
    /// The name of the command or script to which the response belongs.
    pub(crate) source: &'static str,
    /// Decodes a response, and formats everything in it.
    pub(crate) decode: fn(Value) -> Result<String, Error>,
    /// A valid response.
    pub(crate) example: Value,
}

pub(crate) fn all() -> Vec<ResponseDecoder> {
    let mut all = decoders::all();
    all.extend([
        ResponseDecoder {
            source: "XADD",
            decode: |response| Ok(format!("{:?}", producer::decode_accepted(response)?)),
            example: text("7-1"),
        },
        ResponseDecoder {
            source: "WAIT",
            decode: |response| {
                let asked = Replicas {
                    count: 1,
                    within: Duration::from_secs(1),
                };
                Ok(format!(
                    "{:?}",
                    producer::replicas::decode_confirmed(response, asked)?
                ))
            },
            example: list([text("7-1"), Value::Int(1)]),
        },
        ResponseDecoder {
            source: "promote",
            decode: |response| Ok(format!("{:?}", Promoted::decode(response)?)),
            example: list([Value::Int(2), Value::Int(0), Value::Int(-1)]),
        },
        ResponseDecoder {
            source: "stats",
            decode: |response| Ok(format!("{:?}", stats::decode(response, "g".into())?)),
            example: list((0..11).map(Value::Int).chain([text("7-1")])),
        },
        ResponseDecoder {
            source: "backlog",
            decode: |response| Ok(format!("{:?}", backlog::decode(response)?)),
            example: list((0..9).map(Value::Int)),
        },
        ResponseDecoder {
            source: "bound",
            decode: |response| Ok(format!("{:?}", producer::bound::decode(response)?)),
            example: list([list([text("g")].into_iter().chain((0..3).map(Value::Int)))]),
        },
        ResponseDecoder {
            source: "XINFO GROUPS",
            decode: |response| Ok(format!("{:?}", stats::name(response)?)),
            example: list(
                ["name", "g", "pending"]
                    .map(text)
                    .into_iter()
                    .chain([Value::Int(0)]),
            ),
        },
        ResponseDecoder {
            source: "XINFO CONSUMERS",
            decode: |response| Ok(format!("{:?}", stats::consumer(response)?)),
            example: list([
                text("name"),
                text("c"),
                text("pending"),
                Value::Int(2),
                text("idle"),
                Value::Int(5),
            ]),
        },
        ResponseDecoder {
            source: "dead",
            decode: |response| Ok(format!("{:?}", dead_letters::decode_change(response)?)),
            example: list([Value::Int(2), text("7-1"), list([text("7-0")])]),
        },
        ResponseDecoder {
            source: "list_dead",
            decode: |response| Ok(format!("{:?}", dead_letters::decode_page(response)?)),
            example: list([
                list([list([text("7-1"), texts("~g g ~o 3-0")])]),
                Value::Int(1),
            ]),
        },
        ResponseDecoder {
            source: "list_unread",
            decode: |response| Ok(format!("{:?}", messages::decode_waiting(response, false)?)),
            example: list([
                list([list([text("7-1"), texts("~o 3-0 ~a 2 type task name a payload b")])]),
                Value::Int(1),
            ]),
        },
        ResponseDecoder {
            source: "list_pending",
            decode: |response| Ok(format!("{:?}", messages::decode_running(response, true)?)),
            example: list([
                list([list([
                    text("7-1"),
                    text("c"),
                    Value::Int(5),
                    Value::Int(2),
                    texts("type task name a payload b"),
                ])]),
                Value::Int(1),
            ]),
        },
        ResponseDecoder {
            source: "list_due",
            decode: |response| Ok(format!("{:?}", messages::decode_delayed(response, true)?)),
            example: list([
                list([list([text("u"), text("1795430237570"), text("x")])]),
                Value::Int(1),
            ]),
        },
        ResponseDecoder {
            source: "list_parked",
            decode: |response| Ok(format!("{:?}", messages::decode_parked(response)?)),
            example: list([list([
                text("limit:key"),
                Value::Int(3),
                Value::Int(1),
                Value::Int(4),
            ])]),
        },
        ResponseDecoder {
            source: "ZSCAN",
            decode: |response| Ok(format!("{:?}", messages::decode_streams(response)?)),
            example: list([text("0"), texts("orders 7")]),
        },
        ResponseDecoder {
            source: "XRANGE",
            decode: |response| {
                let entries = dead_letters::decode_entries(response)?;
                let letters: Vec<_> = entries.iter().cloned().map(dead_letters::decode).collect();
                Ok(format!("{entries:?} {letters:?}"))
            },
            example: list([list([
                text("7-1"),
                texts("~g g ~o 3-0 ~r it~failed ~a 2 ~d 1795430237570 type task name a"),
            ])]),
        },
        #[cfg(feature = "schedule")]
        ResponseDecoder {
            source: "fire_schedule",
            decode: |response| Ok(format!("{:?}", schedules::decode_fired(response)?)),
            example: list([text("sent"), text("1795430237570"), text("7-1")]),
        },
        #[cfg(feature = "schedule")]
        ResponseDecoder {
            source: "list_schedules",
            decode: |response| Ok(format!("{:?}", schedules::decode_list(response)?)),
            example: list([
                text("1795430237570"),
                text("1"),
                texts("version:s 1 revision:s 1 last:s 1795430237570 group:s g definition:s {} runs:s 7"),
            ]),
        },
        ResponseDecoder {
            source: "list_tasks",
            decode: |response| Ok(format!("{:?}", tasks::listed(response)?)),
            example: list([
                texts("1795430237570 7-1"),
                list([
                    text("7-1"),
                    texts("done a 1 no k 60000 1795430237570 1795430237570 1795430237570 7 70000"),
                ]),
            ]),
        },
        ResponseDecoder {
            source: "history",
            decode: |response| Ok(format!("{:?}", workers::PartOfHistory::decode(response)?)),
            example: list([
                Value::Int(29_923_837),
                list([Value::Int(29_923_836), texts("done 7 l12 7 w30 5")]),
            ]),
        },
        ResponseDecoder {
            source: "HSCAN",
            decode: |response| Ok(format!("{:?}", workers::decode_scan(response)?)),
            example: list([text("0"), texts("campanile-1 {} campanile-2 {}")]),
        },
        ResponseDecoder {
            source: "changes",
            decode: |response| Ok(format!("{:?}", task_feed::decode(response, 1)?)),
            example: list([list([
                text("5-1"),
                list([list([
                    text("7-1"),
                    texts("id 3-0 name a state dead attempt 2 reason failed"),
                ])]),
            ])]),
        },
        ResponseDecoder {
            source: "XREAD of a tail",
            decode: |response| Ok(format!("{:?}", tail::decode(response)?)),
            example: list([list([
                text("s"),
                list([list([text("7-1"), texts("type task name a payload p")])]),
            ])]),
        },
    ]);
    all
}

#[cfg(fuzzing)]
pub(crate) fn entry_id(text: &[u8]) -> Option<String> {
    super::entry::StreamEntryId::parse(text).map(|id| id.to_string())
}

#[cfg(fuzzing)]
pub(crate) fn unpack(blob: &bytes::Bytes) -> Option<Vec<(bytes::Bytes, bytes::Bytes)>> {
    super::msgpack::unpack(blob)
}

pub(super) fn list(elements: impl IntoIterator<Item = Value>) -> Value {
    Value::Array(elements.into_iter().collect())
}

pub(super) fn text(text: &str) -> Value {
    Value::Text(text.to_owned().into())
}

/// Makes a list of texts from words that are separated by spaces.
pub(super) fn texts(words: &str) -> Value {
    list(words.split(' ').map(text))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns values that are not valid inside a response. Only a whole response may be nil.
    fn invalid_values() -> [Value; 3] {
        [
            Value::Nil,
            Value::Map(vec![(Value::Nil, Value::Nil)]),
            Value::Other,
        ]
    }

    /// Returns the number of values in `value`, including itself.
    fn size(value: &Value) -> usize {
        match value {
            Value::Array(list) => 1 + list.iter().map(size).sum::<usize>(),
            _ => 1,
        }
    }

    /// Applies `change` to the value at this position, counted depth-first. Returns the number of
    /// values that were visited.
    fn change_at(value: &mut Value, position: usize, change: &mut dyn FnMut(&mut Value)) -> usize {
        if position == 0 {
            change(value);
        }
        let mut visited = 1;
        if let Value::Array(list) = value {
            for element in list {
                if visited <= position {
                    visited += change_at(element, position - visited, change);
                }
            }
        }
        visited
    }

    fn assert_says_what_to_do(error: &Error) {
        let text = error.to_string();
        if error.is_unreplicated() {
            // The response to the write is valid, and only the response to `WAIT` is wrong.
            assert!(
                error.stored_id().is_some() && text.contains("is stored"),
                "{text}"
            );
            return;
        }
        if error.is_duplicate() || error.is_reused_key() {
            // The number that replaced the valid one happens to be the code of a refused task.
            return;
        }
        assert!(error.is_decode(), "{text}");
        assert!(
            text.contains("in place of") || text.contains("without an id"),
            "{text}"
        );
    }

    /// Replaces one value of a valid response by `other`. Checks that decoding then fails, or has
    /// the same result as before.
    fn check_with_invalid_value(decoder: &ResponseDecoder, position: usize, other: &Value) {
        let expected = (decoder.decode)(decoder.example.clone()).expect(decoder.source);
        let mut response = decoder.example.clone();
        change_at(&mut response, position, &mut |value| *value = other.clone());
        match (decoder.decode)(response.clone()) {
            // A whole response may be nil.
            Ok(_) if position == 0 && *other == Value::Nil => {}
            Ok(found) => assert_eq!(found, expected, "{}: {response:?}", decoder.source),
            Err(error) => assert_says_what_to_do(&error),
        }
    }

    #[test]
    fn one_wrong_value_anywhere_in_a_response_is_an_error_or_loses_nothing() {
        for decoder in all() {
            for position in 0..size(&decoder.example) {
                for other in invalid_values() {
                    check_with_invalid_value(&decoder, position, &other);
                }
            }
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Nil),
            Just(Value::Other),
            any::<i64>().prop_map(Value::Int),
            prop::collection::vec(any::<u8>(), 0..12).prop_map(|bytes| Value::Text(bytes.into())),
            "[0-9]{0,20}-?[0-9]{0,20}".prop_map(|id| Value::Text(id.into())),
            "\\PC{0,8}".prop_map(|text| Value::Text(text.to_owned().into())),
        ];
        leaf.prop_recursive(4, 48, 6, |inner| {
            prop_oneof![
                3 => prop::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
                1 => prop::collection::vec((inner.clone(), inner.clone()), 0..4).prop_map(Value::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn anything_is_read_or_an_error_that_says_what_to_do(response in any_value()) {
            for decoder in all() {
                if let Err(error) = (decoder.decode)(response.clone()) {
                    assert_says_what_to_do(&error);
                }
            }
        }

        #[test]
        fn anything_in_any_place_is_read_or_an_error(
            other in any_value(),
            position in any::<prop::sample::Index>(),
        ) {
            for decoder in all() {
                let mut response = decoder.example.clone();
                let position = position.index(size(&response));
                change_at(&mut response, position, &mut |value| *value = other.clone());
                if let Err(error) = (decoder.decode)(response) {
                    assert_says_what_to_do(&error);
                }
            }
        }
    }
}
