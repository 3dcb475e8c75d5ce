//! HTTP layers around message services.

mod as_http;

use tower::Layer;

pub(super) use self::as_http::Accepted;
pub use self::as_http::{AsHttp, AsHttpFuture};
use super::handler::HttpHandler;

/// Puts an HTTP layer, such as one of
/// [tower-http](https://docs.rs/tower-http)'s, around a `Service<Message>`.
///
/// The layer sees each message as a request: its headers, its extensions and an [`Origin`] among
/// them, its payload as the body, `POST` and the [path](super::path()) of its name. What the layer makes of
/// headers, extensions and bodies reaches the service, and what it makes of the reply, which is a
/// response with status 200, reaches whoever called. Method and path are only to be looked at.
///
/// ```
/// use campanile::{Client, Router, http_bridge::{Body, HttpLayer}};
/// use http::{HeaderMap, HeaderValue, Request};
/// use tower::util::MapRequestLayer;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), campanile::Error> {
/// // As tower-http's `SetRequestHeaderLayer::if_not_present` does.
/// let tenant = MapRequestLayer::new(|mut request: Request<Body>| {
///     let headers = request.headers_mut();
///     headers.entry("x-tenant").or_insert(HeaderValue::from_static("acme"));
///     request
/// });
/// let app: Router = Router::new()
///     .rpc("tenant", async |headers: HeaderMap| {
///         String::from_utf8_lossy(headers["x-tenant"].as_bytes()).into_owned()
///     })
///     .layer(HttpLayer::new(tenant));
///
/// let tenant: String = Client::new(app).request("tenant", ()).await?;
/// assert_eq!(tenant, "acme");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// An error of the service passes through the layer as an error, so what it says about the delivery
/// holds. A response of the layer's own with a status other than 2xx is an error by the
/// [table](super#what-a-status-means). A body that cannot be read on its way in, since it is no
/// gzip or too long, is a permanent [`Rejection`](crate::Rejection).
///
/// [`Origin`]: super::Origin
#[derive(Debug, Clone)]
pub struct HttpLayer<L> {
    layer: L,
    limit: usize,
}

impl<L> HttpLayer<L> {
    /// The layer, for messages.
    pub fn new(layer: L) -> Self {
        Self {
            layer,
            limit: 64 * 1024 * 1024,
        }
    }

    /// The longest payload in bytes that may come out of the layer, in each direction: what is
    /// compressed can be much longer than it looks. 64 MiB unless set.
    #[must_use]
    pub fn max_bytes(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }
}

impl<S, L: Layer<AsHttp<S>>> Layer<S> for HttpLayer<L> {
    type Service = HttpHandler<L::Service>;

    fn layer(&self, inner: S) -> Self::Service {
        let inner = AsHttp::new(inner, self.limit);
        HttpHandler::whole(self.layer.layer(inner), self.limit)
    }
}
