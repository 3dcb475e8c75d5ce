//! Tests of `campanile tail`.

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdout},
};

use super::{
    support::{Options, Signal, version},
    terminal::Terminal,
    *,
};

/// Starts a command. Returns its process, and the lines of its output.
fn lines_of(mut command: Command) -> (Child, tokio::io::Lines<BufReader<ChildStdout>>) {
    let mut child = command.spawn().expect("the program can be started");
    let stdout = child.stdout.take().expect("standard output is piped");
    (child, BufReader::new(stdout).lines())
}

async fn task(server: &RedisServer, payload: impl AsRef<[u8]>) -> String {
    let fields: [(&str, &[u8]); 4] = [
        ("type", b"task"),
        ("name", b"orders.create"),
        ("payload", payload.as_ref()),
        ("h:x-tenant", b"acme"),
    ];
    raw::add(server, "app_stream", &fields).await
}

#[tokio::test]
async fn tail_needs_no_right_but_to_read() {
    let acl = "user looker on >pw ~app_stream +xread +xrevrange";
    let server = RedisServer::with(Options::new().acl(acl)).await;
    server
        .command(&["XGROUP", "CREATE", "app_stream", "g", "0", "MKSTREAM"])
        .await;
    let ids = [
        task(&server, "{\"id\":7}").await,
        task(&server, b"\xff").await,
    ];
    let odd = raw::add(&server, "app_stream", &[("a", "b\n")]).await;
    let before = server
        .command(&["XINFO", "STREAM", "app_stream", "FULL"])
        .await;

    let url = format!("redis://looker:pw@127.0.0.1:{}/", server.port());
    let look = |line: &str| campanile_at(&url, line);
    let all = run(look("tail stream --from beginning --no-follow --json")).await;
    let all = all.ended_with(0).lines_of_json();
    let milliseconds: u64 = ids[0].split_once('-').unwrap().0.parse().unwrap();
    let first = json!({
        "id": ids[0],
        "message_id": ids[0],
        "kind": "task",
        "name": "orders.create",
        "accepted_at_ms": milliseconds,
        "headers": { "x-tenant": ["acme"] },
        "payload": "{\"id\":7}",
    });
    assert_eq!(all[0], first);
    assert_eq!(all[1]["payload"], json!({ "base64": "/w==" }));
    let third = json!({
        "id": odd,
        "undecodable": "the field `type` is missing",
        "fields": [["a", "b\n"]],
    });
    assert_eq!(all[2], third);
    assert_eq!(all.len(), 3);

    let two = run(look(&format!("tail stream --from {} --count 2", ids[1])))
        .await
        .ended_with(0);
    let lines: Vec<_> = two.text().lines().collect();
    assert!(
        lines[0].ends_with(&format!("Z  {}  task  orders.create  \\xff", ids[1])),
        "{lines:?}"
    );
    let expected = format!("{odd}  (no message: the field `type` is missing)  a=b\\n");
    assert_eq!(lines[1..], [expected]);
    let raw = run(look("tail stream --from beginning --count 2 --raw"))
        .await
        .ended_with(0);
    assert_eq!(raw.stdout, b"{\"id\":7}\n\xff\n");
    let none = run(look("tail stream --no-follow")).await.ended_with(0);
    assert_eq!(none.text(), "", "no entry is newer than now");
    let mistaken = run(look("tail stream --from yesterday"))
        .await
        .ended_with(2);
    mistaken.tells(&["`yesterday` is no id", "1795430237570-0"]);

    let after = server
        .command(&["XINFO", "STREAM", "app_stream", "FULL"])
        .await;
    assert_eq!(before, after, "tail changed nothing");
}

#[tokio::test]
async fn tail_shows_new_entries_also_after_a_restart_of_the_server() {
    let server = RedisServer::with(Options::new().persistent()).await;
    task(&server, "before").await;
    let mut terminal = Terminal::start(&server, "tail stream --count 2");
    terminal
        .sees(&["looking at app_stream; Ctrl-C ends it"])
        .await;
    let long = "x".repeat(300);
    task(&server, &long).await;
    terminal
        .sees(&["task  orders.create  xxx", "… (300 bytes)"])
        .await;
    server.restart().await;
    task(&server, "after the restart").await;
    terminal.sees(&["after the restart"]).await;
    assert_eq!(terminal.ends().await.code(), Some(0));
    assert!(!terminal.screen().contains("before"));
}

#[tokio::test]
async fn events_are_shown_by_name_and_by_pattern() {
    let server = RedisServer::start().await;
    let listens = "tail events orders.created --pattern users.* --count 2 --json";
    let (child, mut lines) = lines_of(campanile(&server, listens));
    raw::eventually(
        || async {
            let patterns: usize = server.query(&["PUBSUB", "NUMPAT"]).await;
            (patterns == 1).then_some(())
        },
        SOON,
    )
    .await;
    run(campanile(&server, "send event orders.created {\"id\":7}"))
        .await
        .ended_with(0);
    let sent = run(campanile(&server, "send event users.left --json"))
        .await
        .ended_with(0);
    assert_eq!(sent.json(), json!({ "published": "users.left" }));
    let mut events = Vec::new();
    while let Some(line) = within(SOON, lines.next_line()).await.unwrap() {
        let mut event: Value = serde_json::from_str(&line).unwrap();
        assert!(event["received_at_ms"].take().is_u64());
        events.push(event);
    }
    let event = |name, pattern, payload| json!({ "name": name, "pattern": pattern, "received_at_ms": null, "payload": payload });
    let expected = [
        event("orders.created", Value::Null, "{\"id\":7}"),
        event("users.left", json!("users.*"), ""),
    ];
    assert_eq!(events, expected);
    let ended = within(SOON, child.wait_with_output()).await.unwrap();
    assert_eq!(ended.status.code(), Some(0));
    run(campanile(&server, "tail events")).await.ended_with(2);
}

#[tokio::test]
async fn sharded_events_are_sent_and_shown_apart_from_the_others() {
    let refused = "tail events prices.eur --sharded --pattern p*";
    let server = RedisServer::start().await;
    run(campanile(&server, refused)).await.ended_with(2);
    let send = "send event prices.eur --sharded";
    if version() < (7, 0) {
        let old = run(campanile(&server, send)).await.ended_with(2);
        old.tells(&["7.0"]);
        return;
    }
    for server in [
        server,
        RedisServer::with(Options::new().cluster()).await,
        RedisServer::with(
            Options::new()
                .acl("user looker on >pw &prices.eur +ssubscribe +spublish +ping +role")
                .login("looker", "pw"),
        )
        .await,
    ] {
        let listens = "tail events prices.eur --sharded --count 2 --raw";
        let (child, mut lines) = lines_of(campanile(&server, listens));
        let sent = async || run(campanile(&server, &format!("{send} 1.08"))).await;
        let mut heard = Vec::new();
        while heard.is_empty() {
            sent().await.ended_with(0);
            let line = tokio::time::timeout(SOON / 20, lines.next_line()).await;
            heard.extend(line.ok().map(|line| line.unwrap().expect("a payload")));
        }
        // A classic event with this name has another audience.
        run(campanile(&server, "send event prices.eur classic")).await;
        sent().await.ended_with(0);
        let ended = within(SOON, child.wait_with_output()).await.unwrap();
        assert_eq!(ended.status.code(), Some(0));
        heard.extend(lines.next_line().await.unwrap());
        assert_eq!(heard, ["1.08", "1.08"]);
    }
}

#[tokio::test]
async fn an_event_on_a_terminal_is_escaped_unless_raw() {
    let server = RedisServer::start().await;
    for (line, shown) in [
        ("tail events e --count 1", &br"  e  \xff\u{1b}[2J"[..]),
        ("tail events e --count 1 --raw", b"\xff\x1b[2J\r\n"),
    ] {
        let mut terminal = Terminal::start(&server, line);
        terminal.sees(&["listening; Ctrl-C ends it"]).await;
        server
            .command(&[&b"PUBLISH"[..], b"e", b"\xff\x1b[2J"])
            .await;
        assert_eq!(terminal.ends().await.code(), Some(0));
        let written = &terminal.written;
        let found = written.windows(shown.len()).any(|part| part == shown);
        assert!(found, "{line}: {}", written.escape_ascii());
    }
}

#[tokio::test]
async fn a_closed_pipe_and_a_signal_end_tail_quietly() {
    let server = RedisServer::start().await;
    task(&server, "first").await;
    let (child, mut lines) = lines_of(campanile(&server, "tail stream --from beginning"));
    let first = within(SOON, lines.next_line()).await.unwrap();
    assert!(first.expect("a line").ends_with("first"));
    drop(lines);
    task(&server, "second").await;
    let ended = within(SOON, child.wait_with_output()).await.unwrap();
    assert_eq!((ended.status.code(), &*ended.stderr), (Some(0), &b""[..]));

    for line in ["tail stream --from beginning", "tail events e"] {
        let mut terminal = Terminal::start(&server, line);
        terminal.sees(&["Ctrl-C ends it"]).await;
        terminal.types("\x03").await;
        assert_eq!(terminal.ends().await.code(), Some(0), "{line}");
    }
    let (mut child, mut lines) = lines_of(campanile(&server, "tail stream --from beginning"));
    let first = within(SOON, lines.next_line()).await.unwrap();
    assert!(first.is_some());
    Signal::Term.send(child.id().expect("the program runs"));
    let ended = within(SOON, child.wait()).await;
    assert_eq!(ended.unwrap().code(), Some(0));
}
