//! The quick start does what it says: as a process, without a server and on one, and in the test
//! kit.

#[allow(dead_code, reason = "its main is not called")]
#[path = "../quickstart.rs"]
mod quickstart;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::{
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use campanile::{
    testing::{Harness, event, rpc, task},
    transport::memory::Memory,
};
use support::RedisServer;

const SOON: Duration = Duration::from_secs(60);

/// Runs the example, which cargo has built beside this test.
fn run(redis_url: Option<&str>) {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.push("examples/quickstart");
    let mut command = Command::new(path);
    command
        .env_remove("REDIS_URL")
        .envs(redis_url.map(|url| ("REDIS_URL", url)));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = command.spawn().expect("it does not run");
    let started = Instant::now();
    while process.try_wait().unwrap().is_none() {
        if started.elapsed() > SOON {
            process.kill().unwrap();
            panic!("it does not end");
        }
        thread::sleep(Duration::from_millis(10));
    }
    // All that it writes fits into a pipe.
    let ran = process.wait_with_output().unwrap();
    let output = String::from_utf8(ran.stdout).unwrap();
    assert!(ran.status.success(), "{}\n{output}", ran.status);
    for line in [
        "task   orders.create: accepted as ",
        "task   orders.create: order 101 is \"first\"",
        "event  orders.events: {\"id\":101,\"type\":\"created\"}",
        "rpc    user.get, reliable: Alice",
        "rpc    user.get, fast: Alice",
        "rpc    user.get, of nobody: no user 7 (not_found)",
    ] {
        assert!(output.contains(line), "{line:?} is not in\n{output}");
    }
}

#[test]
fn it_runs_without_a_server() {
    run(None);
}

#[tokio::test]
async fn it_runs_on_redis() {
    let server = RedisServer::start().await;
    run(Some(&server.url()));
}

/// It serves and shuts down by itself: the kit looks on.
#[tokio::test(start_paused = true)]
async fn it_has_everything_handled() {
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
