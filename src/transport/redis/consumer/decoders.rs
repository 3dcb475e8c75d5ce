//! Lists the functions of the consumer that decode responses, for tests and fuzz targets.

use super::{
    claim::ScanStep, clock::ServerClock, fetch, group::JoinResult, replies, served_names,
    tick::TickResponse,
};
use crate::transport::redis::{
    decoders::{ResponseDecoder, list, text, texts},
    entry::{self, WhichStream},
    response::Value,
};

pub(in crate::transport::redis) fn all() -> Vec<ResponseDecoder> {
    let entry = |id| list([text(id), texts("type task name a payload b")]);
    let claimed = |id| {
        let fields = texts("type task name a payload b");
        list([text(id), Value::Int(2), fields])
    };
    vec![
        ResponseDecoder {
            source: "fetch",
            decode: |response| {
                let (found, failed, at_limit) = fetch::split_script_response(response)?;
                let entries = entry::decode(found, which)?;
                Ok(format!("{entries:?} {failed:?} {at_limit}"))
            },
            example: list([
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
        ResponseDecoder {
            source: "XREADGROUP",
            decode: |response| Ok(format!("{:?}", entry::decode(response, which)?)),
            example: list([
                list([text("s"), list([entry("7-1"), entry("7-2")])]),
                list([text("r"), list([entry("9-0")])]),
            ]),
        },
        ResponseDecoder {
            source: "recover",
            decode: |response| {
                Ok(format!(
                    "{:?}",
                    entry::decode_claimed(response, WhichStream::Primary(0))?
                ))
            },
            example: list([claimed("7-1"), claimed("7-2")]),
        },
        ResponseDecoder {
            source: "XPENDING",
            decode: |response| Ok(format!("{:?}", entry::decode_pending(response)?)),
            example: list([list([
                text("7-1"),
                text("me"),
                Value::Int(5),
                Value::Int(1),
            ])]),
        },
        ResponseDecoder {
            source: "renew",
            decode: |response| Ok(format!("{:?}", entry::decode_renewed(response)?)),
            example: list([Value::Int(7), text("7-1"), text("8-0")]),
        },
        ResponseDecoder {
            source: "claim",
            decode: |response| {
                Ok(format!(
                    "{:?}",
                    ScanStep::decode(response, WhichStream::Retry(0))?
                ))
            },
            example: list([
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
        ResponseDecoder {
            source: "tick",
            decode: |response| Ok(format!("{:?}", TickResponse::decode(response)?)),
            example: list([
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
        ResponseDecoder {
            source: "join, another group",
            decode: |response| Ok(format!("{:?}", JoinResult::decode(response)?)),
            example: texts("choose other"),
        },
        ResponseDecoder {
            source: "join, another type",
            decode: |response| Ok(format!("{:?}", JoinResult::decode(response)?)),
            example: texts("type s string"),
        },
        ResponseDecoder {
            source: "served_names",
            decode: |response| Ok(format!("{:?}", served_names::decode(response, 2)?)),
            example: list([texts("a b"), texts("c")]),
        },
        ResponseDecoder {
            source: "reply",
            decode: |response| Ok(format!("{:?}", replies::decode(response, 3)?)),
            example: list([1, 0, -1].map(Value::Int)),
        },
        ResponseDecoder {
            source: "TIME",
            // `ServerClock` returns ages, but not its time.
            decode: |response| Ok((ServerClock::new(response)?.since(0).as_secs() > 0).to_string()),
            example: texts("1795430237 570000"),
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
