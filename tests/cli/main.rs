//! The program `campanile`, as it is built, on real servers: in pipes and in a [`terminal`].

mod connection;
mod dead;
mod send;
mod stats;
#[path = "../support/mod.rs"]
mod support;
mod tail;
mod terminal;

use std::{process::Stdio, time::Duration};

use serde_json::Value;
use support::{RedisServer, raw, within};
use tokio::{io::AsyncWriteExt, process::Command};

const SOON: Duration = Duration::from_secs(60);

/// The program on a server, with a command line whose words are separated by blanks.
fn campanile(server: &RedisServer, line: &str) -> Command {
    campanile_at(&server.url(), line)
}

fn campanile_at(url: &str, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_campanile"));
    command
        .args(line.split_whitespace())
        .env("REDIS_URL", url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// The result of a run.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

impl Ran {
    #[track_caller]
    fn ended_with(self, code: i32) -> Self {
        let text = String::from_utf8_lossy(&self.stdout);
        assert_eq!(self.code, Some(code), "{text}\n{}", self.stderr);
        self
    }

    #[track_caller]
    fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("the output is UTF-8")
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).expect("the output is one JSON document")
    }

    #[track_caller]
    fn lines_of_json(&self) -> Vec<Value> {
        let line = |line| serde_json::from_str(line).expect("each line is a JSON document");
        self.text().lines().map(line).collect()
    }

    #[track_caller]
    fn tells(&self, texts: &[&str]) {
        for text in texts {
            assert!(
                self.stderr.contains(text),
                "{text:?} is not in {:?}",
                self.stderr
            );
        }
    }
}

async fn run(command: Command) -> Ran {
    run_with(command, b"").await
}

/// Runs it with this standard input.
async fn run_with(mut command: Command, input: &[u8]) -> Ran {
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn().expect("it runs");
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input).await.expect("it reads");
    }
    let ran = within(SOON, child.wait_with_output()).await;
    let ran = ran.expect("it runs");
    Ran {
        code: ran.status.code(),
        stdout: ran.stdout,
        stderr: String::from_utf8(ran.stderr).expect("it tells something in UTF-8"),
    }
}

/// Adds a dead letter of the default group, and returns its id.
async fn letter(server: &RedisServer, name: &str, payload: impl AsRef<[u8]>) -> String {
    let fields: [(&str, &[u8]); 9] = [
        ("~g", b"app_group"),
        ("~o", b"1-1"),
        ("~r", b"the printer is on fire"),
        ("~a", b"10"),
        ("~d", b"1795430237570"),
        ("type", b"task"),
        ("name", name.as_bytes()),
        ("payload", payload.as_ref()),
        ("h:x-tenant", b"acme"),
    ];
    raw::add(server, DEAD, &fields).await
}

/// The number of dead letters of the default group, and of its waiting redeliveries.
const DEAD: &str = "{app_stream}:dead:app_group";
const RETRY: &str = "{app_stream}:retry:app_group";
