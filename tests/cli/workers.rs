//! `campanile workers`, `campanile top`, and the commands that drop groups and consumers.

use std::{future::IntoFuture, sync::Arc};

use campanile::{Client, Redis, Router, serve};
use serde_json::json;
use tokio::{sync::Semaphore, task::JoinHandle};

use super::{support::raw::eventually, terminal::Terminal, *};

/// A worker of the default group, whose task `print` lasts until it gets a permit.
struct Scene {
    server: RedisServer,
    redis: Redis,
    permits: Arc<Semaphore>,
    worker: JoinHandle<Result<(), campanile::Error>>,
    name: String,
}

impl Scene {
    async fn start() -> Self {
        let server = RedisServer::start().await;
        let redis = Redis::connect(&server.url()).await.expect("a handle");
        let permits = Arc::new(Semaphore::new(0));
        let waits = permits.clone();
        let app = Router::new().task("print", async move || {
            waits.acquire().await.expect("it is open").forget();
        });
        let worker = serve(redis.clone(), app).service("printer\x1b[2J", "1.2.3");
        let worker = tokio::spawn(worker.into_future());
        let workers = redis.workers();
        let announced = async || {
            let found = workers.list().await.ok()?;
            let first = found.into_iter().find(|worker| worker.fault.is_none())?;
            Some(first.worker)
        };
        let name = eventually(announced, SOON).await;
        Self {
            server,
            redis,
            permits,
            worker,
            name,
        }
    }

    async fn send(&self, count: usize) {
        let client = Client::new(self.redis.clone());
        for _ in 0..count {
            client.enqueue("print", ()).await.expect("it is sent");
        }
    }

    /// The part of the worker's name that is shown.
    fn shown(&self) -> String {
        let name = self.name.split_once("ms-").expect("it has a lease").1;
        name[..name.len() - 28].to_owned()
    }
}

#[tokio::test]
async fn workers_are_listed_in_a_table_and_as_json() {
    let scene = Scene::start().await;
    let listed = run(campanile(&scene.server, "workers")).await.ended_with(0);
    for part in [
        "WORKER",
        &scene.shown(),
        r"printer\u{1b}[2J",
        "1.2.3",
        "running",
        "<= 64",
    ] {
        assert!(listed.text().contains(part), "{part}: {}", listed.text());
    }
    assert!(!listed.text().contains('\x1b'));
    let listed = run(campanile(&scene.server, "workers list --json"))
        .await
        .ended_with(0);
    let listed = listed.json();
    assert_eq!(listed[0]["worker"], json!(scene.name));
    assert_eq!(listed[0]["routes"], json!(["task print"]));
    assert_eq!(listed[0]["state"], json!("running"));
    let pinged = run(campanile(&scene.server, "workers ping --json"))
        .await
        .ended_with(0);
    let pinged = pinged.json();
    assert_eq!(pinged["answers"][0]["worker"], json!(scene.name));
    assert_eq!(pinged["silent"], json!([]));
    scene.worker.abort();
}

#[tokio::test]
async fn the_routes_of_running_workers_are_described() {
    let scene = Scene::start().await;
    let described = run(campanile(&scene.server, "describe"))
        .await
        .ended_with(0);
    for part in [r"printer\u{1b}[2J 1.2.3, 1 worker", "KIND", "task", "print"] {
        let text = described.text();
        assert!(
            text.contains(part) && !text.contains('\x1b'),
            "{part}: {text}"
        );
    }
    let described = run(campanile(&scene.server, "describe --json"))
        .await
        .ended_with(0);
    let described = described.json();
    let service = &described["services"][0];
    assert_eq!(service["workers"], json!([scene.name]));
    assert_eq!(service["description"]["routes"][0]["name"], json!("print"));
    let document = run(campanile(&scene.server, "describe --asyncapi"))
        .await
        .ended_with(0);
    let document = document.json();
    assert_eq!(document["asyncapi"], json!("3.0.0"));
    assert_eq!(document["info"]["version"], json!("1.2.3"));

    // Another worker of the group serves something else.
    let app = Router::new().rpc("paper", async || "enough");
    let other = serve(scene.redis.clone(), app).service("printer", "2.0.0");
    let other = tokio::spawn(other.into_future());
    let both = async || {
        let found = run(campanile(&scene.server, "describe")).await;
        found
            .text()
            .contains("printer 2.0.0, 1 worker")
            .then_some(())
    };
    eventually(both, SOON).await;
    run(campanile(&scene.server, "describe --asyncapi"))
        .await
        .ended_with(4);
    other.abort();
    scene.worker.abort();
}

#[tokio::test]
async fn a_worker_is_limited_paused_and_drained() {
    let scene = Scene::start().await;
    let shown = scene.shown();
    let order = async |line: &str| run(campanile(&scene.server, line)).await;
    let limited = order(&format!("workers limit {shown} 2 --by ada"))
        .await
        .ended_with(0);
    assert!(
        limited.text().contains("follows: limit 2"),
        "{}",
        limited.text()
    );
    scene.send(4).await;
    let running = async || {
        let stats = scene.redis.workers().stats().await.ok()?;
        (stats.answers.first()?.in_flight == 2).then_some(())
    };
    eventually(running, SOON).await;
    order(&format!("workers pause {shown} --name print --by ada"))
        .await
        .ended_with(0);
    let listed = order("workers").await.ended_with(0);
    for part in ["<= 2", "paused here: print", "limit 2 by ada"] {
        assert!(listed.text().contains(part), "{part}: {}", listed.text());
    }
    order(&format!("workers resume {shown} --name print"))
        .await
        .ended_with(0);
    let paused = order(&format!("workers pause {shown} --json"))
        .await
        .ended_with(0);
    assert_eq!(paused.json()["order"], json!("pause"));
    assert!(order("workers").await.text().contains("paused"));
    order(&format!("workers limit {shown} 0"))
        .await
        .ended_with(2);
    order("workers drain nobody --yes")
        .await
        .ended_with(4)
        .tells(&["no worker `nobody`"]);
    order(&format!("workers drain {shown}"))
        .await
        .ended_with(2)
        .tells(&["--yes"]);
    let drained = order(&format!("workers drain {shown} --yes"))
        .await
        .ended_with(0);
    assert!(
        drained.text().contains("follows: drain"),
        "{}",
        drained.text()
    );
    scene.permits.add_permits(2);
    let ended = within(SOON, scene.worker).await.expect("no panic");
    ended.expect("it was drained");
    let listed = run(campanile(&scene.server, "workers")).await.ended_with(0);
    assert_eq!(listed.text(), "no workers\n");
}

#[tokio::test]
async fn top_shows_what_runs_until_q_is_pressed() {
    let scene = Scene::start().await;
    scene.send(3).await;
    let shown = scene.shown();
    let mut terminal = Terminal::start(&scene.server, "top");
    terminal
        .sees(&["1 workers, 0 silent", &shown, "RUNS FOR", "print"])
        .await;
    assert!(terminal.is_on_another_screen());
    scene.permits.add_permits(3);
    terminal.sees(&["nothing runs", "3 done, 0 failed"]).await;
    terminal.types("q").await;
    assert_eq!(terminal.ends().await.code(), Some(0));
    assert!(!terminal.is_on_another_screen());
    assert_eq!(terminal.surprises(), [""; 0]);

    let mut terminal = Terminal::start(&scene.server, "top");
    terminal.sees(&["nothing runs"]).await;
    terminal.types("\x03").await;
    assert_eq!(terminal.ends().await.code(), Some(0));

    let once = run(campanile(&scene.server, "top")).await.ended_with(0);
    assert!(once.text().contains(&shown), "{}", once.text());
    assert!(!once.text().contains('\x1b'));
    let once = run(campanile(&scene.server, "top --json"))
        .await
        .ended_with(0);
    assert_eq!(once.json()["stats"][0]["done"], json!(3));
    scene.worker.abort();
}

#[tokio::test]
async fn a_group_that_nobody_serves_is_dropped_after_a_question() {
    let scene = Scene::start().await;
    let server = &scene.server;
    group(server, "app_stream", "old").await;
    scene.send(3).await;
    scene.permits.add_permits(3);
    let drop = async |line: &str| run(campanile(server, line)).await;
    drop("groups drop app_group --yes")
        .await
        .ended_with(1)
        .tells(&["1 live workers", "--force"]);
    drop("groups drop nobody --yes")
        .await
        .ended_with(4)
        .tells(&["no group `nobody`"]);
    drop("groups drop old")
        .await
        .ended_with(2)
        .tells(&["--yes"]);
    let handled = async || {
        let stats = scene.redis.stats().await.ok()?;
        (stats.group("old")?.kept_entries == Some(3)).then_some(())
    };
    eventually(handled, SOON).await;
    let listed = run(campanile(server, "groups list --json"))
        .await
        .ended_with(0);
    assert_eq!(listed.json()["groups"][1]["holds_up"], json!(3));

    let mut terminal = Terminal::start(server, "groups drop old");
    terminal
        .sees(&["Drop the group `old`, with 3 waiting", "no consumers"])
        .await;
    terminal.types("y\n").await;
    terminal
        .sees(&["dropped the group old, with 3 messages"])
        .await;
    assert_eq!(terminal.ends().await.code(), Some(0));
    let listed = run(campanile(server, "groups list")).await.ended_with(0);
    assert_eq!(listed.text().lines().count(), 2, "{}", listed.text());
    scene.worker.abort();
}

#[tokio::test]
async fn a_consumer_of_another_library_is_dropped_after_a_question() {
    let server = RedisServer::start().await;
    group(&server, "app_stream", "app_group").await;
    raw::add(&server, "app_stream", &[("type", "task"), ("name", "n")]).await;
    let read = [
        "XREADGROUP",
        "GROUP",
        "app_group",
        "alien",
        "STREAMS",
        "app_stream",
        ">",
    ];
    server.command(&read).await;
    let drop = async |line: &str| run(campanile(&server, line)).await;
    drop("consumers drop nobody --yes").await.ended_with(4);
    let refused = drop("consumers drop alien --yes").await.ended_with(1);
    refused.tells(&["1 messages are pending", "--force"]);
    let dropped = drop("consumers drop alien --yes --force --json")
        .await
        .ended_with(0);
    assert_eq!(dropped.json(), json!({ "dropped": "alien", "lost": 1 }));
    let listed = run(campanile(&server, "consumers list"))
        .await
        .ended_with(0);
    assert_eq!(listed.text(), "no consumers\n");
}
