//! The HTTP side of the application.

use std::{fmt::Write as _, sync::atomic::Ordering, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, Request, State},
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use campanile::{
    http_bridge::{Gateway, Health, Problem},
    transport::GroupStats,
};
use serde_json::{Value, json};
use tokio::time::timeout;
use tower::ServiceBuilder;
use tower_http::{
    ServiceBuilderExt, catch_panic::CatchPanicLayer, request_id::MakeRequestUuid, trace::TraceLayer,
};

use crate::{App, Order, User};

/// The error of a call as a response.
struct CallError(Problem);

impl From<campanile::Error> for CallError {
    fn from(error: campanile::Error) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for CallError {
    fn into_response(self) -> Response {
        self.0.into_response().into_response()
    }
}

async fn create_order(
    State(app): State<App>,
    Json(order): Json<Order>,
) -> Result<(StatusCode, Json<Value>), CallError> {
    let receipt = app
        .client
        .enqueue("orders.create", campanile::Json(order))
        .await?;
    let id = receipt.id().map(|id| id.as_str());
    Ok((StatusCode::ACCEPTED, Json(json!({ "id": id }))))
}

async fn publish(State(app): State<App>, text: String) -> Result<StatusCode, CallError> {
    app.client.publish("news", text).await?;
    Ok(StatusCode::ACCEPTED)
}

async fn get_user(State(app): State<App>, Path(id): Path<u64>) -> Result<Json<User>, CallError> {
    let campanile::Json(user) = app.client.request("user.get", campanile::Json(id)).await?;
    Ok(Json(user))
}

/// Selects a number from the statistics of a group. `None` if the number is unknown.
type ReadGauge = fn(&GroupStats) -> Option<u64>;

/// The transport's metrics in Prometheus' text format.
async fn metrics(State(app): State<App>) -> impl IntoResponse {
    let mut text = String::new();
    let counts = app.redis.counts();
    for (name, count) in [
        ("http_requests", app.requests()),
        ("orders_handled", app.handled_orders.load(Ordering::Relaxed)),
        ("messages_sent", counts.sent),
        ("deliveries", counts.delivered),
        ("deliveries_done", counts.done),
        ("deliveries_redelivered", counts.redelivered),
        ("dead_letters", counts.dead),
        ("events", counts.events),
        ("events_dropped", counts.events_dropped),
        ("reconnects", counts.reconnects),
    ] {
        let name = format!("campanile_{name}_total");
        let _ = writeln!(text, "# TYPE {name} counter\n{name} {count}");
    }
    // If the server is down, the gauges are missing, and the scrape waits at most a second.
    let stats = timeout(Duration::from_secs(1), app.redis.stats()).await;
    let stats = stats.ok().and_then(Result::ok);
    let groups = stats.map_or_else(Vec::new, |stats| stats.groups);
    let gauges: [(&str, ReadGauge); 6] = [
        ("lag", |group| group.lag),
        ("pending", |group| Some(group.pending)),
        ("oldest_pending_seconds", |group| {
            Some(group.oldest_pending?.as_secs())
        }),
        ("delayed", |group| Some(group.delayed)),
        ("dead", |group| Some(group.dead)),
        ("consumers", |group| Some(group.consumers)),
    ];
    for (name, read) in gauges {
        let _ = writeln!(text, "# TYPE campanile_group_{name} gauge");
        for group in &groups {
            if let Some(value) = read(group) {
                let group = group.group.as_str();
                let _ = writeln!(text, "campanile_group_{name}{{group={group:?}}} {value}");
            }
        }
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

async fn count_request(State(app): State<App>, request: Request, next: Next) -> Response {
    app.request_count.fetch_add(1, Ordering::Relaxed);
    next.run(request).await
}

pub(crate) fn app(app: App) -> Router {
    let gateway = Gateway::new(app.redis.clone())
        .task("orders.create")
        .event("news")
        .rpc("user.get")
        .rpc("price.quote")
        .content_type("application/json");
    let ready = Health::new()
        .transport("redis", {
            let redis = app.redis.clone();
            move || redis.state()
        })
        .check("running", {
            let stopping = app.stopping.clone();
            move || !stopping.is_cancelled()
        });
    Router::new()
        .route("/orders", post(create_order))
        .route("/news", post(publish))
        .route("/users/{id}", get(get_user))
        .nest_service("/messages", gateway)
        .layer(
            ServiceBuilder::new()
                .set_x_request_id(MakeRequestUuid)
                .layer(TraceLayer::new_for_http())
                .propagate_x_request_id()
                .layer(CatchPanicLayer::new()),
        )
        .layer(middleware::from_fn_with_state(app.clone(), count_request))
        // Probes are neither counted nor traced.
        .route_service("/healthz", Health::new())
        .route_service("/readyz", ready)
        .route("/metrics", get(metrics))
        .with_state(app)
}
