//! A client on Redis, interchangeable with the example client of the Go library.
//!
//! ```text
//! REDIS_URL=redis://127.0.0.1/ cargo run --example worker
//! REDIS_URL=redis://127.0.0.1/ cargo run --example client
//! ```

use std::{env, time::Duration};

use campanile::{BoxError, Client, Json, Redis};
use serde::{Deserialize, Serialize};

#[derive(Serialize)]
struct Order {
    id: u64,
    user_id: u64,
    title: &'static str,
}

#[derive(Serialize)]
struct OrderEvent {
    id: u64,
    r#type: &'static str,
}

#[derive(Serialize)]
struct GetUser {
    id: u64,
}

#[derive(Deserialize)]
struct User {
    id: u64,
    name: String,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    let redis = Redis::connect(&url)
        .await?
        .stream("app_stream")
        .group("app_group");
    let client = Client::new(redis).request_timeout(Duration::from_secs(5));
    let orders = client.nest("orders");

    let order = Order {
        id: 101,
        user_id: 42,
        title: "first",
    };
    let receipt = orders.enqueue("create", Json(&order)).await?;
    println!("task   orders.create: accepted as {receipt}");

    let event = OrderEvent {
        id: 101,
        r#type: "created",
    };
    orders.publish("events", Json(&event)).await?;
    println!("event  orders.events: published");

    let user: Json<User> = client.request("user.get", Json(GetUser { id: 42 })).await?;
    println!("rpc    user.get, reliable: {} is {}", user.id, user.name);
    let user: Json<User> = client
        .request_fast("user.get", Json(GetUser { id: 42 }))
        .await?;
    println!("rpc    user.get, fast: {} is {}", user.id, user.name);

    let nobody = client.request::<Json<User>>("user.get", Json(GetUser { id: 7 }));
    match nobody.await {
        Ok(user) => println!("rpc    user.get, of nobody: {}", user.name),
        Err(error) => match error.rpc() {
            Some(answer) => println!("rpc    user.get, of nobody: {answer}"),
            None => return Err(error.into()),
        },
    }
    Ok(())
}
