//! `campanile groups` and `campanile consumers`, and the group that a command is about.

use serde_json::json;

use super::{support::version, terminal::Terminal, *};

/// Reads an entry as a consumer.
async fn read(server: &RedisServer, group: &str, consumer: &str) {
    let read = ["XREADGROUP", "GROUP", group, consumer, "COUNT", "1"];
    let read: Vec<_> = read
        .into_iter()
        .chain(["STREAMS", "app_stream", ">"])
        .collect();
    server.command(&read).await;
}

/// Two tasks, the first of which a foreign consumer has read in one of two groups. A consumer of
/// this library has nothing. Returns the id of the first task.
async fn scene(server: &RedisServer) -> String {
    let mut ids = Vec::new();
    for _ in 0..2 {
        let fields = [("type", "task"), ("name", "n"), ("payload", "")];
        ids.push(raw::add(server, "app_stream", &fields).await);
    }
    for name in ["app_group", "other"] {
        group(server, "app_stream", name).await;
    }
    read(server, "app_group", "worker-1").await;
    let create = ["XGROUP", "CREATECONSUMER", "app_stream", "app_group"];
    let create: Vec<_> = create.into_iter().chain(["campanile-1"]).collect();
    server.command(&create).await;
    letter(server, "print", "page 7").await;
    ids.swap_remove(0)
}

fn words(ran: &crate::program::Ran) -> Vec<Vec<&str>> {
    let lines = ran.text().lines();
    lines
        .map(|line| line.split_whitespace().collect())
        .collect()
}

#[tokio::test]
async fn the_groups_of_a_stream_are_listed_in_a_table_and_as_json() {
    let server = RedisServer::start().await;
    let first = scene(&server).await;
    let listed = run(campanile(&server, "groups list")).await.ended_with(0);
    let titles = "GROUP PENDING LAG CONSUMERS LAST DELIVERED DEAD DELAYED HOLDS UP FOREIGN IDLE";
    let lines = words(&listed);
    assert_eq!(lines[0].join(" "), titles);
    let (lag, up) = if version() < (7, 0) {
        ("?", "?")
    } else {
        ("1", "0")
    };
    assert_eq!(
        lines[1][..9],
        ["app_group", "1", lag, "2", &first, "1", "0", up, "1"]
    );
    assert_eq!(
        lines[2],
        ["other", "0", "2", "0", "-", "0", "0", up, "0", "-"]
    );
    assert_eq!(lines.len(), 3);

    let listed = run(campanile(&server, "groups list --json"))
        .await
        .ended_with(0);
    let stats = run(campanile(&server, "stats --json")).await.ended_with(0);
    let (mut listed, mut stats) = (listed.json(), stats.json());
    for document in [&mut listed, &mut stats] {
        for changing in ["oldest_pending_ms", "idle_ms"] {
            document["groups"][0][changing].take();
        }
    }
    assert_eq!(listed, stats);
    assert_eq!(listed["groups"][0]["last_delivered_id"], json!(first));
    assert_eq!(listed["groups"][1]["last_delivered_id"], Value::Null);

    let one = run(campanile(&server, "groups list --group other"))
        .await
        .ended_with(0);
    assert_eq!(words(&one).len(), 2);
    let none = run(campanile(&server, "groups list --group nobody"))
        .await
        .ended_with(4);
    none.tells(&["`app_stream` has no group `nobody`", "`app_group`, `other`"]);
    assert_eq!(none.stdout, b"");
    let none = run(campanile(&server, "groups list --stream empty"))
        .await
        .ended_with(4);
    none.tells(&["there is no stream `empty`"]);
}

#[tokio::test]
async fn a_stream_without_groups_has_none_to_list() {
    let server = RedisServer::start().await;
    raw::add(&server, "app_stream", &[("type", "task"), ("name", "n")]).await;
    let none = run(campanile(&server, "groups list")).await.ended_with(0);
    assert_eq!(none.text(), "no group yet\n");
    let none = run(campanile(&server, "consumers list"))
        .await
        .ended_with(4);
    none.tells(&["`app_stream` has no group `app_group`: it has none"]);
}

#[tokio::test]
async fn the_consumers_of_a_group_are_listed_in_a_table_and_as_json() {
    let server = RedisServer::start().await;
    scene(&server).await;
    let listed = run(campanile(&server, "consumers list --group app_group"))
        .await
        .ended_with(0);
    let lines = words(&listed);
    assert_eq!(lines[0], ["CONSUMER", "KIND", "PENDING", "IDLE"]);
    assert_eq!(lines[1][..3], ["campanile-1", "campanile", "0"]);
    assert_eq!(lines[2][..3], ["worker-1", "foreign", "1"]);
    assert_eq!(lines.len(), 3);

    let listed = run(campanile(
        &server,
        "consumers list --group app_group --json",
    ))
    .await;
    let mut listed = listed.ended_with(0).json();
    for consumer in listed["consumers"].as_array_mut().expect("a list") {
        let idle = consumer["idle_ms"].take().as_u64().expect("a number");
        assert!(idle < 60_000, "{idle}");
    }
    let consumer = |name, foreign, pending| json!({ "consumer": name, "foreign": foreign, "pending": pending, "idle_ms": null });
    let expected = json!({
        "stream": "app_stream",
        "group": "app_group",
        "consumers": [consumer("campanile-1", false, 0), consumer("worker-1", true, 1)],
    });
    assert_eq!(listed, expected);
    let none = run(campanile(&server, "consumers list --group other"))
        .await
        .ended_with(0);
    assert_eq!(none.text(), "no consumers\n");
}

#[tokio::test]
async fn names_of_groups_and_consumers_are_escaped() {
    let server = RedisServer::start().await;
    let hostile = "\x1b[2J\x1b]0;owned\x07\u{9b}2J\u{202e}";
    // A valid group name has no control characters. The name of a consumer may have some.
    group(&server, "app_stream", "g\u{202e}").await;
    raw::add(&server, "app_stream", &[("type", "task"), ("name", "n")]).await;
    read(&server, "g\u{202e}", hostile).await;
    for (line, shown) in [
        ("groups list", "g\\u{202e}"),
        ("groups list --json", "g\\u202e"),
        ("consumers list", "[2J"),
        ("consumers list --json", "[2J"),
    ] {
        let mut terminal = Terminal::start(&server, line);
        let code = terminal.ends().await.code();
        assert_eq!(code, Some(0), "{line}: {}", terminal.screen());
        assert_eq!(terminal.surprises(), [""; 0], "{line}");
        let text = String::from_utf8(terminal.written).expect("valid UTF-8");
        assert!(
            !text.contains(['\x1b', '\u{9b}', '\u{202e}', '\x07']),
            "{line}: {text:?}"
        );
        assert!(text.contains(shown), "{line}: {text:?}");
    }
}

#[tokio::test]
async fn a_group_that_does_not_exist_is_not_found_and_the_groups_are_listed() {
    let server = RedisServer::start().await;
    for line in [
        "consumers list",
        "groups list",
        "dead list",
        "dead show 7-7",
        "dead replay 7-7",
        "dead purge --all --yes",
        "stats",
    ] {
        let none = run(campanile(&server, line)).await.ended_with(4);
        none.tells(&["there is no stream `app_stream`"]);
    }
    for name in ["app_group", "billing"] {
        group(&server, "app_stream", name).await;
    }
    for line in [
        "consumers list",
        "groups list",
        "dead list",
        "dead list --json",
        "dead show 7-7",
        "dead replay --all --yes",
        "dead purge --name print --yes",
        "stats",
    ] {
        let none = run(campanile(&server, &format!("{line} --group nobody")))
            .await
            .ended_with(4);
        none.tells(&[
            "`app_stream` has no group `nobody`",
            "`app_group`, `billing`",
            "--group",
        ]);
        assert_eq!(none.stdout, b"", "{line}");
    }
    let named = run(campanile(&server, "--group billing dead list")).await;
    assert_eq!(named.ended_with(0).text(), "no dead letters\n");
}

#[tokio::test]
async fn one_of_several_groups_has_to_be_named() {
    let server = RedisServer::start().await;
    for name in ["app_group", "billing"] {
        group(&server, "app_stream", name).await;
    }
    letter(&server, "print", "page 7").await;
    for line in [
        "consumers list",
        "dead list",
        "dead show 7-7",
        "dead replay --all --yes",
        "dead purge --all --yes",
    ] {
        let none = run(campanile(&server, line)).await.ended_with(4);
        none.tells(&["has 2 groups; name one with --group: `app_group`, `billing`"]);
        assert_eq!(none.stdout, b"", "{line}");
    }
    assert_eq!(raw::len(&server, DEAD).await, 1);
}

#[tokio::test]
async fn the_only_group_of_a_stream_need_not_be_named() {
    let server = RedisServer::start().await;
    group(&server, "app_stream", "workers").await;
    let fields = [
        ("~g", "workers"),
        ("~o", "1-1"),
        ("~r", "the printer is on fire"),
        ("~a", "10"),
        ("~d", "1795430237570"),
        ("type", "task"),
        ("name", "print"),
        ("payload", ""),
    ];
    raw::add(&server, "{app_stream}:dead:workers", &fields).await;
    let consumers = run(campanile(&server, "consumers list --json")).await;
    assert_eq!(consumers.ended_with(0).json()["group"], "workers");
    let listed = run(campanile(&server, "dead list --json")).await;
    assert_eq!(listed.ended_with(0).json()["dead"], 1);
    let replayed = run(campanile(&server, "dead replay --all --yes")).await;
    assert_eq!(replayed.ended_with(0).text(), "1 replayed\n");
}

#[tokio::test]
async fn the_dead_letters_of_a_deleted_group_are_found() {
    let server = RedisServer::start().await;
    letter(&server, "print", "page 7").await;
    let without_a_stream = run(campanile(&server, "dead list --json")).await;
    assert_eq!(without_a_stream.ended_with(0).json()["dead"], 1);
    group(&server, "app_stream", "billing").await;
    let named = run(campanile(&server, "dead list --json --group app_group")).await;
    assert_eq!(named.ended_with(0).json()["dead"], 1);
    let consumers = run(campanile(&server, "consumers list --group app_group")).await;
    consumers
        .ended_with(4)
        .tells(&["has no group `app_group`", "`billing`"]);
}
