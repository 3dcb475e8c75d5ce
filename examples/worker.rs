//! A worker on Redis, interchangeable with the example worker of the Go library.
//!
//! ```text
//! REDIS_URL=redis://127.0.0.1/ cargo run --example worker
//! ```
//!
//! The worker serves the stream `app_stream` as the group `app_group`, until Ctrl-C. `RUST_LOG`
//! sets the level of its log.

use std::env;

use campanile::{BoxError, Json, Redis, Router, RpcError, serve};
use serde::{Deserialize, Serialize};
use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

#[derive(Debug, Deserialize)]
struct Order {
    id: u64,
    user_id: u64,
    title: String,
}

#[derive(Deserialize)]
struct GetUser {
    id: u64,
}

#[derive(Serialize)]
struct User {
    id: u64,
    name: &'static str,
}

async fn create(Json(order): Json<Order>) {
    println!(
        "task   orders.create: order {} of user {} is \"{}\"",
        order.id, order.user_id, order.title
    );
}

async fn on_event(event: String) {
    println!("event  orders.events: {event}");
}

async fn get_user(Json(query): Json<GetUser>) -> Result<Json<User>, RpcError> {
    println!("rpc    user.get: {}", query.id);
    match query.id {
        42 => Ok(Json(User {
            id: 42,
            name: "Alice",
        })),
        _ => Err(RpcError::not_found("no such user")),
    }
}

pub(crate) fn app() -> Router {
    let orders = Router::new()
        .task("create", create)
        .event("events", on_event);
    Router::new()
        .nest("orders", orders)
        .rpc("user.get", get_user)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let levels = env::var("RUST_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::registry()
        .with(levels.parse::<Targets>()?)
        .with(fmt::layer().with_writer(std::io::stderr))
        .init();

    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    let redis = Redis::connect(&url)
        .await?
        .stream("app_stream")
        .group("app_group");
    println!("serving app_stream as app_group; Ctrl-C ends it");
    serve(redis, app()).with_signals().await?;
    Ok(())
}
