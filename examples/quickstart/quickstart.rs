//! A task, an event and two requests, served and sent by one process.
//!
//! ```text
//! cargo run --example quickstart
//! REDIS_URL=redis://127.0.0.1/ cargo run --example quickstart
//! ```
//!
//! The first command needs nothing but Rust: messages stay in memory. The second runs the same code
//! over Redis.

use std::{collections::HashMap, env, sync::Arc};

use campanile::{
    BoxError, Client, Json, Redis, Router, RpcError, State, serve,
    transport::{Broker, memory::Memory},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

#[derive(Serialize, Deserialize)]
struct Order {
    id: u64,
    user_id: u64,
    title: String,
}

#[derive(Serialize, Deserialize)]
struct GetUser {
    id: u64,
}

#[derive(Clone, Serialize, Deserialize)]
struct User {
    id: u64,
    name: String,
}

#[derive(Clone)]
struct App {
    users: Arc<HashMap<u64, User>>,
    /// Reports handled messages to `main`, which waits for them.
    handled: mpsc::Sender<&'static str>,
}

async fn create(State(app): State<App>, Json(order): Json<Order>) -> Result<(), BoxError> {
    println!(
        "task   orders.create: order {} is \"{}\"",
        order.id, order.title
    );
    app.handled.send("task").await?;
    Ok(())
}

async fn on_event(State(app): State<App>, event: String) -> Result<(), BoxError> {
    println!("event  orders.events: {event}");
    app.handled.send("event").await?;
    Ok(())
}

async fn get_user(
    State(app): State<App>,
    Json(query): Json<GetUser>,
) -> Result<Json<User>, RpcError> {
    let user = app.users.get(&query.id).cloned();
    user.map(Json)
        .ok_or_else(|| RpcError::not_found(format!("no user {}", query.id)))
}

fn app() -> Router<App> {
    let orders = Router::new()
        .task("create", create)
        .event("events", on_event);
    Router::new()
        .nest("orders", orders) // orders.create, orders.events
        .rpc("user.get", get_user)
}

pub(crate) async fn run(broker: impl Broker) -> Result<(), BoxError> {
    let alice = User {
        id: 42,
        name: "Alice".into(),
    };
    let (handled, mut seen) = mpsc::channel(1);
    let state = App {
        users: Arc::new(HashMap::from([(alice.id, alice)])),
        handled,
    };

    let (stop, stopped) = oneshot::channel::<()>();
    let worker = tokio::spawn(
        serve(broker.clone(), app().with_state(state))
            .with_graceful_shutdown(async { drop(stopped.await) })
            .into_future(),
    );

    let client = Client::new(broker);
    let orders = client.nest("orders");
    let order = Order {
        id: 101,
        user_id: 42,
        title: "first".into(),
    };
    let receipt = orders.enqueue("create", Json(&order)).await?;
    println!("task   orders.create: accepted as {receipt}");
    seen.recv().await;

    // The worker has handled tasks, so its subscription to events is confirmed.
    orders
        .publish("events", r#"{"id":101,"type":"created"}"#)
        .await?;
    seen.recv().await;

    let question = GetUser { id: 42 };
    let user: Json<User> = client.request("user.get", Json(&question)).await?;
    println!("rpc    user.get, reliable: {}", user.name);
    let user: Json<User> = client.request_fast("user.get", Json(&question)).await?;
    println!("rpc    user.get, fast: {}", user.name);

    let missing = client.request::<Json<User>>("user.get", Json(GetUser { id: 7 }));
    if let Err(error) = missing.await {
        let answer = error.rpc().ok_or("the error should be the handler's")?;
        println!("rpc    user.get, of nobody: {answer}");
    }

    drop(stop);
    worker.await??;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    match env::var("REDIS_URL") {
        Ok(url) => run(Redis::connect(&url).await?).await,
        Err(_) => run(Memory::new()).await,
    }
}
