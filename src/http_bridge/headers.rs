//! The headers that Campanile adds, and the choice of the headers that it forwards.

use std::borrow::Cow;

use http::{
    HeaderMap, HeaderName,
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH,
        CONTENT_TYPE, COOKIE, FORWARDED, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
        TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
};

/// The header of a message's kind: `task`, `event` or `rpc`.
pub static KIND: HeaderName = HeaderName::from_static("campanile-kind");
/// The header of a message's name. Spaces, `"`, `%`, control characters and non-ASCII characters
/// are percent-encoded.
pub static NAME: HeaderName = HeaderName::from_static("campanile-name");
/// The header of a message's id. A gateway also sets it in the response to an accepted task.
pub static ID: HeaderName = HeaderName::from_static("campanile-id");
/// The header of a message's attempt, counted from 1.
pub static ATTEMPT: HeaderName = HeaderName::from_static("campanile-attempt");

pub(super) static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The prefix of headers in CloudEvents' binary mode.
const CLOUD_EVENTS: &str = "ce-";

/// Removes the headers that are valid only for one connection ([RFC
/// 9110](https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1)), and the `content-length`, which
/// the HTTP library derives from the body.
pub(super) fn strip_connection(headers: &mut HeaderMap) {
    let named_headers: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named_headers {
        headers.remove(name);
    }
    for name in [
        CONNECTION,
        CONTENT_LENGTH,
        HOST,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
}

/// Removes the headers that identify the caller to an HTTP service, because the sender of a message
/// can forge them. Keeps the headers in `trusted`.
pub(super) fn strip_claims(headers: &mut HeaderMap, trusted: &[HeaderName]) {
    let is_claim = |name: &HeaderName| {
        [AUTHORIZATION, COOKIE, FORWARDED].contains(name)
            || name == "x-real-ip"
            || name.as_str().starts_with("x-forwarded-")
    };
    let claims = headers.keys().filter(|name| is_claim(name));
    let claims: Vec<_> = claims
        .filter(|name| !trusted.contains(name))
        .cloned()
        .collect();
    for name in claims {
        headers.remove(name);
    }
}

/// The names of the headers that a gateway forwards, in both directions. CloudEvents headers are
/// forwarded even if they are not in this list.
#[derive(Debug, Clone)]
pub(super) struct ForwardedHeaders(Vec<HeaderName>);

impl Default for ForwardedHeaders {
    fn default() -> Self {
        Self(vec![
            CONTENT_TYPE,
            CONTENT_ENCODING,
            CONTENT_LANGUAGE,
            HeaderName::from_static("traceparent"),
            HeaderName::from_static("tracestate"),
            REQUEST_ID.clone(),
        ])
    }
}

impl ForwardedHeaders {
    pub(super) fn add(&mut self, name: HeaderName) {
        self.0.push(name);
    }

    /// Returns the part of `headers` that is forwarded.
    pub(super) fn select(&self, headers: &HeaderMap) -> HeaderMap {
        let mut forwarded = HeaderMap::new();
        for (name, value) in headers {
            if name.as_str().starts_with(CLOUD_EVENTS) || self.0.contains(name) {
                forwarded.append(name, value.clone());
            }
        }
        forwarded
    }
}

/// Describes the fault of the CloudEvents headers. `None` if they are valid, or if there is no
/// `ce-specversion`. A CloudEvent in [binary
/// mode](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md#31-binary-content-mode)
/// must have a version, an id, a source and a type.
pub(super) fn cloud_events_fault(headers: &HeaderMap) -> Option<Cow<'static, str>> {
    let version = headers.get("ce-specversion")?;
    if !version.as_bytes().starts_with(b"1.") {
        return Some("a `ce-specversion` other than 1.0".into());
    }
    ["ce-id", "ce-source", "ce-type"]
        .into_iter()
        .find(|name| {
            let value = headers.get(*name).and_then(|value| value.to_str().ok());
            value.is_none_or(str::is_empty)
        })
        .map(|name| format!("a CloudEvent whose `{name}` is missing or no text").into())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn headers_of_the_connection_are_removed() {
        let mut all = headers(&[
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("content-length", "7"),
            ("transfer-encoding", "chunked"),
            ("host", "example"),
            ("x-tenant", "acme"),
        ]);
        strip_connection(&mut all);
        assert_eq!(all, headers(&[("x-tenant", "acme")]));
    }

    #[test]
    fn headers_by_which_a_service_knows_its_caller_are_removed_unless_they_are_trusted() {
        let mut all = headers(&[
            ("authorization", "Bearer forged"),
            ("x-forwarded-port", "443"),
            ("cookie", "session=forged"),
            ("x-tenant", "acme"),
        ]);
        strip_claims(&mut all, &[COOKIE]);
        let kept = [("cookie", "session=forged"), ("x-tenant", "acme")];
        assert_eq!(all, headers(&kept));
    }

    #[test]
    fn only_listed_headers_are_passed_on_and_no_credentials() {
        let all = headers(&[
            ("authorization", "Bearer secret"),
            ("cookie", "session=secret"),
            ("x-tenant", "acme"),
            ("traceparent", "00-1-2-01"),
            ("ce-id", "7"),
        ]);
        let mut forwarded = ForwardedHeaders::default();
        assert_eq!(
            forwarded.select(&all),
            headers(&[("traceparent", "00-1-2-01"), ("ce-id", "7")])
        );
        forwarded.add(HeaderName::from_static("x-tenant"));
        assert_eq!(forwarded.select(&all)["x-tenant"], "acme");
    }

    #[test]
    fn an_incomplete_cloud_event_is_refused() {
        assert_eq!(cloud_events_fault(&headers(&[("ce-id", "7")])), None);
        let whole = [
            ("ce-specversion", "1.0"),
            ("ce-id", "7"),
            ("ce-source", "/shop"),
            ("ce-type", "created"),
        ];
        assert_eq!(cloud_events_fault(&headers(&whole)), None);
        for missing in 1..whole.len() {
            let mut part = whole.to_vec();
            let (name, _) = part.remove(missing);
            let fault = cloud_events_fault(&headers(&part)).unwrap();
            assert!(fault.contains(name), "{fault}");
        }
        assert!(cloud_events_fault(&headers(&[("ce-specversion", "2.0")])).is_some());
    }
}
