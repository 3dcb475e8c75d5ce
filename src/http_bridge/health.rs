//! Liveness and readiness probes.

use std::{
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE},
};
use serde_json::{Map, Value, json};
use tower::Service;

use super::{body::Body, problem::Problem};
use crate::transport::ConnectionState;

/// An HTTP service for probes. It responds with success if all of its checks hold.
///
/// Without checks it is a *liveness* probe: a process that responds is alive. An orchestrator
/// restarts a process whose liveness probe fails. A restart does not bring back Redis, so a check
/// of another server belongs in a *readiness* probe.
///
/// ```
/// use campanile::http_bridge::{Body, Health};
/// use http::{Request, StatusCode};
/// use tower::ServiceExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let healthz = Health::new();
/// let response = healthz.oneshot(Request::get("/healthz").body(Body::default()).unwrap()).await;
/// assert_eq!(response.unwrap().status(), StatusCode::OK);
/// # }
/// ```
///
/// This readiness probe succeeds while a transport is ready, until the process shuts down:
///
/// ```no_run
/// use campanile::{Redis, http_bridge::Health};
/// use tokio_util::sync::CancellationToken;
///
/// # fn example(redis: Redis, shutdown: CancellationToken) {
/// let readyz = Health::new()
///     .transport("redis", move || redis.state())
///     .check("running", move || !shutdown.is_cancelled());
/// # }
/// ```
///
/// The response is 200 or 503, with each check as JSON:
/// `{"ready":false,"checks":{"redis":"reconnecting","running":true}}`. Methods other than `GET` and
/// `HEAD` get 405.
///
/// The checks run for every request and must not block.
#[derive(Clone, Default)]
pub struct Health {
    checks: Vec<(&'static str, Check)>,
}

/// A check of a probe.
#[derive(Clone)]
enum Check {
    /// Succeeds while this function returns a ready state.
    Transport(Arc<dyn Fn() -> ConnectionState + Send + Sync>),
    /// Succeeds while this function returns `true`.
    Condition(Arc<dyn Fn() -> bool + Send + Sync>),
}

impl Health {
    /// Creates a probe without checks, which always succeeds.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a check that fails while a transport is not [ready](ConnectionState::is_ready). `state`
    /// returns the transport's state, usually by its `state` method.
    #[must_use]
    pub fn transport<F>(mut self, name: &'static str, state: F) -> Self
    where
        F: Fn() -> ConnectionState + Send + Sync + 'static,
    {
        self.checks.push((name, Check::Transport(Arc::new(state))));
        self
    }

    /// Adds a check that fails while `holds` returns `false`.
    #[must_use]
    pub fn check<F>(mut self, name: &'static str, holds: F) -> Self
    where
        F: Fn() -> bool + Send + Sync + 'static,
    {
        self.checks.push((name, Check::Condition(Arc::new(holds))));
        self
    }

    /// Runs the checks, and returns the response to a `GET`.
    fn run_checks(&self) -> Response<Body> {
        let mut all_hold = true;
        let mut checks = Map::new();
        for (name, check) in &self.checks {
            let (holds, value) = match check {
                Check::Transport(state_of) => {
                    let state = state_of();
                    (state.is_ready(), Value::from(state.to_string()))
                }
                Check::Condition(condition) => {
                    let holds = condition();
                    (holds, Value::from(holds))
                }
            };
            all_hold &= holds;
            checks.insert((*name).to_owned(), value);
        }
        let json = json!({ "ready": all_hold, "checks": checks });
        let mut response = Response::new(Body::from(json.to_string()));
        if !all_hold {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

impl<B> Service<Request<B>> for Health {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let response = match *request.method() {
            Method::GET => self.run_checks(),
            // An HTTP server would drop the body. Callers that use this service without a server
            // get no body either.
            Method::HEAD => self.run_checks().map(|_| Body::default()),
            _ => {
                let status = StatusCode::METHOD_NOT_ALLOWED;
                let problem = Problem::new(status, "method_not_allowed", "a probe is a GET");
                let mut response = problem.into_response();
                let allow = HeaderValue::from_static("GET, HEAD");
                response.headers_mut().insert(ALLOW, allow);
                response
            }
        };
        ready(Ok(response))
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.checks.iter().map(|(name, _)| name);
        f.debug_list().entries(names).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn probe(health: &Health, method: Method) -> (u16, String) {
        let request = Request::builder().method(method).body(()).unwrap();
        let response = health.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.into()).unwrap())
    }

    #[tokio::test]
    async fn a_probe_without_checks_succeeds() {
        let (status, body) = probe(&Health::new(), Method::GET).await;
        assert_eq!((status, &*body), (200, r#"{"checks":{},"ready":true}"#));
    }

    #[tokio::test]
    async fn a_probe_succeeds_while_all_checks_hold_and_lists_each_check() {
        let up = Arc::new(AtomicBool::new(true));
        let health = Health::new()
            .transport("redis", {
                let up = up.clone();
                move || match up.load(Ordering::SeqCst) {
                    true => ConnectionState::Connected,
                    false => ConnectionState::Lagging,
                }
            })
            .check("warm", || true);
        assert_eq!(probe(&health, Method::GET).await.0, 200);
        up.store(false, Ordering::SeqCst);
        let (status, body) = probe(&health, Method::GET).await;
        assert_eq!(status, 503);
        assert_eq!(
            body,
            r#"{"checks":{"redis":"lagging","warm":true},"ready":false}"#
        );
        assert_eq!(probe(&health, Method::HEAD).await, (503, String::new()));
        assert_eq!(probe(&health, Method::POST).await.0, 405);
        let cold = Health::new().check("warm", || false);
        assert_eq!(probe(&cold, Method::GET).await.0, 503);
    }
}
