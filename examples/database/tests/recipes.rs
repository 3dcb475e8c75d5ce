//! Tests of the recipes: futures are dropped at each of their awaits, as a crash does, and relays run
//! side by side.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use campanile::{
    Client, Json, Message, Parts, Router, serve,
    transport::{Delivery, Interest, Source, Transport, Verdict, memory::Memory},
};
use example_database::{Payment, app, open, outbox};
use sqlx::SqlitePool;
use tempfile::TempDir;

async fn database() -> (TempDir, SqlitePool) {
    let folder = TempDir::new().unwrap();
    let db = open(&folder.path().join("payments.db")).await.unwrap();
    (folder, db)
}

/// Polls a future up to this number of times, and then drops it. `None` if it was dropped.
async fn cut<F: Future>(mut polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        if polls == 0 {
            return Poll::Ready(None);
        }
        polls -= 1;
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

/// Adds the tasks `0`, `1`, … to the outbox.
async fn fill(db: &SqlitePool, count: usize) {
    for n in 0..count {
        let mut transaction = db.begin().await.unwrap();
        outbox::add(&mut transaction, "receipts.send", n.to_string().as_bytes())
            .await
            .unwrap();
        transaction.commit().await.unwrap();
    }
}

async fn rows(db: &SqlitePool, table: &'static str) -> i64 {
    let count = match table {
        "outbox" => "SELECT count(*) FROM outbox",
        _ => "SELECT count(*) FROM inbox",
    };
    sqlx::query_scalar(count).fetch_one(db).await.unwrap()
}

/// Returns the payloads of all tasks on the stream, in its order.
async fn sent(memory: &Memory) -> Vec<String> {
    let mut source = memory.clone().open(Interest::stream()).await.unwrap();
    let mut payloads = Vec::new();
    let wait = Duration::from_millis(100);
    while let Ok(deliveries) = tokio::time::timeout(wait, source.next(64)).await {
        for delivery in deliveries.unwrap() {
            let payload = delivery.content.as_ref().unwrap().payload().clone();
            payloads.push(String::from_utf8(payload.to_vec()).unwrap());
            done(delivery).await;
        }
    }
    source.close().await.unwrap();
    payloads
}

async fn done<H: campanile::transport::SettleDelivery>(delivery: Delivery<H>) {
    delivery
        .settle(Verdict::Done(Ok(Default::default())))
        .await
        .unwrap();
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|n| n.to_string()).collect()
}

#[tokio::test]
async fn a_relay_that_is_dropped_at_any_await_loses_and_doubles_nothing() {
    const TASKS: usize = 3;
    for polls in 1.. {
        let (_folder, db) = database().await;
        fill(&db, TASKS).await;
        let memory = Memory::new();
        let client = Client::new(memory.clone());
        let first = cut(polls, outbox::relay(&db, &client)).await;
        while outbox::relay(&db, &client).await.unwrap() > 0 {}
        assert_eq!(sent(&memory).await, numbers(TASKS), "after {polls} polls");
        assert_eq!(rows(&db, "outbox").await, 0);
        if first.is_some() {
            assert!(polls > TASKS, "it was dropped at too few awaits");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_relays_send_each_task_once_and_in_order() {
    const TASKS: usize = 150;
    let (_folder, db) = database().await;
    fill(&db, TASKS).await;
    let memory = Memory::new();
    let relays: Vec<_> = (0..3)
        .map(|_| tokio::spawn(outbox::run(db.clone(), Client::new(memory.clone()))))
        .collect();
    while rows(&db, "outbox").await > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    relays.iter().for_each(|relay| relay.abort());
    assert_eq!(sent(&memory).await, numbers(TASKS));
}

#[tokio::test]
async fn a_task_of_a_transaction_that_is_not_committed_is_not_sent() {
    let (_folder, db) = database().await;
    let mut transaction = db.begin().await.unwrap();
    outbox::add(&mut transaction, "receipts.send", b"0")
        .await
        .unwrap();
    drop(transaction);
    let client = Client::new(Memory::new());
    assert_eq!(outbox::relay(&db, &client).await.unwrap(), 0);
}

/// A delivery of the same message each time.
fn delivery() -> Message {
    let payment = Payment {
        account: "ada".to_owned(),
        cents: 500,
    };
    let mut parts = Parts::new(campanile::Kind::Task, "payments.book");
    parts.stream = Some("orders".into());
    parts.group = Some("workers".into());
    parts.id = Some("7-0".into());
    let Json(payload) = Json(payment);
    Message::from_parts(parts, payload_of(&payload).into())
}

fn payload_of(payment: &Payment) -> Vec<u8> {
    format!(
        r#"{{"account":"{}","cents":{}}}"#,
        payment.account, payment.cents
    )
    .into_bytes()
}

async fn cents(db: &SqlitePool) -> i64 {
    let sum = "SELECT coalesce(sum(cents), 0) FROM accounts";
    sqlx::query_scalar(sum).fetch_one(db).await.unwrap()
}

#[tokio::test]
async fn a_handler_that_is_dropped_at_any_await_has_its_effect_once() {
    for polls in 1.. {
        let (_folder, db) = database().await;
        let app: Router = app().with_state(db.clone());
        let client = Client::new(app);
        let first = cut(polls, client.send(delivery())).await;
        for _ in 0..2 {
            client.send(delivery()).await.unwrap();
            assert_eq!(cents(&db).await, 500, "after {polls} polls");
            assert_eq!(
                (rows(&db, "outbox").await, rows(&db, "inbox").await),
                (1, 1)
            );
        }
        if first.is_some() {
            assert!(polls > 3, "it was dropped at too few awaits");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_at_the_same_time_have_their_effect_once() {
    let (_folder, db) = database().await;
    let app: Router = app().with_state(db.clone());
    let client = Client::new(app);
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.send(delivery()).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!((cents(&db).await, rows(&db, "outbox").await), (500, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_and_relays_that_are_killed_lose_and_double_no_payment() {
    const PAYMENTS: i64 = 40;
    let (_folder, db) = database().await;
    let memory = Memory::new()
        .lease(Duration::from_millis(100))
        .max_deliveries(1_000);
    let client = Client::new(memory.clone());
    // The payments come from an outbox too.
    for n in 0..PAYMENTS {
        let mut transaction = db.begin().await.unwrap();
        let payment = Payment {
            account: format!("account {}", n % 7),
            cents: 1,
        };
        let payload = payload_of(&payment);
        outbox::add(&mut transaction, "payments.book", &payload)
            .await
            .unwrap();
        transaction.commit().await.unwrap();
    }
    let mut rng = fastrand::Rng::with_seed(7);
    let mut finished = 0;
    while finished < 3 {
        let worker = serve(memory.clone(), app().with_state(db.clone())).into_future();
        let worker = tokio::spawn(worker);
        let relay = tokio::spawn(outbox::run(db.clone(), client.clone()));
        tokio::time::sleep(Duration::from_millis(rng.u64(1..30))).await;
        worker.abort();
        relay.abort();
        let _ = tokio::join!(worker, relay);
        let is_quiet = rows(&db, "inbox").await == PAYMENTS && rows(&db, "outbox").await == 0;
        finished += u32::from(is_quiet);
    }
    assert_eq!(cents(&db).await, PAYMENTS);
}
