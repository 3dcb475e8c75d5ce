//! The HTTP API.

use std::time::Duration;

use axum::{
    Extension, Json, Router,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use campanile::{
    BoxSender, Client, Error, MessageId, dashboard::Dashboard, http_bridge::Problem,
    transport::Tasks,
};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};

use crate::{
    contracts::{CONVERT, Image, SIZE},
    traces::traced,
    work::TENANT,
};

/// The streams of conversions, the urgent one first. Their hash tag keeps them on one node.
pub const STREAMS: [&str; 2] = ["{images}.urgent", "{images}.normal"];
const HOUR: Duration = Duration::from_secs(3600);

/// The state of the API.
#[derive(Debug, Clone)]
pub struct Api {
    /// Sends to each stream.
    pub client: Client<BoxSender>,
    /// The tasks of each stream.
    pub tasks: [Tasks; 2],
    /// The metrics of the process.
    pub metrics: PrometheusHandle,
}

/// The tenant that an API key belongs to.
#[derive(Clone)]
struct Tenant(&'static str);

fn tenant(headers: &HeaderMap) -> Option<Tenant> {
    match headers.get("x-api-key")?.to_str().ok()? {
        "key-of-ann" => Some(Tenant("ann")),
        "key-of-bob" => Some(Tenant("bob")),
        _ => None,
    }
}

/// Refuses requests without an API key.
async fn with_key(mut request: Request, next: Next) -> Response {
    let Some(tenant) = tenant(request.headers()) else {
        return (StatusCode::UNAUTHORIZED, "an x-api-key is needed\n").into_response();
    };
    request.extensions_mut().insert(tenant);
    next.run(request).await
}

/// The error of a call as a response.
struct CallError(Problem);

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for CallError {
    fn into_response(self) -> Response {
        self.0.into_response().into_response()
    }
}

async fn convert(
    State(api): State<Api>,
    Extension(Tenant(tenant)): Extension<Tenant>,
    headers: HeaderMap,
    Json(image): Json<Image>,
) -> Result<(StatusCode, Json<Value>), CallError> {
    let [urgent, normal] = STREAMS;
    let stream = if headers.contains_key("x-urgent") {
        urgent
    } else {
        normal
    };
    let convert = api.client.enqueue(CONVERT, image).stream(stream);
    let convert = convert.header(TENANT, tenant).tracked(HOUR);
    let receipt = convert.attempt_timeout(HOUR).max_attempts(5).await?;
    let id = receipt.id().map(ToString::to_string);
    Ok((StatusCode::ACCEPTED, Json(json!({ "id": id }))))
}

async fn show(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, CallError> {
    let id = MessageId::from(id);
    for tasks in &api.tasks {
        if let Some(status) = tasks.status(&id).await? {
            let progress: Option<(u32, u32)> = status.read_progress()?;
            let result = status
                .read_result()
                .ok()
                .map(|campanile::Json(it): campanile::Json<Value>| it);
            let status = json!({ "state": status.state.to_string(), "progress": progress, "result": result });
            return Ok(Json(status).into_response());
        }
    }
    Ok(StatusCode::NOT_FOUND.into_response())
}

async fn cancel(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<bool>, CallError> {
    let id = MessageId::from(id);
    let mut is_cancelled = false;
    for tasks in &api.tasks {
        is_cancelled |= tasks.cancel(&id, "asked for over HTTP").await?;
    }
    Ok(Json(is_cancelled))
}

/// Waits for a worker's answer.
async fn size(State(api): State<Api>, Json(image): Json<Image>) -> Result<Json<u64>, CallError> {
    let size = api.client.call(SIZE, image).stream(STREAMS[0]);
    Ok(Json(size.timeout(Duration::from_secs(5)).await?))
}

/// The API, the metrics, and the dashboard for operators.
pub fn app(api: Api, dashboard: Dashboard) -> Router {
    let images = Router::new()
        .route("/images", post(convert))
        .route("/images/size", post(size))
        .route("/images/{id}", get(show).delete(cancel))
        .layer(from_fn(with_key))
        .route_layer(from_fn(traced));
    let operators = Router::new().nest_service("/ops", dashboard.at("/ops"));
    images
        .route(
            "/metrics",
            get(async |State(api): State<Api>| api.metrics.render()),
        )
        .with_state(api)
        .merge(operators)
}
