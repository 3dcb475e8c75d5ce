//! An application that works on a queue.

use campanile::{BoxError, Json, Outbox, Router, RpcError};

/// A task: it runs at least once, again after an error, and ends as a dead letter after 10 attempts.
async fn create(outbox: Outbox, Json(title): Json<String>) -> Result<(), BoxError> {
    println!("order for {title}");
    outbox.publish("orders.created", Json(title)).await?; // sent only if this task succeeds
    Ok(())
}

/// A request: its caller gets the answer, or the error.
async fn title(Json(id): Json<u64>) -> Result<Json<String>, RpcError> {
    match id {
        7 => Ok(Json("Emma".into())),
        _ => Err(RpcError::not_found("no such order")),
    }
}

/// The routes. Layers go around them: `.layer(tower::ServiceBuilder::new().concurrency_limit(32))`.
pub fn app() -> Router {
    let orders = Router::new().task("create", create).rpc("title", title);
    Router::new().nest("orders", orders)
}
