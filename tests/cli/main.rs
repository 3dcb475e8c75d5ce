//! Tests of the program `campanile` on real servers, in pipes and in a [`terminal`].

mod connection;
mod dashboard;
mod dashboard_load;
mod dead;
mod groups;
mod namespaces;
mod pause;
#[path = "../support/program.rs"]
mod program;
mod scale;
mod schedules;
mod send;
mod stats;
#[path = "../support/mod.rs"]
mod support;
mod tail;
mod tasks;
mod terminal;
mod workers;

use std::time::Duration;

use program::{SOON, campanile_at, run, run_with};
use serde_json::Value;
use support::{RedisServer, raw, within};
use tokio::process::Command;

/// The program with this server, and with this command line, split at blanks.
fn campanile(server: &RedisServer, line: &str) -> Command {
    campanile_at(&server.url(), line)
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

/// The key of the default group's dead letters.
const DEAD: &str = "{app_stream}:dead:app_group";
/// The key of the default group's retry stream.
const RETRY: &str = "{app_stream}:retry:app_group";

/// Creates a stream with this group.
async fn group(server: &RedisServer, stream: &str, group: &str) {
    let create = ["XGROUP", "CREATE", stream, group, "0", "MKSTREAM"];
    server.command(&create).await;
}
