//! The program in a namespace: of an option, of a variable, and of the URL.

use serde_json::json;

use super::*;

/// A stream with a dead letter in a namespace.
async fn scene(server: &RedisServer, namespace: &str) {
    group(server, &format!("{namespace}:app_stream"), "app_group").await;
    let dead = format!("{{{namespace}:app_stream}}:dead:app_group");
    let fields = [
        ("~g", "app_group"),
        ("~o", "1-1"),
        ("~r", "the printer is on fire"),
        ("~a", "10"),
        ("~d", "1795430237570"),
        ("type", "task"),
        ("name", namespace),
        ("payload", ""),
    ];
    raw::add(server, &dead, &fields).await;
}

#[tokio::test]
async fn all_commands_stay_in_their_namespace_and_show_names_without_it() {
    let server = RedisServer::start().await;
    for namespace in ["blue", "green"] {
        scene(&server, namespace).await;
    }
    let ran = async |line: &str| run(campanile(&server, &format!("{line} --namespace blue"))).await;
    let sent = ran("send task work").await.ended_with(0);
    assert_eq!(
        raw::entries(&server, "blue:app_stream").await[0].0,
        sent.text().trim()
    );
    ran("send task later --delay 1h --idempotency-key k")
        .await
        .ended_with(0);
    let stats = ran("stats --json").await.ended_with(0).json();
    assert_eq!(
        (&stats["stream"], &stats["entries"]),
        (&json!("app_stream"), &json!(1))
    );
    assert_eq!(
        (&stats["delayed"], &stats["groups"][0]["dead"]),
        (&json!(1), &json!(1))
    );
    let listed = ran("groups list").await.ended_with(0);
    assert!(listed.text().contains("app_group"), "{}", listed.text());
    let none = ran("consumers list").await.ended_with(0);
    assert_eq!(none.text(), "no consumers\n");
    let tail = ran("tail stream --from beginning --no-follow --json")
        .await
        .ended_with(0);
    assert_eq!(tail.lines_of_json().len(), 1);
    let dead = ran("dead list --json").await.ended_with(0).json();
    assert_eq!(
        (&dead["dead"], &dead["letters"][0]["name"]),
        (&json!(1), &json!("blue"))
    );
    ran("dead replay --all --yes").await.ended_with(0);
    assert_eq!(
        raw::len(&server, "{blue:app_stream}:retry:app_group").await,
        1
    );
    let none = ran("stats --stream other").await.ended_with(4);
    none.tells(&["there is no stream `other`"]);
    assert_eq!(
        raw::len(&server, "{green:app_stream}:dead:app_group").await,
        1
    );
    let keys: Vec<String> = server.query(&["KEYS", "*"]).await;
    let is_in = |key: &str| {
        let key = key.trim_start_matches('{');
        key.starts_with("blue:") || key.starts_with("green:")
    };
    assert!(keys.iter().all(|key| is_in(key)), "{keys:?}");
}

#[tokio::test]
async fn events_are_sent_and_heard_in_the_namespace() {
    let server = RedisServer::start().await;
    let heard = run(campanile(
        &server,
        "tail events news --count 1 --json --namespace blue",
    ));
    let sends = async {
        raw::listened_to(&server, "blue:news", SOON).await;
        for namespace in ["green", "blue"] {
            let line = format!("send event news {namespace} --namespace {namespace}");
            run(campanile(&server, &line)).await.ended_with(0);
        }
    };
    let (heard, ()) = tokio::join!(heard, sends);
    let heard = heard.ended_with(0).lines_of_json();
    assert_eq!(
        (&heard[0]["name"], &heard[0]["payload"]),
        (&json!("news"), &json!("blue"))
    );
}

#[tokio::test]
async fn the_option_replaces_the_variable_and_that_the_url() {
    let server = RedisServer::start().await;
    let url = format!("{}?namespace=blue", server.url());
    let sends = async |line: &str, variable: Option<&str>, key: &str| {
        let mut command = campanile_at(&url, line);
        command.envs(variable.map(|namespace| ("CAMPANILE_NAMESPACE", namespace)));
        run(command).await.ended_with(0);
        assert_eq!(raw::len(&server, key).await, 1, "{line}");
    };
    sends("send task work", None, "blue:app_stream").await;
    sends("send task work", Some("green"), "green:app_stream").await;
    let line = "send task work --namespace red";
    sends(line, Some("grey"), "red:app_stream").await;
    let refused = run(campanile_at(&url, "stats --namespace a:b")).await;
    refused
        .ended_with(2)
        .tells(&["--namespace", "`a:b`", "begins with a letter"]);
}
