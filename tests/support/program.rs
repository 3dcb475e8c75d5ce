//! Runs the program `campanile`. A test program that needs this file includes it by its path: cargo
//! builds `campanile` only for tests of this package, and only with the feature `cli`.

// Every test program includes the whole module, and uses only a part of it.
#![allow(dead_code)]

use std::{process::Stdio, time::Duration};

use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// The longest time that a run may take.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// The program with the server at this URL, and with this command line, split at blanks.
pub(crate) fn campanile_at(url: &str, line: &str) -> Command {
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
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ran {
    #[track_caller]
    pub(crate) fn ended_with(self, code: i32) -> Self {
        let text = String::from_utf8_lossy(&self.stdout);
        assert_eq!(self.code, Some(code), "{text}\n{}", self.stderr);
        self
    }

    #[track_caller]
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("the output is UTF-8")
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).expect("the output is one JSON document")
    }

    #[track_caller]
    pub(crate) fn lines_of_json(&self) -> Vec<Value> {
        let line = |line| serde_json::from_str(line).expect("each line is a JSON document");
        self.text().lines().map(line).collect()
    }

    #[track_caller]
    pub(crate) fn tells(&self, texts: &[&str]) {
        for text in texts {
            assert!(
                self.stderr.contains(text),
                "{text:?} is not in {:?}",
                self.stderr
            );
        }
    }
}

pub(crate) async fn run(command: Command) -> Ran {
    run_with(command, b"").await
}

/// Runs a command with this standard input.
pub(crate) async fn run_with(mut command: Command, input: &[u8]) -> Ran {
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn().expect("the program can be started");
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(input)
            .await
            .expect("the program reads its input");
    }
    let ran = timeout(SOON, child.wait_with_output()).await;
    let ran = ran
        .expect("the program did not end in time")
        .expect("the program can be waited for");
    Ran {
        code: ran.status.code(),
        stdout: ran.stdout,
        stderr: String::from_utf8(ran.stderr).expect("valid UTF-8 on standard error"),
    }
}
