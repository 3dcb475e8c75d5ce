//! HTTP layers around message services.

mod as_http;

use tower::Layer;

pub use self::as_http::{AsHttp, AsHttpFuture};
use super::handler::HttpHandler;

/// Puts an HTTP layer, such as one of [tower-http](https://docs.rs/tower-http), around a
/// `Service<Message>`.
///
/// The HTTP layer sees each message as a `POST` request to the [path](super::path()) of its name,
/// with the message's headers and extensions, an [`Origin`], and the payload as the body. It sees a
/// reply as a response with the status 200. The layer may change headers, extensions and bodies in
/// both directions. A change of the method or the path has no effect.
///
/// ```
/// use campanile::{Client, Router, http_bridge::{Body, HttpLayer}};
/// use http::{HeaderMap, HeaderValue, Request};
/// use tower::util::MapRequestLayer;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), campanile::Error> {
/// // Like tower-http's `SetRequestHeaderLayer::if_not_present`.
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
/// If the inner message service fails, the HTTP layer gets the error unchanged, and usually returns
/// it. If the layer itself responds with a status other than 2xx, the
/// [table](super#the-meaning-of-a-status) shows the outcome. If the payload of the message cannot
/// be read, for example because it is too long or not valid gzip, the error is a permanent
/// [`Rejection`](crate::Rejection).
///
/// [`Origin`]: super::Origin
#[derive(Debug, Clone)]
pub struct HttpLayer<L> {
    layer: L,
    max_bytes: usize,
}

impl<L> HttpLayer<L> {
    /// Creates a layer for messages from a layer for HTTP.
    pub fn new(layer: L) -> Self {
        Self {
            layer,
            max_bytes: 64 * 1024 * 1024,
        }
    }

    /// Sets the maximum length of a payload, in bytes, in each direction. The limit applies after
    /// the HTTP layer has processed the payload, because decompression can make a body much longer.
    /// 64 MiB unless set.
    #[must_use]
    pub fn max_bytes(mut self, limit: usize) -> Self {
        self.max_bytes = limit;
        self
    }
}

impl<S, L: Layer<AsHttp<S>>> Layer<S> for HttpLayer<L> {
    type Service = HttpHandler<L::Service>;

    fn layer(&self, inner: S) -> Self::Service {
        let inner = AsHttp::new(inner, self.max_bytes);
        HttpHandler::for_layer(self.layer.layer(inner), self.max_bytes)
    }
}
