//! The tests in the guide, `docs/testing.md`, with the same text.

#[path = "../../../examples/testing/app.rs"]
mod app;

use std::{fs, path::Path, time::Duration};

use app::{Order, Sender, Shop, app};
use campanile::{
    Client, Error, Json, Router, RpcError, serve,
    testing::{Harness, Recorder, event, rpc, task},
    transport::{Start, UnknownNames, memory::Memory},
};

use serde_json::json;

use super::failure_of;

/// The shop, open for business, and its bank.
async fn open() -> (Harness, Recorder) {
    let memory = Memory::new();
    let bank = Recorder::new();
    let app = app().with_state(Shop {
        own: Client::new(Sender::new(memory.clone())),
        bank: Client::new(Sender::new(bank.clone())),
    });
    let mut shop = Harness::over(memory);
    shop.serve(app).await;
    (shop, bank)
}

fn order(id: u64, cents: u64) -> Json<Order> {
    Json(Order { id, cents })
}

#[tokio::test(start_paused = true)]
async fn what_is_paid_is_shipped() -> Result<(), Error> {
    let (shop, bank) = open().await;
    bank.reply_with(rpc("charge"), |_| ());

    shop.client().enqueue("orders.pay", order(7, 1_999)).await?;
    shop.settled().await;

    bank.assert_called(rpc("charge").json(1_999).once());
    shop.assert_acknowledged(task("orders.pay").once());
    shop.assert_sent(task("orders.ship").payload(order(7, 1_999)).once());
    shop.assert_acknowledged(event("orders.shipped").json(7).once());
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_bank_that_is_closed_is_asked_again() -> Result<(), Error> {
    let (mut shop, bank) = open().await;
    bank.fail_once(rpc("charge"), RpcError::unavailable("it is Sunday"));
    bank.reply_with(rpc("charge"), |_| ());

    shop.client().enqueue("orders.pay", order(7, 1_999)).await?;
    shop.settled().await;
    shop.assert_redelivered(task("orders.pay").because("it is Sunday").once());
    shop.assert_sent(task("orders.ship").never());

    shop.advance_to_next().await.expect("another attempt");
    shop.assert_acknowledged(task("orders.pay").attempt(2).once());

    let week = shop.advance_to_next().await.expect("a review is due");
    assert_eq!(week, Duration::from_secs(7 * 24 * 3600));
    shop.assert_acknowledged(task("orders.review").json(7).once());
    assert_eq!(shop.advance_to_next().await, None);

    shop.shutdown().await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn who_cannot_pay_gets_nothing() -> Result<(), Error> {
    let (shop, bank) = open().await;
    bank.fail_once(rpc("charge"), RpcError::invalid("no such money"));

    shop.client().enqueue("orders.pay", order(8, 1_000)).await?;
    shop.finished().await;

    shop.assert_dead_lettered(task("orders.pay").because("no such money").once());
    shop.assert_sent(event("orders.declined").json(8).once());
    shop.assert_sent(task("orders.ship").never());
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn each_group_handles_every_task() {
    let memory = Memory::new().unknown_names(UnknownNames::Ignore);
    let mailing = memory.clone().group("mailing").start(Start::Beginning);
    let mail: Router = Router::new().task("order", async || {});
    let bill: Router = Router::new().task("order", async || Err::<(), _>("no paper"));

    let mut harness = Harness::over(memory.clone());
    harness.run(serve(memory.group("billing"), bill)).await;
    harness.run(serve(mailing, mail)).await;

    harness.client().enqueue("order", ()).await.unwrap();
    harness.settled().await;
    harness.assert_redelivered(task("order").group("billing").once());
    harness.assert_acknowledged(task("order").group("mailing").once());
}

/// The failure in the guide.
#[tokio::test(start_paused = true)]
async fn a_failure_lists_what_did_happen() {
    let (shop, bank) = open().await;
    bank.reply_with(rpc("charge"), |_| ());
    let client = shop.client();
    client.enqueue("orders.pay", order(7, 1_999)).await.unwrap();
    shop.settled().await;
    let dear = json!({ "id": 7, "cents": 2_999 });
    let text = failure_of(|| shop.assert_sent(task("orders.ship").json(&dear).once()));
    let guide = guide();
    let (_, shown) = guide.split_once("```text\n").unwrap();
    let (shown, _) = shown.split_once("\n```").unwrap();
    let (head, _) = text
        .split_once("\n  0.000s task `orders.ship`: ack")
        .unwrap_or((&text, ""));
    assert!(head.starts_with(shown), "{text}");
}

fn guide() -> String {
    read("docs/testing.md")
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn the_guide_shows_code_that_is_tested() {
    let sources = [
        read("examples/testing/app.rs"),
        read("tests/in_process/testing/guide.rs"),
    ];
    let guide = guide();
    let blocks: Vec<_> = guide.split("```rust,ignore\n").skip(1).collect();
    assert!(blocks.len() >= 4, "{}", blocks.len());
    for block in blocks {
        let (code, _) = block.split_once("```").unwrap();
        let is_tested = sources.iter().any(|source| source.contains(code));
        assert!(
            is_tested,
            "the guide shows what is not in the tests:\n{code}"
        );
    }
}
