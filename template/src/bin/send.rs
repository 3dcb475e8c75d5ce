//! A client: `cargo run --bin send`, while the worker runs.

use std::env;

use campanile::{BoxError, Client, Json, Redis};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    let orders = Client::new(Redis::connect(&url).await?.stream("my-app")).nest("orders");
    orders.enqueue("create", Json("Emma")).await?;
    let Json(title): Json<String> = orders.request("title", Json(7)).await?;
    println!("{title}");
    Ok(())
}
