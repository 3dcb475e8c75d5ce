//! Converts a message into an HTTP request.

use std::{mem, sync::Arc};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header::CONTENT_TYPE,
};

use super::super::{
    body::Body,
    extensions::Origin,
    headers::{ATTEMPT, ID, KIND, NAME, strip_claims, strip_connection},
    names::{encode_header_value, path},
    status::failure_verdict,
};
use crate::{
    error::{BoxError, FailureVerdict, NotFound, Rejection},
    message::{Message, Parts},
};

/// Decides which headers are copied from a message to its HTTP request, and from the HTTP response
/// to the reply.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::http_bridge) enum HeaderPolicy {
    /// For an HTTP service: Campanile's headers and most of the message's headers. Headers that are
    /// valid only for one connection are removed. From a request, headers that identify the caller
    /// are removed as well, because the sender of a message can forge them.
    Stripped,
    /// For an HTTP layer: exactly the message's headers. Inside the layer, `AsHttp` converts the
    /// request back into the message.
    Exact,
}

/// Returns the method and the URI of a message's request. `None` if the message has no route.
type Target = dyn Fn(&Parts) -> Option<(Method, Uri)> + Send + Sync;

#[derive(Clone)]
pub(in crate::http_bridge) struct HandlerOptions {
    pub(in crate::http_bridge) header_policy: HeaderPolicy,
    pub(super) target: Option<Arc<Target>>,
    pub(super) content_type: Option<HeaderValue>,
    /// Headers that are kept although they identify the caller.
    pub(super) trusted: Vec<HeaderName>,
    /// The value of the header `ce-source`. `None` if no CloudEvents headers are added.
    pub(super) cloud_events: Option<HeaderValue>,
    pub(super) failure_verdict: Arc<dyn Fn(StatusCode) -> FailureVerdict + Send + Sync>,
    /// The maximum length of a response's body, in bytes.
    pub(in crate::http_bridge) limit: usize,
}

impl Default for HandlerOptions {
    fn default() -> Self {
        Self {
            header_policy: HeaderPolicy::Stripped,
            target: None,
            content_type: None,
            trusted: Vec::new(),
            cloud_events: None,
            failure_verdict: Arc::new(failure_verdict),
            limit: 16 * 1024 * 1024,
        }
    }
}

impl HandlerOptions {
    /// Converts a message into a request.
    pub(super) fn request(&self, message: Message) -> Result<Request<Body>, BoxError> {
        let (mut parts, payload) = message.into_parts();
        let (method, uri) = match &self.target {
            Some(target) => {
                target(&parts).ok_or_else(|| NotFound::new(parts.kind, parts.name.clone()))?
            }
            None => {
                let uri = path(&parts.name).parse().map_err(|error| {
                    Rejection::permanent("the name cannot be a path")
                        .because(BoxError::from(error as http::uri::InvalidUri))
                })?;
                (Method::POST, uri)
            }
        };
        let mut request = Request::new(Body::from(payload));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = mem::take(&mut parts.headers);
        *request.extensions_mut() = mem::take(&mut parts.extensions);
        if self.header_policy == HeaderPolicy::Stripped {
            strip_connection(request.headers_mut());
            strip_claims(request.headers_mut(), &self.trusted);
            self.add_headers(&parts, request.headers_mut())
                .map_err(|error| {
                    Rejection::permanent("more headers than HTTP allows").because(error)
                })?;
        }
        request.extensions_mut().insert(Origin(parts));
        Ok(request)
    }

    /// Adds Campanile's headers, which replace headers of the same names. Adds the configured
    /// `content-type` unless the message has one, and the configured CloudEvents headers unless the
    /// message has a `ce-specversion`.
    fn add_headers(&self, parts: &Parts, headers: &mut HeaderMap) -> Result<(), BoxError> {
        let mut set = |name: HeaderName, value| headers.try_insert(name, value).map(drop);
        set(KIND.clone(), HeaderValue::from_static(parts.kind.as_str()))?;
        set(NAME.clone(), encode_header_value(&parts.name))?;
        set(ATTEMPT.clone(), parts.attempt.0.into())?;
        if let Some(id) = &parts.id {
            set(ID.clone(), encode_header_value(id))?;
        } else {
            headers.remove(&ID);
        }
        if let Some(content_type) = &self.content_type
            && !headers.contains_key(CONTENT_TYPE)
        {
            headers.try_insert(CONTENT_TYPE, content_type.clone())?;
        }
        if let Some(source) = &self.cloud_events
            && !headers.contains_key("ce-specversion")
        {
            let id = match &parts.id {
                Some(id) => encode_header_value(id),
                None => encode_header_value(&uuid::Uuid::new_v4().to_string()),
            };
            for (name, value) in [
                ("ce-specversion", HeaderValue::from_static("1.0")),
                ("ce-id", id),
                ("ce-type", encode_header_value(&parts.name)),
                ("ce-source", source.clone()),
            ] {
                headers.try_insert(HeaderName::from_static(name), value)?;
            }
        }
        Ok(())
    }
}
