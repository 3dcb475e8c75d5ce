//! Tests of the shop's jobs: in the test kit, and as a process without a server and on one.

#[allow(dead_code, reason = "the shop is no example of cargo's")]
#[path = "../../../tests/examples/process.rs"]
mod process;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use campanile::{
    Json, MessageId,
    contract::ApiInfo,
    testing::{Harness, MessageEvent, event, task},
    transport::{ChangesFrom, FeedItem, TaskQuery, TaskState, memory::Memory},
};
use example_shop::{Order, app, cancel_order, request_invoice, schedules};
use process::{output, shows};
use support::RedisServer;
use tokio::process::Command;

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

async fn open() -> Harness {
    let memory = Memory::new();
    let app = app(memory.limit("payments").expect("the name is valid"));
    let mut shop = Harness::over(memory);
    shop.serve(app).await;
    shop
}

fn order(id: u64, customer: u64) -> Json<Order> {
    Json(Order { id, customer })
}

async fn place(shop: &Harness, id: u64, customer: u64) {
    let order = order(id, customer);
    shop.client().enqueue("orders.place", order).await.unwrap();
}

/// Waits until a task with this name runs.
async fn runs(shop: &Harness, name: &str) -> MessageId {
    let changes = shop.memory().tasks().changes(ChangesFrom::Beginning).await;
    let mut changes = changes.unwrap();
    loop {
        match changes.next().await.unwrap() {
            FeedItem::Change(it) if it.name == *name && it.state == TaskState::Running => {
                return it.id;
            }
            _ => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_is_paid_invoiced_packed_and_reviewed_a_week_later() {
    let shop = open().await;
    place(&shop, 1, 7).await;
    shop.settled().await;
    shop.assert_sent(event("orders.placed").json(1).once());
    for name in ["orders.pay", "invoices.make", "orders.pack"] {
        shop.assert_acknowledged(task(name).once());
    }
    assert_eq!(
        shop.memory().value("orders").unwrap().as_deref(),
        Some(&b"1"[..])
    );

    shop.assert_acknowledged(task("orders.review").never());
    assert!(
        shop.advance_to_next()
            .await
            .is_some_and(|wait| wait <= WEEK)
    );
    shop.assert_acknowledged(task("orders.review").json(1).once());
}

#[tokio::test(start_paused = true)]
async fn an_order_that_cannot_be_read_starts_nothing() {
    let shop = open().await;
    shop.client()
        .enqueue("orders.place", "no order")
        .await
        .unwrap();
    shop.finished().await;
    shop.assert_dead_lettered(task("orders.place").once());
    shop.assert_sent(task("orders.pay").never());
    shop.assert_sent(event("orders.placed").never());
    assert_eq!(shop.memory().value("orders").unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn one_invoice_of_an_order_is_made_at_a_time() {
    let shop = open().await;
    let client = shop.client();
    let first = request_invoice(&client, 1).await.unwrap();
    runs(&shop, "invoices.make").await;
    let again = request_invoice(&client, 1).await.unwrap();
    assert!(again.is_duplicate());
    assert_eq!(again.id(), first.id());
    let other = request_invoice(&client, 2).await.unwrap();
    assert!(!other.is_duplicate());

    shop.settled().await;
    shop.assert_acknowledged(task("invoices.make").json(1).once());
    let later = request_invoice(&client, 1).await.unwrap();
    assert!(!later.is_duplicate(), "the first has ended");
}

#[tokio::test(start_paused = true)]
async fn a_customer_pays_one_order_at_a_time_and_delays_nobody_else() {
    let shop = open().await;
    for (id, customer) in [(1, 7), (2, 7), (3, 7), (4, 8)] {
        place(&shop, id, customer).await;
    }
    shop.settled().await;
    let paid = shop.assert_acknowledged(task("orders.pay").times(4));
    let mut paid: Vec<_> = paid.iter().map(|it| it.at.as_millis() / 300).collect();
    paid.sort_unstable();
    assert_eq!(paid, [1, 1, 2, 3]);
    let records = shop.records();
    let is_parked = |happened: &MessageEvent| matches!(happened, MessageEvent::Parked);
    let parked = records.iter().filter(|it| is_parked(&it.happened)).count();
    assert_eq!(parked, 2, "each waiting payment is moved once");
    shop.assert_acknowledged(task("orders.pay").attempt(1).times(4));
}

#[tokio::test(start_paused = true)]
async fn an_order_is_cancelled_while_it_is_packed() {
    let shop = open().await;
    place(&shop, 1, 7).await;
    runs(&shop, "orders.pack").await;
    let tasks = shop.memory().tasks();
    assert!(cancel_order(&tasks, 1).await.unwrap());
    shop.settled().await;
    shop.assert_acknowledged(task("orders.pack").never());
    assert_eq!(shop.next_due(), None, "the review is cancelled too");
    assert!(!cancel_order(&tasks, 1).await.unwrap());

    // The number is free again, as after any end of a task.
    place(&shop, 1, 7).await;
    shop.settled().await;
    shop.assert_acknowledged(task("orders.pack").once());
}

#[tokio::test(start_paused = true)]
async fn an_order_is_cancelled_before_it_is_paid_and_not_after_it_is_packed() {
    let shop = open().await;
    let tasks = shop.memory().tasks();
    place(&shop, 1, 7).await;
    runs(&shop, "orders.pay").await;
    assert!(cancel_order(&tasks, 1).await.unwrap());
    shop.settled().await;
    shop.assert_sent(task("orders.pack").never());

    place(&shop, 2, 7).await;
    shop.settled().await;
    assert!(!cancel_order(&tasks, 2).await.unwrap());
    assert!(shop.next_due().is_some(), "it will be reviewed");
}

#[tokio::test(start_paused = true)]
async fn an_import_goes_on_at_its_checkpoint_and_can_be_waited_for() {
    let shop = open().await;
    let import = shop.client().enqueue("catalogue.import", Json(5));
    let import = import.tracked(WEEK).await.unwrap();
    let id = import.id().unwrap();
    let tasks = shop.memory().tasks();

    shop.settled().await;
    let failed = tasks.status(id).await.unwrap().unwrap();
    assert_eq!(failed.state, TaskState::Delayed);
    assert!(failed.reason.contains("restarted"), "{}", failed.reason);

    let ended = tasks.wait(id).await.unwrap();
    let Json(pages): Json<u32> = ended.read_result().unwrap();
    assert_eq!(
        (ended.attempt.0, pages),
        (2, 3),
        "two pages are not imported twice"
    );
    assert_eq!(ended.read_progress().unwrap(), Some((5, 5)));
}

#[tokio::test(start_paused = true)]
async fn the_report_is_made_at_night() {
    let shop = open().await;
    let ticks = shop.memory().schedules();
    let running = tokio::spawn({
        let ticks = ticks.clone();
        async move { ticks.run(schedules()).await }
    });
    shop.settled().await;
    let status = loop {
        if let Some(status) = ticks.get(&"nightly report".into()).await.unwrap() {
            break status;
        }
        tokio::task::yield_now().await;
    };
    let night = status.next_ticks(1)[0]
        .duration_since(status.as_of)
        .unwrap();
    let second = Duration::from_secs(1);
    shop.advance(night.saturating_sub(second)).await;
    shop.assert_acknowledged(task("report").never());
    shop.advance(2 * second).await;
    shop.assert_acknowledged(task("report").once());
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_clean_up_is_left_out_while_another_runs() {
    let shop = open().await;
    let ticks = shop.memory().schedules();
    for entry in schedules() {
        ticks.put(&entry).await.unwrap();
    }
    let name = "clean up".into();
    let first = ticks.run_now(&name).await.unwrap().unwrap();
    let second = ticks.run_now(&name).await.unwrap().unwrap();
    assert!(!first.is_skipped && second.is_skipped);
    assert_eq!(second.task, first.task);
    shop.settled().await;
    assert!(!ticks.run_now(&name).await.unwrap().unwrap().is_skipped);
    shop.settled().await;
    shop.assert_acknowledged(task("clean_up").times(2));
    let left = shop.memory().tasks().list(TaskQuery::all()).await.unwrap();
    assert!(left.tasks.iter().all(|task| task.state.has_ended()));
}

const SHOWN: [&str; 8] = [
    "order 1: placed by customer 7",
    "order 1: its invoice is being made already: true",
    "order 1: paid",
    "order 1: is cancelled: true",
    "clean-up: skipped, since it runs",
    "order 1: not packed, stopped at item ",
    "catalogue: attempt 2 has imported the last 2 pages",
    "order 2: packed",
];

fn shop() -> Command {
    let mut shop = Command::new(env!("CARGO_BIN_EXE_example-shop"));
    shop.env_remove("REDIS_URL").kill_on_drop(true);
    shop
}

#[tokio::test]
async fn the_shop_runs_without_a_server() {
    shows(&output(shop()).await, &SHOWN);
}

#[tokio::test]
async fn the_shop_runs_on_redis() {
    let server = RedisServer::start().await;
    let mut shop = shop();
    shop.env("REDIS_URL", server.url());
    shows(&output(shop).await, &SHOWN);
}

/// `CAMPANILE_WRITE=1` writes the document.
#[test]
fn the_asyncapi_document_is_that_of_the_application() {
    let memory = Memory::new();
    let app = app(memory.limit("payments").expect("the name is valid"));
    let info = ApiInfo::new("Shop", "1.0.0").description("A shop whose work is done by jobs.");
    let document = app.describe().asyncapi(&info);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/asyncapi.json");
    if std::env::var_os("CAMPANILE_WRITE").is_some() {
        std::fs::write(path, format!("{document:#}\n")).unwrap();
    }
    let expected = std::fs::read_to_string(path).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
    assert_eq!(
        document, expected,
        "write it with CAMPANILE_WRITE=1, and look at the changes"
    );
}
