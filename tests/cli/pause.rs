//! `campanile pause`, `resume`, `pauses` and `purge`

use campanile::{Client, Redis, transport::PauseTarget};
use serde_json::Value;

use super::*;

async fn start() -> (RedisServer, Redis) {
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url()).await;
    (server, redis.expect("the server is there"))
}

async fn make_group(server: &RedisServer) {
    let command = "XGROUP CREATE app_stream app_group 0 MKSTREAM";
    let words: Vec<_> = command.split(' ').collect();
    server.command(&words).await;
}

#[tokio::test]
async fn a_pause_is_listed_until_it_is_ended() {
    let (server, redis) = start().await;
    run(campanile(&server, "pause")).await.ended_with(4);
    make_group(&server).await;

    run(campanile(&server, "pause --reason deploy"))
        .await
        .ended_with(0);
    run(campanile(&server, "pause --name mail.send"))
        .await
        .ended_with(0);
    run(campanile(&server, "pause --all-groups --name x"))
        .await
        .ended_with(2);
    let listed = run(campanile(&server, "pauses")).await.ended_with(0);
    for part in ["the group", "deploy", "the name mail.send"] {
        assert!(listed.text().contains(part), "{}", listed.text());
    }
    let targets: Vec<_> = redis.control().pauses().await.expect("the server answers");
    let targets: Vec<_> = targets.into_iter().map(|pause| pause.target).collect();
    assert_eq!(
        targets,
        [PauseTarget::Group, PauseTarget::Name("mail.send".into())]
    );

    for command in ["resume", "resume --name mail.send"] {
        run(campanile(&server, command)).await.ended_with(0);
        run(campanile(&server, command))
            .await
            .ended_with(4)
            .tells(&["pauses"]);
    }
    let listed = run(campanile(&server, "pauses --json")).await.ended_with(0);
    let listed: Value = serde_json::from_str(listed.text()).expect("JSON");
    assert_eq!(listed, Value::Array(Vec::new()));
}

#[tokio::test]
async fn a_purge_asks_and_says_how_many_it_has_removed() {
    let (server, redis) = start().await;
    make_group(&server).await;
    let client = Client::new(redis.clone());
    for _ in 0..3 {
        client.enqueue("mail.send", ()).await.expect("it is sent");
    }
    run(campanile(&server, "purge"))
        .await
        .ended_with(2)
        .tells(&["--yes"]);
    let purged = run(campanile(&server, "purge --yes")).await.ended_with(0);
    assert_eq!(purged.text().trim(), "purged 3");
    let stats = redis.stats().await.expect("the server answers");
    assert_eq!(stats.group("app_group").expect("it exists").lag, Some(0));
}
