//! The queue side of the application.

use std::{sync::atomic::Ordering, time::Duration};

use campanile::{
    Json, Router, RpcError, State,
    http_bridge::{HttpHandler, HttpLayer},
};
use serde_json::{Value, json};
use tower_http::trace::TraceLayer;

use crate::{App, Order, User};

async fn create(State(app): State<App>, Json(order): Json<Order>) {
    tokio::time::sleep(Duration::from_millis(2)).await; // as a database would take
    app.handled_orders.fetch_add(1, Ordering::Relaxed);
    println!("task   orders.create: {} \"{}\"", order.id, order.title);
}

async fn news(text: String) {
    println!("event  news: {text}");
}

async fn get_user(Json(id): Json<u64>) -> Result<Json<User>, RpcError> {
    match id {
        42 => Ok(Json(User {
            id,
            name: "Alice".into(),
        })),
        _ => Err(RpcError::not_found(format!("no user {id}"))),
    }
}

/// A router written for HTTP. Its requests are messages, but the router does not notice this.
fn prices() -> axum::Router {
    let quote = async |axum::Json(basket): axum::Json<Value>| {
        let books = basket["books"].as_u64().unwrap_or_default();
        axum::Json(json!({ "cents": 900 * books }))
    };
    axum::Router::new().route("/price/quote", axum::routing::post(quote))
}

pub(crate) fn app() -> Router<App> {
    Router::new()
        .task("orders.create", create)
        .event("news", news)
        .rpc("user.get", get_user)
        .rpc_service(
            "price.quote",
            HttpHandler::new(prices()).content_type("application/json"),
        )
        .layer(HttpLayer::new(TraceLayer::new_for_http()))
}
