//! `campanile tasks`

use std::time::Duration;

use campanile::{Client, Redis};
use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn a_task_is_looked_up_and_cancelled_by_its_id() {
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url())
        .await
        .expect("the server is there");
    let client = Client::new(redis);
    let call = client.enqueue("report.make", "7").unique("report 7");
    let receipt = call
        .tracked(Duration::from_secs(60))
        .await
        .expect("it is sent");
    let id = receipt.id().expect("it is stored");

    let shown = run(campanile(&server, &format!("tasks status {id}")))
        .await
        .ended_with(0);
    let state = |ran: &crate::program::Ran| {
        let line = ran.text().lines().find(|line| line.starts_with("state"));
        line.expect("the state is shown").to_owned()
    };
    assert_eq!(state(&shown), "state     waiting");
    assert!(
        shown.text().contains("unique    report 7"),
        "{}",
        shown.text()
    );

    let cancel = format!("tasks cancel {id} --reason unwanted");
    run(campanile(&server, &cancel)).await.ended_with(0);
    let shown = run(campanile(&server, &format!("tasks status {id} --json")))
        .await
        .ended_with(0);
    let status: Value = serde_json::from_str(shown.text()).expect("JSON");
    assert_eq!(
        (&status["state"], &status["reason"], &status["started_at"]),
        (&json!("cancelled"), &json!("unwanted"), &Value::Null)
    );
    run(campanile(&server, &cancel)).await.ended_with(4);
}

#[tokio::test]
async fn an_unknown_task_is_not_found_and_the_error_says_why() {
    let server = RedisServer::start().await;
    for command in ["tasks status 1-1", "tasks cancel 1-1"] {
        let ran = run(campanile(&server, command)).await.ended_with(4);
        ran.tells(&["1-1", "--group"]);
    }
}
