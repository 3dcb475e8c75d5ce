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

#[tokio::test]
async fn tasks_are_listed_watched_waited_for_and_cancelled_together() {
    let server = RedisServer::start().await;
    let none = run(campanile(&server, "tasks list")).await.ended_with(0);
    assert_eq!(none.text(), "no tasks\n");
    let send = async |options: &str| {
        let sent = run(campanile(&server, &format!("send task {options} --json")));
        let sent = sent.await.ended_with(0).json();
        sent["id"].as_str().expect("an id").to_owned()
    };
    let unique = send("print 1 --unique page-7 --tracked 1h").await;
    assert_eq!(send("print 1 --unique page-7 --tracked 1h").await, unique);
    let mut ids = vec![unique.clone()];
    for name in ["scan", "scan", "print"] {
        ids.push(send(&format!("{name} 1 --tracked 1h --delay 1h")).await);
    }
    let list = async |options: &str| {
        let list = run(campanile(&server, &format!("tasks list {options} --json")));
        list.await.ended_with(0).json()
    };
    let scans = list("--state delayed --name scan").await;
    assert_eq!(scans["tasks"][0]["id"], json!(ids[2]));
    assert_eq!(scans["tasks"].as_array().map(Vec::len), Some(2));
    let first = list("--limit 3").await;
    let next = first["next"].as_str().expect("there are more");
    let mut rest = campanile(&server, "tasks list --json --after");
    rest.arg(next);
    let rest = run(rest).await.ended_with(0).json();
    assert_eq!(rest["tasks"].as_array().map(Vec::len), Some(1));
    let table = run(campanile(&server, "tasks list")).await.ended_with(0);
    assert_eq!(table.text().lines().count(), 5);

    let wait = run(campanile(&server, &format!("tasks wait {unique}")));
    let cancel = async {
        // The program shows the end also if it begins to wait after it.
        let key = "tasks cancel --unique page-7 --reason unwanted";
        run(campanile(&server, key)).await.ended_with(0);
        run(campanile(&server, key)).await.ended_with(4);
    };
    let (waited, ()) = tokio::join!(wait, cancel);
    waited.ended_with(1).tells(&["cancelled"]);

    let unconfirmed = run(campanile(&server, "tasks cancel --name scan"));
    unconfirmed.await.ended_with(2).tells(&["--yes"]);
    let cancel = "tasks cancel --name scan --state delayed --yes --json";
    let cancelled = run(campanile(&server, cancel)).await.ended_with(0).json();
    assert_eq!(cancelled["cancelled"], json!(2));
    let wrong = run(campanile(&server, "tasks cancel --state done --yes"));
    wrong.await.ended_with(2);
    run(campanile(&server, "tasks cancel")).await.ended_with(2);

    let watch = "tasks watch --from beginning -n 7 --json";
    let watched = run(campanile(&server, watch)).await.ended_with(0);
    let changes = watched.lines_of_json();
    assert_eq!(changes.len(), 7);
    assert_eq!(
        (&changes[4]["id"], &changes[4]["state"]),
        (&json!(unique), &json!("cancelled"))
    );
    let cursor = changes[5]["cursor"].as_str().expect("a cursor");
    let rest = format!("tasks watch --from {cursor} -n 1");
    let rest = run(campanile(&server, &rest)).await.ended_with(0);
    let last = changes[6]["id"].as_str().expect("an id");
    assert!(
        rest.text().contains(last) && rest.text().contains("cancelled"),
        "{}",
        rest.text()
    );
    let unknown = run(campanile(&server, "tasks wait 1-1")).await;
    unknown.ended_with(4).tells(&["1-1", "tracked"]);
}
