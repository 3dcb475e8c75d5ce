//! An HTTP service that handles messages.

mod answer;
mod future;
mod request;

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use tower::Service;

pub use self::future::HttpHandlerFuture;
use self::{
    answer::ResponseReader,
    request::{HandlerOptions, HeaderPolicy},
};
use super::{body::Body, names::encode_header_value};
use crate::{
    error::{BoxError, FailureVerdict},
    message::{Message, Parts},
    reply::Reply,
};

/// Turns an HTTP service into a `Service<Message>`. The HTTP service may be an `axum::Router` with
/// its layers, or a client of a remote service.
///
/// Each message becomes a request, and the response becomes a reply, a redelivery or a dead letter.
/// The table in the [module](super#the-meaning-of-a-status) shows which. The
/// [guide](crate::guide::http) has a table of all statuses.
///
/// ```
/// use campanile::{Client, Router, http_bridge::{Body, HttpHandler}};
/// use http::{Request, Response};
/// use std::convert::Infallible;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), campanile::Error> {
/// // Any service of `Request<Body>`, such as an `axum::Router`.
/// let web = tower::service_fn(|request: Request<Body>| async move {
///     Ok::<_, Infallible>(Response::new(Body::from(request.uri().path().to_owned())))
/// });
/// let app: Router = Router::new().rpc_service("orders.count", HttpHandler::new(web));
///
/// let path: String = Client::new(app).request("orders.count", ()).await?;
/// assert_eq!(path, "/orders/count");
/// # Ok(())
/// # }
/// ```
///
/// The next handler has custom targets, CloudEvents headers, and a custom outcome for one status:
///
/// ```
/// use campanile::{Kind, error::FailureVerdict, http_bridge::{self, HttpHandler}};
/// use http::{Method, StatusCode, Uri};
///
/// # fn example<S>(web: S) -> HttpHandler<S> {
/// HttpHandler::new(web)
///     .target(|message| match (message.kind, message.name.as_str()) {
///         (Kind::Rpc, "user.list") => Some((Method::GET, Uri::from_static("/users"))),
///         (Kind::Task, name) => Some((Method::PUT, http_bridge::path(name).parse().ok()?)),
///         _ => None, // like a name without a route
///     })
///     .content_type("application/json")
///     .cloud_events("/shop")
///     .max_response_bytes(64 * 1024)
///     .on_status(|status| match status {
///         StatusCode::CONFLICT => FailureVerdict::Discard, // the order exists
///         status => http_bridge::failure_verdict(status),
///     })
/// # }
/// ```
#[derive(Clone)]
pub struct HttpHandler<S> {
    inner: S,
    options: Arc<HandlerOptions>,
}

impl<S> HttpHandler<S> {
    /// Creates a handler that sends each message by `POST` to the [path](super::path()) of its
    /// name.
    pub fn new(inner: S) -> Self {
        Self {
            inner,
            options: Arc::default(),
        }
    }

    /// Creates a handler for [`HttpLayer`](super::HttpLayer). Its requests have exactly the headers
    /// of the message.
    pub(super) fn for_layer(inner: S, limit: usize) -> Self {
        let options = HandlerOptions {
            header_policy: HeaderPolicy::Exact,
            limit,
            ..HandlerOptions::default()
        };
        Self {
            inner,
            options: Arc::new(options),
        }
    }

    fn with(mut self, change: impl FnOnce(&mut HandlerOptions)) -> Self {
        change(Arc::make_mut(&mut self.options));
        self
    }

    /// Sets a function that returns the method and the URI of each message. If the function returns
    /// `None`, the name has no route: a task fails, and a request gets `not_found`. For a remote
    /// service the URI must have an authority.
    #[must_use]
    pub fn target<F>(self, target: F) -> Self
    where
        F: Fn(&Parts) -> Option<(Method, Uri)> + Send + Sync + 'static,
    {
        self.with(|options| options.target = Some(Arc::new(target)))
    }

    /// Sets the `content-type` of messages that have none. Without this setting, the HTTP requests
    /// for these messages have no `content-type`, and `axum::Json` refuses them with 415.
    ///
    /// # Panics
    /// When the text cannot be a header's value.
    #[must_use]
    #[track_caller]
    pub fn content_type(self, content_type: &str) -> Self {
        let value = HeaderValue::from_str(content_type);
        let value = value.expect("a content type is visible ASCII");
        self.with(|options| options.content_type = Some(value))
    }

    /// Passes on a header that is otherwise dropped because HTTP services trust it:
    /// `authorization`, `cookie`, `forwarded`, `x-real-ip`, or a header that begins with
    /// `x-forwarded-`. In an HTTP request, such a header comes from a logged-in user or from the
    /// server's proxy. In a message it comes from the sender, and anyone who may add to the stream
    /// can forge it. So call this method only if you trust all senders.
    #[must_use]
    pub fn trust_header(self, name: HeaderName) -> Self {
        self.with(|options| options.trusted.push(name))
    }

    /// Adds CloudEvents headers to each message that has none, in [binary
    /// mode](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md#31-binary-content-mode):
    /// `ce-specversion`, `ce-id` (the message's id, or a new UUID if the message has no id),
    /// `ce-type` (the message's name) and `ce-source` (`source`).
    #[must_use]
    pub fn cloud_events(self, source: &str) -> Self {
        let source = encode_header_value(source);
        self.with(|options| options.cloud_events = Some(source))
    }

    /// Sets the maximum length of a response's body, in bytes. 16 MiB unless set.
    #[must_use]
    pub fn max_response_bytes(self, limit: usize) -> Self {
        self.with(|options| options.limit = limit)
    }

    /// Sets the function that decides how a task is settled after a status other than 2xx.
    /// [`failure_verdict`](super::failure_verdict()) unless set. A `Retry-After` overrides the
    /// delay of a redelivery.
    #[must_use]
    pub fn on_status<F>(self, failure_verdict: F) -> Self
    where
        F: Fn(StatusCode) -> FailureVerdict + Send + Sync + 'static,
    {
        self.with(|options| options.failure_verdict = Arc::new(failure_verdict))
    }
}

impl<S, B> Service<Message> for HttpHandler<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>>,
    B: http_body::Body<Error: Into<BoxError>>,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = HttpHandlerFuture<S::Future, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        let reader = ResponseReader {
            kind: message.kind(),
            name: message.name().clone(),
            options: self.options.clone(),
        };
        match self.options.request(message) {
            Ok(request) => HttpHandlerFuture::calling(reader, self.inner.call(request)),
            Err(error) => HttpHandlerFuture::failed(reader, error),
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for HttpHandler<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpHandler")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}
