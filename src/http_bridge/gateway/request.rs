//! Converts an HTTP request into a message.

use bytes::Bytes;
use crc::{CRC_64_XZ, Crc};
use http::{HeaderMap, HeaderName, StatusCode, request};

use super::{
    super::{headers::cloud_events_fault, problem::Problem},
    GatewayOptions,
    routes::GatewayRoute,
};
use crate::message::{Deadline, IdempotencyKey, Kind, Message};

/// Computes the digest of the body of a request with an idempotency key.
const CRC: Crc<u64> = Crc::<u64>::new(&CRC_64_XZ);

static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

impl GatewayOptions {
    /// Converts a request into a message. If the request is invalid, returns the problem with which
    /// the gateway responds.
    pub(super) fn build_message(
        &self,
        route: &GatewayRoute,
        mut head: request::Parts,
        payload: Bytes,
    ) -> Result<Message, Problem> {
        let invalid =
            |fault: &str| Problem::new(StatusCode::BAD_REQUEST, "invalid", fault.to_owned());
        let mut message = Message::new(route.kind, route.name.clone(), payload);
        // A transport refuses an event with headers, because Pub/Sub has no place for them.
        if route.kind != Kind::Event {
            if let Some(fault) = cloud_events_fault(&head.headers) {
                return Err(invalid(&fault));
            }
            *message.headers_mut() = self.forwarded.select(&head.headers);
        }
        if let Some(key) = idempotency_key(&head.headers).map_err(invalid)? {
            if route.kind != Kind::Task {
                return Err(invalid("only tasks can have an idempotency key"));
            }
            // The name is part of the key, so that requests for different tasks may send the same
            // key.
            let key = format!("{}\n{key}", route.name);
            if key.len() > IdempotencyKey::MAX_LEN {
                return Err(invalid("the idempotency key is too long"));
            }
            let digest = CRC.checksum(message.payload());
            let parts = message.parts_mut();
            parts.idempotency_key = Some(key.into());
            parts.content_digest = Some(digest);
        }
        if route.kind == Kind::Rpc {
            message.parts_mut().deadline = Some(Deadline::after(self.timeout));
        }
        if let Some(prepare) = &self.prepare {
            // `prepare` reads the extensions of the request, so they are moved to the message only
            // after the call.
            prepare(&head, &mut message).map_err(|error| {
                let status = (self.status)(error.code());
                Problem::from_error_reply(&error, status)
            })?;
        }
        // Extensions that `prepare` has set override those of the request.
        let prepared = std::mem::take(message.extensions_mut());
        *message.extensions_mut() = std::mem::take(&mut head.extensions);
        message.extensions_mut().extend(prepared);
        Ok(message)
    }

    /// Returns the time at which the gateway stops waiting for the call, and responds with a 504.
    /// For an RPC request, this is its deadline. For any other message, it is now plus the
    /// gateway's timeout. The deadline of a task is ignored here, because it limits the start of
    /// the handler, not the sending.
    pub(super) fn answer_deadline(&self, message: &Message) -> Deadline {
        let deadline = message.parts().deadline;
        deadline
            .filter(|_| message.kind() == Kind::Rpc)
            .unwrap_or_else(|| Deadline::after(self.timeout))
    }
}

/// Reads the idempotency key: visible ASCII, bare or as a quoted string. The
/// [draft](https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/) allows only
/// the quoted string. Returns `None` if the header is missing.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, &'static str> {
    let mut values = headers.get_all(&IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err("the request has more than one idempotency key");
    }
    let text = value
        .to_str()
        .map_err(|_| "the idempotency key must be visible ASCII")?
        .trim();
    let quoted = text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let key = match quoted {
        Some(inside) => inside.replace("\\\"", "\"").replace("\\\\", "\\"),
        None => text.to_owned(),
    };
    if key.is_empty() {
        return Err("the idempotency key is empty");
    }
    Ok(Some(key))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn key(value: &[u8]) -> Result<Option<String>, &'static str> {
        let mut headers = HeaderMap::new();
        headers.insert(&IDEMPOTENCY_KEY, HeaderValue::from_bytes(value).unwrap());
        idempotency_key(&headers)
    }

    #[test]
    fn a_key_is_the_same_with_and_without_quotes() {
        assert_eq!(key(b"8e03978e").unwrap().unwrap(), "8e03978e");
        assert_eq!(key(b"\"8e03978e\"").unwrap().unwrap(), "8e03978e");
        assert_eq!(key(b"\"a\\\"b\"").unwrap().unwrap(), "a\"b");
        assert_eq!(idempotency_key(&HeaderMap::new()), Ok(None));
    }

    #[test]
    fn an_invalid_key_is_refused() {
        assert_eq!(key(b""), Err("the idempotency key is empty"));
        assert_eq!(key(b"\"\""), Err("the idempotency key is empty"));
        assert_eq!(
            key(b"\xff"),
            Err("the idempotency key must be visible ASCII")
        );
        let mut two = HeaderMap::new();
        two.append(&IDEMPOTENCY_KEY, HeaderValue::from_static("a"));
        two.append(&IDEMPOTENCY_KEY, HeaderValue::from_static("b"));
        let error = Err("the request has more than one idempotency key");
        assert_eq!(idempotency_key(&two), error);
    }
}
