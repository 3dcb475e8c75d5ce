//! Lists the functions of the consumer that decode responses, for tests and fuzz targets.

use super::{
    claim::ScanStep, clock::ServerClock, fetch, group::Joining, replies, served_names, tick::Tick,
};
use crate::transport::redis::{
    entry::{self, WhichStream},
    readers::{Reader, list, text, texts},
    response::Value,
};

pub(in crate::transport::redis) fn all() -> Vec<Reader> {
    let entry = |id| list([text(id), texts("type task name a payload b")]);
    let claimed = |id| {
        let fields = texts("type task name a payload b");
        list([text(id), Value::Int(2), fields])
    };
    vec![
        Reader {
            of: "fetch",
            read: |answer| {
                let (found, failed, at_limit) = fetch::by_script(answer)?;
                let entries = entry::read(found, which)?;
                Ok(format!("{entries:?} {failed:?} {at_limit}"))
            },
            answer: list([
                list([list([text("s"), list([entry("7-1"), entry("7-2")])])]),
                list([
                    Value::Int(2),
                    text("NOGROUP"),
                    Value::Int(3),
                    text("WRONGTYPE"),
                ]),
                Value::Int(1),
            ]),
        },
        Reader {
            of: "XREADGROUP",
            read: |answer| Ok(format!("{:?}", entry::read(answer, which)?)),
            answer: list([
                list([text("s"), list([entry("7-1"), entry("7-2")])]),
                list([text("r"), list([entry("9-0")])]),
            ]),
        },
        Reader {
            of: "recover",
            read: |answer| {
                Ok(format!(
                    "{:?}",
                    entry::claimed(answer, WhichStream::Primary(0))?
                ))
            },
            answer: list([claimed("7-1"), claimed("7-2")]),
        },
        Reader {
            of: "XPENDING",
            read: |answer| Ok(format!("{:?}", entry::pending(answer)?)),
            answer: list([list([
                text("7-1"),
                text("me"),
                Value::Int(5),
                Value::Int(1),
            ])]),
        },
        Reader {
            of: "renew",
            read: |answer| Ok(format!("{:?}", entry::renewed(answer)?)),
            answer: list([Value::Int(7), text("7-1"), text("8-0")]),
        },
        Reader {
            of: "claim",
            read: |answer| {
                Ok(format!(
                    "{:?}",
                    ScanStep::read(answer, WhichStream::Retry(0))?
                ))
            },
            answer: list([
                text("(7-2"),
                list([claimed("7-1")]),
                Value::Int(0),
                list([claimed("7-2")]),
                Value::Int(1),
                text("7-3"),
                list([text("7-4")]),
                text("OOM"),
                list([text("c")]),
            ]),
        },
        Reader {
            of: "tick",
            read: |answer| Ok(format!("{:?}", Tick::read(answer)?)),
            answer: list([
                Value::Int(7),
                list([
                    list([list([text("7-1")]), list([])]),
                    list([
                        list([text("7-1")]),
                        list([text("8-0")]),
                        list([1, 0, -1].map(Value::Int)),
                        text("OOM"),
                        list([text("7-1"), Value::Int(3)]),
                        list([Value::Int(0), text("g"), text("c")]),
                        Value::Int(1),
                        Value::Int(2),
                        list([text("stream"), text("7 a deploy")]),
                        list([Value::Int(1), text("7f3a stats")]),
                        list([text("7-1"), texts("limit 3 ada")]),
                        Value::Int(1),
                    ]),
                ]),
                texts("tenant-7 1795430237570"),
            ]),
        },
        Reader {
            of: "join, another group",
            read: |answer| Ok(format!("{:?}", Joining::read(answer)?)),
            answer: texts("choose other"),
        },
        Reader {
            of: "join, another type",
            read: |answer| Ok(format!("{:?}", Joining::read(answer)?)),
            answer: texts("type s string"),
        },
        Reader {
            of: "served_names",
            read: |answer| Ok(format!("{:?}", served_names::read(answer, 2)?)),
            answer: list([texts("a b"), texts("c")]),
        },
        Reader {
            of: "reply",
            read: |answer| Ok(format!("{:?}", replies::read(answer, 3)?)),
            answer: list([1, 0, -1].map(Value::Int)),
        },
        Reader {
            of: "TIME",
            // The clock exposes its time only as an age.
            read: |answer| Ok((ServerClock::new(answer)?.since(0).as_secs() > 0).to_string()),
            answer: texts("1795430237 570000"),
        },
    ]
}

/// Maps the names `s` and `r` in the responses above to streams.
fn which(name: &[u8]) -> Option<WhichStream> {
    match name {
        b"s" => Some(WhichStream::Primary(0)),
        b"r" => Some(WhichStream::Retry(0)),
        _ => None,
    }
}
