//! Tests that the examples behave as their comments say.

#[cfg(feature = "testing")]
mod kit;
mod process;
#[path = "../support/mod.rs"]
mod support;

use std::process::Stdio;

use process::{SOON, example, output, shows};
use support::{Options, RedisServer, within};
use tokio::io::{AsyncBufReadExt, BufReader};

#[tokio::test]
async fn a_custom_transport_is_served_and_called() {
    let output = output(example("transport")).await;
    shows(&output, &["hello Ada, at attempt 2"]);
}

#[tokio::test]
async fn one_worker_serves_streams_of_several_slots_of_a_cluster() {
    for server in [Options::new().cluster(), Options::new()] {
        let server = RedisServer::with(server).await;
        let mut cluster = example("cluster");
        cluster.env("REDIS_URL", server.url());
        let shipped = ["africa", "america", "asia", "europe"];
        let shipped = shipped.map(|region| format!("orders:{region}: 3 orders shipped"));
        shows(
            &output(cluster).await,
            &shipped.each_ref().map(String::as_str),
        );
    }
}

#[tokio::test]
async fn the_shop_sells_to_customers_who_can_pay() {
    let output = output(example("testing")).await;
    shows(
        &output,
        &[
            "rpc    charge: 1999 cents",
            "event  orders.shipped, order 1",
            "event  orders.declined, order 2",
        ],
    );
}

#[tokio::test]
async fn each_layer_of_the_stack_has_its_effect() {
    let output = output(example("layers")).await;
    shows(
        &output,
        &[
            "rpc    moody: not now (unavailable), trying again",
            "rpc    moody: now",
            "rpc    never: the handler took too long (deadline)",
            "task   work: 10 done, at most 2 at the same time",
        ],
    );
}

#[tokio::test]
async fn a_password_is_rotated_without_a_failed_call_or_a_lost_task() {
    let server = RedisServer::start().await;
    let mut rotating = example("credentials");
    rotating.env("REDIS_URL", server.url());
    let output = output(rotating).await;
    shows(
        &output,
        &["password-2 is the only", "password-3 is the only"],
    );
    let last = output.lines().last().expect("a line");
    let numbers = last.split(|letter: char| !letter.is_ascii_digit());
    let numbers: Vec<u32> = numbers.filter_map(|it| it.parse().ok()).collect();
    let [sent, handled, asked] = numbers[..] else {
        panic!("{last}");
    };
    assert_eq!(sent, handled);
    assert!(sent > 100, "{last}");
    // The provider is asked once for each of the four connections when it is made, and then at
    // least twice more.
    assert!(asked >= 3 * 4, "{last}");
    let users: Vec<String> = server.query(&["ACL", "USERS"]).await;
    assert_eq!(users, ["default"]);
}

#[tokio::test]
async fn the_worker_serves_the_client_and_ends_on_a_signal() {
    let server = RedisServer::start().await;
    let mut worker = example("worker");
    worker.env("REDIS_URL", server.url()).stdout(Stdio::piped());
    let mut worker = worker.spawn().expect("the program can be started");
    let mut lines = BufReader::new(worker.stdout.take().unwrap()).lines();
    // The client starts after the worker has subscribed: events reach only current subscribers.
    support::raw::listened_to(&server, "orders.events", SOON).await;

    let mut client = example("client");
    client.env("REDIS_URL", server.url());
    shows(
        &output(client).await,
        &[
            "task   orders.create: accepted as ",
            "event  orders.events: published",
            "rpc    user.get, reliable: 42 is Alice",
            "rpc    user.get, fast: 42 is Alice",
            "rpc    user.get, of nobody: no such user (not_found)",
        ],
    );

    let id = worker.id().expect("the program runs");
    let killed = std::process::Command::new("sh")
        .args(["-c", &format!("kill -s TERM {id}")])
        .status()
        .unwrap();
    assert!(killed.success());
    let status = within(SOON, worker.wait()).await.unwrap();
    assert!(status.success(), "{status}");
    let mut output = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        output += &line;
        output.push('\n');
    }
    shows(
        &output,
        &[
            "task   orders.create: order 101 of user 42 is \"first\"",
            "event  orders.events: {\"id\":101,\"type\":\"created\"}",
            "rpc    user.get: 42",
        ],
    );
}

#[tokio::test]
async fn without_a_server_the_worker_names_the_remedy_and_ends() {
    let mut worker = example("worker");
    worker.env("REDIS_URL", "redis://:hunter2@127.0.0.1:1/");
    let ran = within(SOON, worker.output()).await;
    let ran = ran.expect("the program can be started");
    assert!(!ran.status.success());
    let stderr = String::from_utf8_lossy(&ran.stderr);
    shows(&stderr, &["127.0.0.1:1", "redis-server"]);
    assert!(!stderr.contains("hunter2"), "{stderr}");
}
