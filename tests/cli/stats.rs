//! Tests of `campanile stats`.

use serde_json::json;

use super::{
    support::{Options, Signal, version},
    terminal::Terminal,
    *,
};

/// Adds three tasks and two groups. One group has read the first task.
async fn scene(server: &RedisServer) {
    for payload in ["1", "2", "3"] {
        let fields = [("type", "task"), ("name", "n"), ("payload", payload)];
        raw::add(server, "app_stream", &fields).await;
    }
    for group in ["app_group", "other"] {
        server
            .command(&["XGROUP", "CREATE", "app_stream", group, "0"])
            .await;
    }
    let reads = "XREADGROUP GROUP app_group campanile-1 COUNT 1 STREAMS app_stream >";
    let reads: Vec<_> = reads.split(' ').collect();
    server.command(&reads).await;
    letter(server, "print", "page 7").await;
    run(campanile(server, "send task n --delay 1h"))
        .await
        .ended_with(0);
}

#[tokio::test]
async fn the_groups_are_shown_in_a_table_and_as_json() {
    let server = RedisServer::start().await;
    scene(&server).await;
    let shown = run(campanile(&server, "stats")).await.ended_with(0);
    let lines: Vec<Vec<_>> = shown
        .text()
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let titles = "GROUP LAG PENDING OLDEST DELAYED PARKED DEAD CONSUMERS";
    assert_eq!(
        lines[0].join(" "),
        "stream app_stream: 3 entries, 1 delayed"
    );
    assert_eq!(lines[1].join(" "), titles);
    // Redis knows the lag of a group that has read something since 7.0.
    let (text, lag) = match version() < (7, 0) {
        true => ("?", None),
        false => ("2", Some(2)),
    };
    assert_eq!(
        [&lines[2][..3], &lines[2][4..]].concat(),
        ["app_group", text, "1", "0", "0", "1", "1"]
    );
    assert_eq!(lines[3], ["other", "3", "0", "-", "0", "0", "0", "0"]);

    let shown = run(campanile(&server, "stats --json")).await.ended_with(0);
    let mut stats = shown.json();
    let oldest = stats["groups"][0]["oldest_pending_ms"].take();
    assert!(oldest.is_u64(), "{oldest}");
    let delivered = stats["groups"][0]["last_delivered_id"].take();
    assert!(delivered.is_string(), "{delivered}");
    let idle = stats["groups"][0]["idle_ms"].take();
    assert!(idle.is_u64(), "{idle}");
    for group in stats["groups"].as_array_mut().expect("a list") {
        // Unknown before 7.0, as the lag is.
        for unknown in ["unfinished", "holds_up"] {
            group[unknown].take();
        }
    }
    let group = |group, lag, pending, dead, consumers| {
        json!({
            "group": group, "lag": lag, "pending": pending, "oldest_pending_ms": null,
            "delayed": 0, "parked": 0, "dead": dead, "consumers": consumers, "last_delivered_id": null,
            "unfinished": null, "holds_up": null, "idle_ms": null, "foreign": 0, "foreign_pending": 0,
        })
    };
    let expected = json!({
        "stream": "app_stream",
        "entries": 3,
        "delayed": 1,
        "groups": [group("app_group", lag, 1, 1, 1), group("other", Some(3), 0, 0, 0)],
    });
    assert_eq!(stats, expected);
}

#[tokio::test]
async fn one_group_can_be_selected_and_an_unknown_one_is_not_found() {
    let server = RedisServer::start().await;
    scene(&server).await;
    let one = run(campanile(&server, "stats --group other --json")).await;
    let stats = one.ended_with(0).json();
    assert_eq!(stats["groups"].as_array().map(Vec::len), Some(1));
    assert_eq!(stats["groups"][0]["group"], "other");
    let none = run(campanile(&server, "--group nobody stats"))
        .await
        .ended_with(4);
    none.tells(&["`app_stream` has no group `nobody`"]);
    let none = run(campanile(&server, "stats --stream empty"))
        .await
        .ended_with(4);
    none.tells(&["there is no stream `empty`"]);
}

#[tokio::test]
async fn a_live_view_is_redrawn_survives_an_outage_and_ends_cleanly() {
    let server = RedisServer::with(Options::new().persistent()).await;
    scene(&server).await;
    let mut terminal = Terminal::start(&server, "stats --watch --interval 100ms");
    terminal
        .sees(&[
            "every 100ms; Ctrl-C ends it",
            "app_stream: 3 entries",
            "app_group",
        ])
        .await;
    assert!(terminal.is_on_another_screen());
    server.command(&["XADD", "app_stream", "*", "a", "b"]).await;
    terminal.sees(&["app_stream: 4 entries"]).await;
    assert_eq!(
        terminal.screen().matches("GROUP").count(),
        1,
        "the view is redrawn in place"
    );
    server.signal(Signal::Kill);
    terminal
        .sees(&["app_stream: 4 entries", "there is no connection"])
        .await;
    server.restart().await;
    server.command(&["XADD", "app_stream", "*", "a", "b"]).await;
    terminal.sees(&["app_stream: 5 entries"]).await;
    assert!(!terminal.screen().contains("connection"));

    terminal.types("\x03").await;
    assert_eq!(terminal.ends().await.code(), Some(0));
    assert!(!terminal.is_on_another_screen());
    assert!(
        terminal.screen().contains("app_stream: 5 entries"),
        "the last view stays"
    );
}

#[tokio::test]
async fn a_view_into_a_pipe_prints_one_document_per_line_and_ends_on_a_signal() {
    use tokio::io::{AsyncBufReadExt, BufReader};

    let server = RedisServer::start().await;
    let mut watch = campanile(&server, "stats --watch --interval 100ms --json");
    let mut child = watch.spawn().expect("the program can be started");
    let mut lines = BufReader::new(child.stdout.take().expect("standard output is piped")).lines();
    for _ in 0..2 {
        let line = within(SOON, lines.next_line()).await;
        let line = line.unwrap().expect("another line");
        let stats: Value = serde_json::from_str(&line).expect("valid JSON");
        assert_eq!(stats["stream"], "app_stream");
    }
    Signal::Term.send(child.id().expect("the program runs"));
    let ended = within(SOON, child.wait()).await;
    assert_eq!(ended.unwrap().code(), Some(0));
}
