//! A gateway, which turns HTTP requests into messages.

mod answer;
mod future;
mod media;
mod request;
mod routes;

use std::{
    convert::Infallible,
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, request::Parts};
use tokio::time::sleep;
use tower::Service;

pub use self::future::GatewayFuture;
use self::{answer::Responder, future::GatewayStage, routes::Routes};
use super::{
    body::{Body, read},
    headers::{ForwardedHeaders, REQUEST_ID},
    names::path,
    problem::Problem,
    status::status,
};
use crate::{
    RpcCode,
    error::{BoxError, RpcError},
    message::{Kind, Message, Name},
    service::MessageService,
};

/// An HTTP service that turns requests into messages and calls a `Service<Message>` with them. It
/// can be mounted in an axum or hyper application.
///
/// Each route of a gateway maps a method and a path to the kind and the name of a message. Requests
/// without a route get a 404 or a 405. The slashes of a path must match, too: `/orders/create/` is
/// another path than `/orders/create`. A `HEAD` request without a `HEAD` route takes the `GET`
/// route, and its response has no body. The response to `OPTIONS` lists the methods of the path.
/// The [module](super#the-responses-of-a-gateway) lists all responses.
///
/// ```
/// use campanile::{http_bridge::{Body, Gateway}, transport::memory::Memory};
/// use http::{Request, StatusCode};
/// use tower::ServiceExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let gateway = Gateway::new(Memory::new())
///     .task("orders.create") // POST /orders/create
///     .event("orders.events")
///     .rpc("user.get");
///
/// let request = Request::post("/orders/create").body(Body::from(r#"{"id":7}"#)).unwrap();
/// let response = gateway.oneshot(request).await.unwrap();
/// assert_eq!(response.status(), StatusCode::ACCEPTED);
/// assert!(response.headers().contains_key("campanile-id"));
/// # }
/// ```
///
/// The next gateway has a custom path, limits, and a function that adds the caller's tenant to the
/// idempotency key of each message:
///
/// ```
/// use campanile::{Kind, ReplyMode, RpcError, http_bridge::Gateway, transport::memory::Memory};
/// use http::{HeaderName, Method};
/// use std::time::Duration;
///
/// /// The caller's tenant. A layer around the gateway adds it to the request's extensions.
/// #[derive(Clone)]
/// struct Tenant(String);
///
/// let gateway = Gateway::new(Memory::new())
///     .route(Method::GET, "/users", Kind::Rpc, "user.list")
///     .task("orders.create")
///     .max_body_bytes(64 * 1024)
///     .timeout(Duration::from_secs(5))
///     .content_type("application/json")
///     .forward_header(HeaderName::from_static("x-shop"))
///     .prepare(|request, message| {
///         let Some(Tenant(tenant)) = request.extensions.get() else {
///             return Err(RpcError::new("forbidden".into(), "no tenant"));
///         };
///         if let Some(key) = &message.parts().idempotency_key {
///             // Keys of different tenants must differ.
///             message.parts_mut().idempotency_key = Some(format!("{tenant}\n{key}").into());
///         }
///         message.parts_mut().reply_mode = ReplyMode::Fast;
///         Ok(())
///     });
/// ```
///
/// # Back-pressure
/// A gateway is always ready. If the inner service is not ready, the request waits in its future,
/// up to the [`timeout`](Self::timeout). With tower's `LoadShed` around the inner service, the
/// request gets a 503 instead. If the transport [limits](crate::transport::Settings::max_waiting)
/// the number of waiting messages, a request that would exceed the limit gets a 429 with a
/// `Retry-After`.
///
/// # Cancel safety
/// When the HTTP caller disconnects, the future is dropped. This also drops the call of the inner
/// service, which releases the call's permits. A message that was sent may still take effect.
///
/// # Panics
/// A panic of the inner service is not caught. If the inner service is a [`Router`](crate::Router),
/// the handlers run inside of the call, so a panic of a handler reaches the gateway. Put
/// tower-http's `CatchPanic` around the gateway.
#[derive(Clone)]
pub struct Gateway<S> {
    service: S,
    options: Arc<GatewayOptions>,
}

type Prepare = dyn Fn(&Parts, &mut Message) -> Result<(), RpcError> + Send + Sync;

#[derive(Clone)]
pub(super) struct GatewayOptions {
    routes: Routes,
    max_body_bytes: usize,
    timeout: Duration,
    /// The content types of HTML forms that are accepted. Form types that are not in this list are
    /// refused.
    accepted_form_types: Vec<String>,
    retry_after: Duration,
    /// The content type of replies that have none.
    default_content_type: HeaderValue,
    forwarded: ForwardedHeaders,
    prepare: Option<Arc<Prepare>>,
    status: Arc<dyn Fn(&RpcCode) -> StatusCode + Send + Sync>,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self {
            routes: Routes::default(),
            max_body_bytes: 2 * 1024 * 1024,
            timeout: Duration::from_secs(30),
            accepted_form_types: Vec::new(),
            retry_after: Problem::DEFAULT_RETRY_AFTER,
            default_content_type: HeaderValue::from_static("application/octet-stream"),
            forwarded: ForwardedHeaders::default(),
            prepare: None,
            status: Arc::new(status),
        }
    }
}

impl<S> Gateway<S> {
    /// Creates a gateway without routes to a service for messages.
    pub fn new(service: S) -> Self
    where
        S: MessageService,
    {
        Self {
            service,
            options: Arc::default(),
        }
    }

    fn with(mut self, change: impl FnOnce(&mut GatewayOptions)) -> Self {
        change(Arc::make_mut(&mut self.options));
        self
    }

    /// Adds a route for tasks of this name, by `POST` to its [path](super::path()): `orders.create`
    /// is `/orders/create`.
    ///
    /// # Panics
    /// When the name is empty or longer than [`Name::MAX_LEN`], or when the gateway has a `POST`
    /// route with its path already.
    #[must_use]
    #[track_caller]
    pub fn task(self, name: impl Into<Name>) -> Self {
        self.add_post_route(Kind::Task, name.into())
    }

    /// Adds a route for events of this name, by `POST` to its [path](super::path()).
    ///
    /// # Panics
    /// As [`task`](Self::task).
    #[must_use]
    #[track_caller]
    pub fn event(self, name: impl Into<Name>) -> Self {
        self.add_post_route(Kind::Event, name.into())
    }

    /// Adds a route for RPC requests of this name, by `POST` to its [path](super::path()).
    ///
    /// # Panics
    /// As [`task`](Self::task).
    #[must_use]
    #[track_caller]
    pub fn rpc(self, name: impl Into<Name>) -> Self {
        self.add_post_route(Kind::Rpc, name.into())
    }

    /// Adds a route by `POST` to the path of the name.
    #[track_caller]
    fn add_post_route(self, kind: Kind, name: Name) -> Self {
        let path = path(&name);
        self.route(Method::POST, &path, kind, name)
    }

    /// Adds a route for messages of this kind and name, with any method and path. The body of a
    /// request is the payload, and its query is ignored.
    ///
    /// # Panics
    /// When the path does not begin with a slash, when the name is empty or longer than
    /// [`Name::MAX_LEN`], or when the gateway has a route with this path and method already.
    #[must_use]
    #[track_caller]
    pub fn route(mut self, method: Method, path: &str, kind: Kind, name: impl Into<Name>) -> Self {
        let routes = &mut Arc::make_mut(&mut self.options).routes;
        routes.add(method, path, kind, name.into());
        self
    }

    /// Sets the maximum length of a request's body, in bytes. A request with a longer body gets a
    /// 413. 2 MiB unless set.
    #[must_use]
    pub fn max_body_bytes(self, limit: usize) -> Self {
        self.with(|options| options.max_body_bytes = limit)
    }

    /// Accepts bodies of one of the three types that HTML forms send: `text/plain`,
    /// `application/x-www-form-urlencoded` or `multipart/form-data`. From a form on another site, a
    /// browser sends such a body without a preflight request, and with the user's cookies. So these
    /// types are refused with a 415 unless this method accepts them. Do not accept them if callers
    /// are recognised by cookies, or by their network. All other types are accepted, unless
    /// [`content_types`](Self::content_types) sets the types of the route.
    #[must_use]
    pub fn accept_form_type(self, content_type: &str) -> Self {
        self.with(|options| options.accepted_form_types.push(content_type.to_owned()))
    }

    /// Sets the content types that the routes to this name accept: types such as
    /// `application/json`, or ranges such as `image/*`. A body of another type, or without a type,
    /// is refused with a 415. The `Accept` header of the response lists the accepted types.
    /// [`accept_form_type`](Self::accept_form_type) has no effect on these routes: they
    /// accept a form type only if it is in the list.
    ///
    /// # Panics
    /// If there is no route to the name yet, if there are no types, or if a type is malformed.
    #[must_use]
    #[track_caller]
    pub fn content_types<'a>(
        mut self,
        name: impl Into<Name>,
        types: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let types: Arc<[String]> = types.into_iter().map(str::to_owned).collect();
        if let Some(mistake) = types.iter().find_map(|it| media::mistake(it)) {
            panic!("{mistake}");
        }
        assert!(!types.is_empty(), "a route takes at least one type");
        let routes = &mut Arc::make_mut(&mut self.options).routes;
        routes.set_types(&name.into(), &types);
        self
    }

    /// Sets the length of two timers. 30 s unless set.
    ///
    /// The first timer covers the arrival of the request's body. When it ends, the response is a
    /// 408. The second timer starts when the body has arrived. It covers the sending of the message
    /// and, for an RPC request, the wait for the reply. When it ends, the response is a 504. No
    /// worker starts an RPC request after the end of the second timer.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with(|options| options.timeout = timeout)
    }

    /// Sets the `Retry-After` of a 503. 1 s unless set.
    #[must_use]
    pub fn retry_after(self, wait: Duration) -> Self {
        self.with(|options| options.retry_after = wait)
    }

    /// Sets the `content-type` of replies that have none. `application/octet-stream` unless set.
    ///
    /// # Panics
    /// When the text cannot be a header's value.
    #[must_use]
    #[track_caller]
    pub fn content_type(self, content_type: &str) -> Self {
        let value = HeaderValue::from_str(content_type);
        let value = value.expect("a content type is visible ASCII");
        self.with(|options| options.default_content_type = value)
    }

    /// Forwards one more header, from a request to its message and from a reply to its response.
    ///
    /// The defaults are `content-type`, `content-encoding`, `content-language`, `traceparent`,
    /// `tracestate`, `x-request-id`, and the headers of CloudEvents, which start with `ce-`. So
    /// credentials such as `authorization` and `cookie` are not forwarded. No header of a request
    /// for an event is forwarded, because events have no headers.
    #[must_use]
    pub fn forward_header(self, name: HeaderName) -> Self {
        self.with(|options| options.forwarded.add(name))
    }

    /// Calls a function with each request and its message before the message is sent. The function
    /// may change the message, or refuse it with an error. The code of that error decides the
    /// [status](Self::on_code) of the response.
    ///
    /// Layers around the gateway can pass values to the function in the request's extensions. After
    /// the function returns, these extensions are moved to the message. If the caller sent an
    /// idempotency key, the message has the key `<name>\n<caller's key>` already when the function
    /// is called.
    #[must_use]
    pub fn prepare<F>(self, prepare: F) -> Self
    where
        F: Fn(&Parts, &mut Message) -> Result<(), RpcError> + Send + Sync + 'static,
    {
        self.with(|options| options.prepare = Some(Arc::new(prepare)))
    }

    /// Sets the function that maps the code of an error reply to a status.
    /// [`status`](super::status()) unless set.
    #[must_use]
    pub fn on_code<F>(self, status: F) -> Self
    where
        F: Fn(&RpcCode) -> StatusCode + Send + Sync + 'static,
    {
        self.with(|options| options.status = Arc::new(status))
    }
}

impl<S, B> Service<Request<B>> for Gateway<S>
where
    S: MessageService + Clone,
    B: http_body::Body<Error: Into<BoxError>>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = GatewayFuture<S, B>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let responder = Responder {
            options: self.options.clone(),
            is_head: request.method() == Method::HEAD,
            request_id: request.headers().get(&REQUEST_ID).cloned(),
        };
        let route = match self
            .options
            .routes
            .find(request.method(), request.uri().path())
        {
            Ok(route) => route.clone(),
            Err(reason) => {
                let response = responder.no_route_response(reason);
                return GatewayFuture::new(responder, GatewayStage::Answered(Some(response)));
            }
        };
        let (head, body) = request.into_parts();
        // A body that is known to be longer than the limit is not read.
        if body.size_hint().lower() > self.options.max_body_bytes as u64 {
            let response = responder.long_body_response();
            return GatewayFuture::new(responder, GatewayStage::Answered(Some(response)));
        }
        let (method, headers, is_empty) = (&head.method, &head.headers, body.is_end_stream());
        let (forms, types) = (&self.options.accepted_form_types, route.types.as_deref());
        if let Err(fault) = media::check(method, headers, is_empty, forms, types) {
            let response = responder.media_fault_response(fault);
            return GatewayFuture::new(responder, GatewayStage::Answered(Some(response)));
        }
        let stage = GatewayStage::Reading {
            service: Some(self.service.clone()),
            route,
            head: Some(head),
            body: read(body, self.options.max_body_bytes),
            timer: sleep(self.options.timeout),
        };
        GatewayFuture::new(responder, stage)
    }
}

impl<S: fmt::Debug> fmt::Debug for Gateway<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("service", &self.service)
            .field("routes", &self.options.routes)
            .finish_non_exhaustive()
    }
}
