//! Tests of `campanile dead`.

use serde_json::json;

use super::{support::Signal, terminal::Terminal, *};

#[tokio::test]
async fn dead_letters_are_listed_in_pages() {
    let server = RedisServer::start().await;
    let create = "XGROUP CREATE app_stream app_group 0 MKSTREAM";
    server.command(&create.split(' ').collect::<Vec<_>>()).await;
    let none = run(campanile(&server, "dead list")).await.ended_with(0);
    assert_eq!(none.text(), "no dead letters\n");
    let mut ids = Vec::new();
    for name in ["print", "scan", "print"] {
        ids.push(letter(&server, name, "page 7").await);
    }
    let first = run(campanile(&server, "dead list --limit 2"))
        .await
        .ended_with(0);
    let lines: Vec<_> = first.text().lines().collect();
    let row = |id| {
        format!("{id}  task  print        10  2026-11-23T10:37:17.570Z  the printer is on fire")
    };
    assert_eq!((lines.len(), lines[1]), (3, &*row(&ids[0])));
    first.tells(&[&format!("2 of 3; the next: --after {}", ids[1])]);
    let second = format!("dead list --limit 2 --after {}", ids[1]);
    let second = run(campanile(&server, &second)).await.ended_with(0);
    assert_eq!(second.text().lines().nth(1), Some(&*row(&ids[2])));
    assert_eq!(second.stderr, "");

    let page = run(campanile(&server, "dead list --limit 2 --json"))
        .await
        .ended_with(0)
        .json();
    let expected = json!({
        "id": ids[1],
        "message_id": "1-1",
        "kind": "task",
        "name": "scan",
        "attempts": 10,
        "died_at_ms": 1795430237570_u64,
        "reason": "the printer is on fire",
    });
    assert_eq!((&page["dead"], &page["next"]), (&json!(3), &json!(ids[1])));
    assert_eq!(page["letters"][1], expected);
    let all = run(campanile(&server, "dead list --all --json"))
        .await
        .ended_with(0)
        .json();
    assert_eq!(all["letters"].as_array().map(Vec::len), Some(3));
    assert_eq!(all["next"], Value::Null);
}

#[tokio::test]
async fn a_dead_letter_is_shown_whole_and_its_payload_byte_for_byte() {
    let server = RedisServer::start().await;
    let id = letter(&server, "print", b"{\"a\":\n 1}\xff").await;
    let shown = run(campanile(&server, &format!("dead show {id}")))
        .await
        .ended_with(0);
    let expected = format!(
        "id        {id}\n\
         message   1-1\n\
         kind      task\n\
         name      print\n\
         attempts  10\n\
         died      2026-11-23T10:37:17.570Z\n\
         reason    the printer is on fire\n\
         header    x-tenant: acme\n\
         payload   10 bytes\n\
         \n\
         {{\"a\":\n 1}}\\xff\n"
    );
    assert_eq!(shown.text(), expected);
    let raw = run(campanile(&server, &format!("dead show --raw {id}")))
        .await
        .ended_with(0);
    assert_eq!(raw.stdout, b"{\"a\":\n 1}\xff");
    let json = run(campanile(&server, &format!("dead show --json {id}")))
        .await
        .ended_with(0)
        .json();
    assert_eq!(json["headers"], json!({ "x-tenant": ["acme"] }));
    assert_eq!(json["payload"], json!({ "base64": "eyJhIjoKIDF9/w==" }));

    let missing = run(campanile(&server, "dead show 7-7")).await.ended_with(4);
    missing.tells(&["there is no dead letter 7-7"]);
    let mistaken = run(campanile(&server, "dead show print"))
        .await
        .ended_with(2);
    mistaken.tells(&["`print` is no id", "1795430237570-0"]);
}

#[tokio::test]
async fn an_undecodable_entry_is_shown_with_its_fields() {
    let server = RedisServer::start().await;
    let fields: [(&str, &[u8]); 6] = [
        ("~g", b"app_group"),
        ("~o", b"1-1"),
        ("~r", b"the field `type` is missing"),
        ("~a", b"1"),
        // This delay is too long to be valid.
        ("~d", b"18446744073709551"),
        ("a", b"\xfe\n"),
    ];
    let id = raw::add(&server, DEAD, &fields).await;
    let shown = run(campanile(&server, &format!("dead show {id}")))
        .await
        .ended_with(0);
    for line in [
        "died      ?",
        "field     a: \\xfe\\n",
        "why       the field `type` is missing",
    ] {
        assert!(shown.text().contains(line), "{line}: {}", shown.text());
    }
    let json = run(campanile(&server, &format!("dead show --json {id}")))
        .await
        .ended_with(0)
        .json();
    assert_eq!(json["fields"], json!([["a", { "base64": "/go=" }]]));
    assert_eq!(json["kind"], Value::Null);
    let raw = run(campanile(&server, &format!("dead show --raw {id}")))
        .await
        .ended_with(1);
    raw.tells(&["it is no message"]);
}

#[tokio::test]
async fn selected_letters_are_replayed_and_missing_ids_are_listed() {
    let server = RedisServer::start().await;
    group(&server, "app_stream", "app_group").await;
    let mut ids = Vec::new();
    for name in ["print", "print", "scan", "copy"] {
        ids.push(letter(&server, name, "page 7").await);
    }
    let one = format!("dead replay {}", ids[0]);
    assert_eq!(
        run(campanile(&server, &one)).await.ended_with(0).text(),
        "1 replayed\n"
    );
    let again = run(campanile(&server, &format!("{one} {}", ids[3])))
        .await
        .ended_with(4);
    assert_eq!(again.text(), "1 replayed\n");
    again.tells(&["1 of the 2 dead letters are not there"]);
    let named = run(campanile(&server, "dead replay --name print --json"))
        .await
        .ended_with(0);
    assert_eq!(named.json(), json!({ "replayed": 1 }));
    assert_eq!(
        named.stderr, "",
        "no progress is shown outside of a terminal"
    );
    let none = run(campanile(&server, "dead replay --name print"))
        .await
        .ended_with(4);
    none.tells(&["there is no dead letter named print"]);
    let all = run(campanile(&server, "dead replay --all --yes"))
        .await
        .ended_with(0);
    assert_eq!(all.text(), "1 replayed\n");
    assert_eq!(raw::len(&server, RETRY).await, 4);
    let nothing = run(campanile(&server, "dead replay --all --yes"))
        .await
        .ended_with(0);
    assert_eq!(nothing.text(), "0 replayed\n");
}

#[tokio::test]
async fn nothing_is_deleted_without_confirmation() {
    let server = RedisServer::start().await;
    let id = letter(&server, "print", "page 7").await;
    for line in [
        "dead purge --all".to_owned(),
        "dead purge --name print".to_owned(),
        "dead replay --all".to_owned(),
        format!("dead purge {id}"),
    ] {
        let refused = run(campanile(&server, &line)).await.ended_with(2);
        refused.tells(&["there is no terminal to ask on; pass --yes"]);
    }
    for line in ["dead purge", "dead replay", "dead purge --all --name print"] {
        run(campanile(&server, line)).await.ended_with(2);
    }
    for (line, question) in [
        (
            "dead purge --all",
            "Delete all 1 dead letters for good? [y/N]",
        ),
        (
            "dead purge --name print",
            "Delete all dead letters named print for good? [y/N]",
        ),
        ("dead replay --all", "Replay all 1 dead letters? [y/N]"),
    ] {
        let mut terminal = Terminal::start(&server, line);
        terminal.sees(&[question]).await;
        terminal.types("\r").await;
        terminal.sees(&["not confirmed; nothing was done"]).await;
        assert_eq!(terminal.ends().await.code(), Some(2));
    }
    assert_eq!(raw::len(&server, DEAD).await, 1);
    // Neither the end of the input nor Ctrl-C confirms the deletion.
    for (keys, code) in [("\x04", Some(2)), ("\x03", Some(130))] {
        let mut terminal = Terminal::start(&server, "dead purge --all");
        terminal.sees(&["for good? [y/N]"]).await;
        terminal.types(keys).await;
        assert_eq!(terminal.ends().await.code(), code);
    }
    assert_eq!(raw::len(&server, DEAD).await, 1);
    let mut terminal = Terminal::start(&server, "dead purge --all");
    terminal.sees(&["for good? [y/N]"]).await;
    terminal.types("y\r").await;
    terminal.sees(&["1 purged"]).await;
    assert_eq!(terminal.ends().await.code(), Some(0));
    assert_eq!(raw::len(&server, DEAD).await, 0);
}

async fn letters(server: &RedisServer, count: usize) {
    for _ in 0..count {
        letter(server, "print", "page 7").await;
    }
}

#[tokio::test]
async fn a_long_replay_shows_its_progress_on_a_terminal() {
    let server = RedisServer::start().await;
    letters(&server, 250).await;
    let mut terminal = Terminal::start(&server, "dead replay --all --yes");
    assert_eq!(terminal.ends().await.code(), Some(0));
    let written = String::from_utf8_lossy(&terminal.written).into_owned();
    for progress in [
        "100 of 250 replayed",
        "200 of 250 replayed",
        "250 of 250 replayed",
    ] {
        assert!(written.contains(progress), "{progress}: {written}");
    }
    assert_eq!(
        terminal.screen(),
        "250 replayed",
        "the progress is removed at the end"
    );
}

#[tokio::test]
async fn an_interrupted_replay_ends_after_its_step_with_the_count() {
    let server = RedisServer::start().await;
    letters(&server, 250).await;
    // The server holds back commands that write.
    server.command(&["CLIENT", "PAUSE", "60000", "WRITE"]).await;
    let mut terminal = Terminal::start(&server, "dead replay --all --yes");
    raw::eventually(
        || async {
            let clients: String = server.query(&["CLIENT", "LIST"]).await;
            clients.contains("cmd=evalsha").then_some(())
        },
        SOON,
    )
    .await;
    terminal.types("\x03").await;
    terminal.sees(&["another Ctrl-C ends it at once"]).await;
    server.command(&["CLIENT", "UNPAUSE"]).await;
    terminal
        .sees(&["100 replayed, the others are left as they were"])
        .await;
    assert_eq!(terminal.ends().await.code(), Some(130));
    assert_eq!(raw::len(&server, DEAD).await, 150);
    assert_eq!(raw::len(&server, RETRY).await, 100);
}

#[tokio::test]
async fn text_of_senders_never_reaches_the_terminal_as_control_characters() {
    let server = RedisServer::start().await;
    // This text would clear the screen, set the title, write to the clipboard and ring the bell, by
    // 7-bit and 8-bit control characters.
    let hostile = "\x1b[2J\x1b]0;owned\x07\x1b]52;c;b3duZWQ=\x07\u{9b}2J\u{202e}\r\n";
    let fields: [(&str, &[u8]); 10] = [
        ("~g", b"app_group"),
        ("~o", hostile.as_bytes()),
        ("~r", hostile.as_bytes()),
        ("~a", b"1"),
        ("~d", b"1795430237570"),
        ("type", b"task"),
        ("name", hostile.as_bytes()),
        ("payload", hostile.as_bytes()),
        ("h:x-a", b"1\x9b2"),
        (hostile, hostile.as_bytes()),
    ];
    let id = raw::add(&server, DEAD, &fields).await;
    let undecodable = raw::add(&server, DEAD, &[&fields[..5], &fields[9..]].concat()).await;
    raw::add(&server, "app_stream", &fields[5..]).await;
    raw::add(&server, "app_stream", &fields[9..]).await;
    for line in [
        "dead list".to_owned(),
        "dead list --json".to_owned(),
        format!("dead show {id}"),
        format!("dead show {id} --json"),
        format!("dead show {undecodable}"),
        "tail stream --from beginning --count 2".to_owned(),
        "tail stream --from beginning --count 2 --json".to_owned(),
    ] {
        let mut terminal = Terminal::start(&server, &line);
        assert_eq!(
            terminal.ends().await.code(),
            Some(0),
            "{}",
            terminal.screen()
        );
        assert_eq!(terminal.surprises(), [""; 0], "{line}");
        assert!(
            !terminal.written.contains(&0x1b),
            "{line}: {}",
            terminal.screen()
        );
        let text = String::from_utf8(terminal.written).expect("valid UTF-8");
        assert!(
            !text.contains(['\u{9b}', '\u{202e}', '\x07']),
            "{line}: {text:?}"
        );
        assert!(
            text.contains("[2J"),
            "{line} shows the text escaped: {text:?}"
        );
    }
}

#[tokio::test]
async fn a_server_that_ends_during_a_replay_fails_it_within_seconds() {
    let server = RedisServer::start().await;
    letters(&server, 1).await;
    let mut terminal = Terminal::start(&server, "dead replay --all");
    terminal.sees(&["Replay all 1 dead letters? [y/N]"]).await;
    server.signal(Signal::Kill);
    terminal.types("y\r").await;
    terminal.sees(&["error: ", "connection"]).await;
    let code = terminal.ends().await.code();
    assert!(matches!(code, Some(1 | 3)), "{code:?}");
}

#[tokio::test]
async fn large_dead_letters_are_listed_in_little_memory() {
    const LETTERS: usize = 200;
    const LIMIT: usize = 200 << 20;
    let server = RedisServer::start().await;
    let payload = vec![b'x'; 5 << 20];
    for _ in 0..LETTERS {
        letter(&server, "print", &payload).await;
    }
    let child = campanile(&server, "dead list --all")
        .spawn()
        .expect("the program can be started");
    let pid = child.id().expect("the program has not ended");
    let mut output = std::pin::pin!(child.wait_with_output());
    // Reads the peak while the process runs: it cannot be read afterwards.
    let mut peak = 0;
    let ran = within(SOON, async {
        loop {
            tokio::select! {
                ran = &mut output => break ran,
                () = tokio::time::sleep(Duration::from_millis(2)) => {
                    peak = peak.max(peak_memory(pid).unwrap_or(0));
                }
            }
        }
    });
    let ran = ran.await.expect("the program can be started");
    let text = String::from_utf8(ran.stdout).expect("the output is UTF-8");
    assert_eq!(text.lines().count(), 1 + LETTERS, "{text}");
    assert!(0 < peak && peak < LIMIT, "{} MiB", peak >> 20);
}

/// The peak memory of a process, in bytes; `None` once it has ended.
fn peak_memory(pid: u32) -> Option<usize> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: usize = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kibibytes << 10)
}
