//! One process that answers HTTP requests and works on a queue, with one shutdown.
//!
//! ```text
//! REDIS_URL=redis://127.0.0.1/ cargo run -p example-recipes --example web_and_worker
//! curl -i localhost:3000/orders -d 'a book'
//! ```

use std::env;

use axum::{extract::State, http::StatusCode, routing::post};
use campanile::{BoxError, Client, Redis, Router, http_bridge::Problem, serve};
use tokio::{net::TcpListener, signal};
use tokio_util::sync::CancellationToken;

/// Answers the request once the task is stored. An error becomes an HTTP response, such as 503
/// while Redis cannot be reached.
async fn order(State(client): State<Client<Redis>>, order: String) -> axum::response::Response {
    use axum::response::IntoResponse;
    match client.enqueue("orders.place", order).await {
        Ok(_) => StatusCode::ACCEPTED.into_response(),
        Err(error) => Problem::from(error).into_response().into_response(),
    }
}

async fn place(order: String) {
    println!("placed: {order}");
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    let listen = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let redis = Redis::connect(&url).await?.stream("shop");

    let web = axum::Router::new().route("/orders", post(order));
    let web = web.with_state(Client::new(redis.clone()));
    let listener = TcpListener::bind(listen).await?;
    println!("listening on {}", listener.local_addr()?);

    let stop = CancellationToken::new();
    let http = axum::serve(listener, web).with_graceful_shutdown(stop.clone().cancelled_owned());
    let app = Router::new().task("orders.place", place);
    let worker = serve(redis, app).with_graceful_shutdown(stop.clone().cancelled_owned());
    let http = tokio::spawn(http.into_future());
    let worker = tokio::spawn(worker.into_future());
    signal::ctrl_c().await?;
    stop.cancel(); // both end what they have begun
    http.await??;
    worker.await??;
    println!("stopped");
    Ok(())
}
