//! Versions of payloads during a rolling deploy.

use std::sync::{Arc, Mutex};

use campanile::{Attempt, Client, Json, Redis, Router, contract::Task};
use serde_json::{Value, json};

use crate::{
    SECOND,
    support::{RedisServer, raw::eventually, worker::Worker},
};

const OLD: Task<u32> = Task::new("orders.create");
const NEW: Task<Value> = Task::new("orders.create").version(2);
const TASKS: u32 = 200;

type Handled = Arc<Mutex<Vec<(Value, Attempt)>>>;

fn old(redis: &Redis) -> Worker {
    let app: Router = Router::new().task(OLD, async |Json(id): Json<u32>| -> () {
        panic!("an old worker has got {id}");
    });
    Worker::start(redis.clone(), app)
}

fn new(redis: &Redis, handled: &Handled) -> Worker {
    let handled = handled.clone();
    let handler = async move |attempt: Attempt, Json(order): Json<Value>| {
        handled.lock().expect("no panic").push((order, attempt));
    };
    let app: Router = Router::new().task(NEW.lift(1, |id: u32| json!({ "id": id })), handler);
    Worker::start(redis.clone(), app)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_deploy_buries_no_task_of_the_new_version_and_counts_no_attempt() {
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url())
        .await
        .expect("the server answers")
        .max_deliveries(2);
    let olds = [old(&redis), old(&redis)];
    let client = Client::new(redis.clone());
    for id in 0..TASKS {
        client
            .enqueue(NEW, json!({ "id": id }))
            .await
            .expect("it is sent");
    }
    let group = async || {
        let stats = redis.stats().await.expect("the server answers");
        stats.groups.first().cloned()
    };
    let parked = async || (group().await?.parked == u64::from(TASKS)).then_some(());
    eventually(parked, 30 * SECOND).await;
    let keys = redis.messages().parked().await.expect("the server answers");
    assert_eq!(
        (keys[0].name.as_deref(), keys[0].version),
        (Some("orders.create"), Some(2))
    );

    // The first new worker, beside the old ones, which take some of the tasks again.
    let handled = Handled::default();
    let new = new(&redis, &handled);
    let count = || handled.lock().expect("no panic").len();
    eventually(async || (count() > 0).then_some(()), 5 * SECOND).await;
    for old in olds {
        old.stop().await.expect("the old worker ends");
    }
    let all = async || (count() == TASKS as usize).then_some(());
    eventually(all, 10 * SECOND).await;
    let mut seen = handled.lock().expect("no panic").clone();
    assert!(seen.iter().all(|(_, attempt)| *attempt == Attempt(1)));
    seen.sort_by_key(|(order, _)| order["id"].as_u64());
    seen.dedup();
    assert_eq!(seen.len(), TASKS as usize);
    new.stop().await.expect("the new worker ends");
    let group = group().await.expect("there is a group");
    let left = [group.pending, group.parked, group.delayed, group.dead];
    assert_eq!((left, group.lag), ([0; 4], Some(0)));
}
