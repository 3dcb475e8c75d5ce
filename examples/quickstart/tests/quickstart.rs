//! Tests of the quick start: as a process without a server, as a process on one, and in the test
//! kit.

#[path = "../../../tests/examples/process.rs"]
mod process;
#[allow(dead_code, reason = "its main is not called")]
#[path = "../quickstart.rs"]
mod quickstart;
#[path = "../../../tests/support/mod.rs"]
mod support;

use campanile::{
    testing::{Harness, event, rpc, task},
    transport::memory::Memory,
};
use process::{example, output, shows};
use support::RedisServer;

const SHOWN: [&str; 6] = [
    "task   orders.create: accepted as ",
    "task   orders.create: order 101 is \"first\"",
    "event  orders.events: {\"id\":101,\"type\":\"created\"}",
    "rpc    user.get, reliable: Alice",
    "rpc    user.get, fast: Alice",
    "rpc    user.get, of nobody: no user 7 (not_found)",
];

#[tokio::test]
async fn the_quick_start_runs_without_a_server() {
    shows(&output(example("quickstart")).await, &SHOWN);
}

#[tokio::test]
async fn the_quick_start_runs_on_redis() {
    let server = RedisServer::start().await;
    let mut quickstart = example("quickstart");
    quickstart.env("REDIS_URL", server.url());
    shows(&output(quickstart).await, &SHOWN);
}

/// The quick start serves and shuts down by itself. The kit only records.
#[tokio::test(start_paused = true)]
async fn the_quick_start_handles_all_of_its_messages() {
    let memory = Memory::new();
    let harness = Harness::over(memory.clone());
    quickstart::run(memory).await.unwrap();
    harness.settled().await;
    harness.assert_acknowledged(task("orders.create").once());
    let created = r#"{"id":101,"type":"created"}"#;
    harness.assert_acknowledged(event("orders.events").payload(created).once());
    harness.assert_acknowledged(rpc("user.get").payload(r#"{"id":42}"#).times(2));
    harness.assert_failed(rpc("user.get").because("no user 7").once());
}
