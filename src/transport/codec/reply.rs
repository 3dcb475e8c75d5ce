//! Replies as JSON envelopes.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::{HeaderMap, HeaderName};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, error::Category};

use super::header;
use crate::{error::RpcError, reply::Reply};

/// The JSON of a reply. The fields are those of Go-Broker, except for `code` and `headers`, which
/// are left out if empty.
#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    correlation_id: Cow<'a, str>,
    #[serde(borrow, default)]
    body: Option<Text<'a>>,
    #[serde(borrow, default)]
    error: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    code: Option<Cow<'a, str>>,
    /// An object of header names and values. The value of a repeated header is a list.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    headers: Value,
}

/// A text that is borrowed if possible. serde does not borrow a plain `Cow` within an `Option`.
#[derive(Serialize, Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Encodes a reply. Header values that are not UTF-8, or begin with `base64:`, are encoded as
/// base64 with that prefix.
pub fn encode_reply(correlation_id: &str, answer: &Result<Reply, RpcError>) -> Vec<u8> {
    let envelope = match answer {
        Ok(reply) => Envelope {
            correlation_id: correlation_id.into(),
            body: Some(Text(BASE64.encode(&reply.payload).into())),
            error: "".into(),
            code: None,
            headers: encode_headers(&reply.headers),
        },
        Err(error) => Envelope {
            correlation_id: correlation_id.into(),
            body: None,
            // An empty `error` means success, so the text must not be empty.
            error: [error.message(), error.code().as_str(), "the request failed"]
                .into_iter()
                .find(|text| !text.is_empty())
                .unwrap_or_default()
                .into(),
            code: Some(error.code().as_str().into()),
            headers: Value::Null,
        },
    };
    serde_json::to_vec(&envelope).expect("an envelope can be encoded as JSON")
}

fn encode_headers(headers: &HeaderMap) -> Value {
    if headers.is_empty() {
        return Value::Null;
    }
    let value_of = |name: &HeaderName| {
        let mut values: Vec<_> = headers
            .get_all(name)
            .iter()
            .map(|value| Value::String(header::encode_value(value)))
            .collect();
        match values.len() {
            1 => values.remove(0),
            _ => Value::Array(values),
        }
    };
    headers
        .keys()
        .map(|name| (name.as_str().to_owned(), value_of(name)))
        .collect()
}

/// A decoded reply.
#[derive(Debug)]
#[non_exhaustive]
pub struct DecodedReply<'a> {
    /// The id of the request.
    pub correlation_id: Cow<'a, str>,
    /// The reply or the error reply. If the content of the envelope is invalid, the reason.
    pub answer: Result<Result<Reply, RpcError>, String>,
}

/// Decodes a reply envelope.
///
/// # Errors
/// The reason why the bytes are not a valid envelope.
pub fn decode_reply(bytes: &[u8]) -> Result<DecodedReply<'_>, String> {
    let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(|error| {
        // The parser's text quotes its input, which may contain the body.
        let fault = match error.classify() {
            Category::Data => "a field is missing, repeated or of another type",
            _ => "it is not JSON",
        };
        let (line, column) = (error.line(), error.column());
        format!("the reply is not a valid envelope: {fault}, at line {line} column {column}")
    })?;
    let answer = if envelope.error.is_empty() {
        decode_success(envelope.body, envelope.headers).map(Ok)
    } else {
        let code = envelope.code.as_deref().unwrap_or("internal").into();
        Ok(Err(RpcError::new(code, envelope.error)))
    };
    Ok(DecodedReply {
        correlation_id: envelope.correlation_id,
        answer,
    })
}

fn decode_success(body: Option<Text<'_>>, headers: Value) -> Result<Reply, String> {
    let payload = match body {
        None => Vec::new(),
        Some(Text(body)) => BASE64
            .decode(&*body)
            .map_err(|error| format!("the reply's body is not base64: {error}"))?,
    };
    let mut reply = Reply::new(payload);
    let headers = match headers {
        Value::Null => Map::new(),
        Value::Object(headers) => headers,
        _ => return Err("the reply's `headers` are not an object".into()),
    };
    for (name, values) in headers {
        let values = match values {
            Value::Array(values) => values,
            value => vec![value],
        };
        for value in values {
            let Value::String(value) = value else {
                return Err("the reply's `headers` contain a value that is not a string".into());
            };
            header::add(
                &mut reply.headers,
                name.as_bytes(),
                &header::decode_value(&value),
            )?;
        }
    }
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::RpcCode;

    #[test]
    fn a_reply_has_the_go_librarys_form_to_the_byte() {
        let encode = |answer| String::from_utf8(encode_reply("vm-1", &answer)).unwrap();
        assert_eq!(
            encode(Ok(Reply::new(r#"{"id":42,"name":"Alice"}"#))),
            r#"{"correlation_id":"vm-1","body":"eyJpZCI6NDIsIm5hbWUiOiJBbGljZSJ9","error":""}"#
        );
        assert_eq!(
            encode(Err(RpcError::not_found("no such user"))),
            r#"{"correlation_id":"vm-1","body":null,"error":"no such user","code":"not_found"}"#
        );
    }

    #[test]
    fn an_error_without_a_text_does_not_read_as_success() {
        let bytes = encode_reply("1", &Err(RpcError::new(RpcCode::Internal, "")));
        let error = decode_reply(&bytes).unwrap().answer.unwrap().unwrap_err();
        assert_eq!(error.message(), "internal");
        let bytes = encode_reply("1", &Err(RpcError::new(RpcCode::from(""), "")));
        let error = decode_reply(&bytes).unwrap().answer.unwrap().unwrap_err();
        assert_eq!(error.message(), "the request failed");
    }

    #[test]
    fn replies_of_the_go_library_are_decoded() {
        let read = |text: &str| decode_reply(text.as_bytes()).unwrap().answer.unwrap();
        assert_eq!(
            read(r#"{"correlation_id":"1","body":"YQ==","error":""}"#)
                .unwrap()
                .payload,
            "a"
        );
        assert_eq!(
            read(r#"{"correlation_id":"1","body":null,"error":""}"#)
                .unwrap()
                .payload,
            ""
        );
        let error = read(r#"{"correlation_id":"1","body":null,"error":"no \u00fc"}"#).unwrap_err();
        assert_eq!(
            (error.code(), error.message()),
            (&RpcCode::Internal, "no ü")
        );
    }

    #[test]
    fn reply_headers_of_any_bytes_are_decoded_as_they_were_encoded() {
        let mut reply = Reply::new("x");
        for value in [&b"plain"[..], b"\xff", b"base64:plain"] {
            reply
                .headers
                .append("h", HeaderValue::from_bytes(value).unwrap());
        }
        let envelope = encode_reply("1", &Ok(reply.clone()));
        let decoded = decode_reply(&envelope).unwrap();
        assert_eq!(decoded.answer.unwrap().unwrap().headers, reply.headers);
    }

    #[test]
    fn malformed_reply_headers_fail_only_their_request() {
        let mut reply = Reply::new("");
        for (name, value) in [("x-a", "1"), ("x-b", "2"), ("x-a", "3")] {
            reply.headers.append(name, HeaderValue::from_static(value));
        }
        let text = String::from_utf8(encode_reply("1", &Ok(reply))).unwrap();
        assert!(
            text.ends_with(r#""headers":{"x-a":["1","3"],"x-b":"2"}}"#),
            "{text}"
        );
        for headers in [
            "[]",
            "7",
            r#""x""#,
            r#"{"x-a":1}"#,
            r#"{"x-a":[null]}"#,
            r#"{" ":""}"#,
        ] {
            let envelope = format!(r#"{{"correlation_id":"7","error":"","headers":{headers}}}"#);
            let decoded = decode_reply(envelope.as_bytes()).unwrap();
            assert_eq!(decoded.correlation_id, "7");
            assert!(decoded.answer.is_err(), "{headers}");
        }
    }

    #[test]
    fn a_malformed_envelope_or_body_is_an_error_that_does_not_quote_it() {
        for bytes in [&b""[..], b"[]", b"{}", b"\xff", br#"{"correlation_id":1}"#] {
            assert!(
                decode_reply(bytes)
                    .unwrap_err()
                    .starts_with("the reply is not a valid envelope")
            );
        }
        let secret = br#"{"correlation_id":"7","body":["hunter2"],"error":""}"#;
        let reason = decode_reply(secret).unwrap_err();
        assert!(!reason.contains("hunter2"), "{reason}");
        let bad = decode_reply(br#"{"correlation_id":"7","body":"***","error":""}"#).unwrap();
        assert_eq!(bad.correlation_id, "7");
        assert!(
            bad.answer
                .unwrap_err()
                .starts_with("the reply's body is not base64")
        );
    }
}
