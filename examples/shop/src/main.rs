//! Two orders, an import and a clean-up in a shop whose work is done by jobs.
//!
//! ```text
//! cargo run -p example-shop
//! REDIS_URL=redis://127.0.0.1/ cargo run -p example-shop
//! ```
//!
//! The first command needs nothing but Rust: messages stay in memory. The application is in
//! `lib.rs`.

use std::{env, time::Duration};

use campanile::{
    BoxError, Client, Json, Redis, serve,
    transport::{
        Broker, Changes, ChangesFrom, FeedItem, Limit, Schedules, TaskState, Tasks, memory::Memory,
    },
};
use example_shop::{Order, app, cancel_order, request_invoice, schedules};
use tokio::sync::oneshot;

async fn run_shop(
    broker: impl Broker,
    tasks: Tasks,
    shop_schedules: Schedules,
    payments: Limit,
) -> Result<(), BoxError> {
    let mut changes = tasks.changes(ChangesFrom::Now).await?;
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = tokio::spawn(
        serve(broker.clone(), app(payments))
            .with_graceful_shutdown(async { drop(stopped.await) })
            .into_future(),
    );
    let sender = tokio::spawn({
        let shop_schedules = shop_schedules.clone();
        async move { shop_schedules.run(schedules()).await }
    });
    let client = Client::new(broker);

    let import = client.enqueue("catalogue.import", Json(4));
    let import = import.tracked(Duration::from_secs(3600)).await?;

    // Both orders are of one customer, so the second order is paid after the first.
    let order = |id| Json(Order { id, customer: 7 });
    client.enqueue("orders.place", order(1)).await?;
    wait_for_state(&mut changes, "orders.pay", TaskState::Running).await?;
    client.enqueue("orders.place", order(2)).await?;

    let again = request_invoice(&client, 1).await?.is_duplicate();
    println!("order 1: its invoice is being made already: {again}");

    wait_for_state(&mut changes, "orders.pack", TaskState::Running).await?;
    // The second run is skipped, because the first clean-up is still running.
    for _ in 0..2 {
        let run = shop_schedules.run_now(&"clean up".into()).await?;
        match run.ok_or("the schedule is not stored")?.is_skipped {
            false => println!("clean-up: sent"),
            true => println!("clean-up: skipped, since it runs"),
        }
    }
    let is_cancelled = cancel_order(&tasks, 1).await?;
    println!("order 1: is cancelled: {is_cancelled}");

    // The first attempt of the import fails. The next attempt starts at its checkpoint.
    let imported = tasks.wait(import.id().ok_or("it is stored")?).await?;
    let Json(pages): Json<u32> = imported.read_result()?;
    let attempt = imported.attempt.0;
    println!("catalogue: attempt {attempt} has imported the last {pages} pages");

    wait_for_state(&mut changes, "orders.pack", TaskState::Done).await?;
    sender.abort();
    drop(stop);
    worker.await??;
    Ok(())
}

/// Waits until a task with this name has reached a state.
async fn wait_for_state(
    changes: &mut Changes,
    name: &str,
    state: TaskState,
) -> Result<(), BoxError> {
    loop {
        match changes.next().await? {
            FeedItem::Change(change) if change.name == *name && change.state == state => {
                return Ok(());
            }
            _ => {}
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    match env::var("REDIS_URL") {
        Ok(url) => {
            let redis = Redis::connect(&url).await?.stream("shop");
            let limit = redis.limit("payments")?;
            run_shop(redis.clone(), redis.tasks(), redis.schedules(), limit).await
        }
        Err(_) => {
            let memory = Memory::new();
            let limit = memory.limit("payments")?;
            run_shop(memory.clone(), memory.tasks(), memory.schedules(), limit).await
        }
    }
}
