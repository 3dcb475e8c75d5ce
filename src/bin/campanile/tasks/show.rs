//! The status of a task, as text and as JSON.

use campanile::transport::TaskStatus;
use serde_json::{Value, json};

use crate::{
    command_error::CommandError,
    show::{
        Out, json,
        text::{self, fact},
    },
};

/// The maximum length of a result or a progress value on a line, in bytes.
const MAX_LEN: usize = 1024;

/// Shows a status.
pub(super) fn status(status: &TaskStatus, out: &Out) -> Result<(), CommandError> {
    match out.json {
        true => out.write_document(&task_json(status)),
        false => out.write_lines(format_task(status)),
    }
}

fn format_task(status: &TaskStatus) -> Vec<String> {
    let mut lines = vec![
        fact("id", &status.id),
        fact("name", &status.name),
        fact("state", status.state.as_str()),
        fact("attempt", &status.attempt.0.to_string()),
        fact("accepted", &text::time(status.accepted_at)),
    ];
    let started = status.started_at.map(|time| ("started", text::time(time)));
    let ended = status.ended_at.map(|time| ("ended", text::time(time)));
    let reason = Some(status.reason.clone()).filter(|reason| !reason.is_empty());
    let reason = reason.map(|reason| ("reason", reason));
    let unique = status
        .unique
        .as_ref()
        .map(|key| ("unique", key.to_string()));
    let facts = [started, ended, reason, unique].into_iter().flatten();
    lines.extend(facts.map(|(title, value)| fact(title, &value)));
    // An excerpt is escaped already.
    let excerpt =
        |title: &str, value: &[u8]| format!("{title:<10}{}", text::excerpt(value, MAX_LEN));
    lines.extend(status.progress.as_ref().map(|it| excerpt("progress", it)));
    lines.extend(status.result.as_ref().map(|it| excerpt("result", it)));
    let too_large = status.result_too_large;
    lines.extend(too_large.map(|bytes| fact("result", &format!("too large: {bytes} bytes"))));
    lines
}

/// Returns the JSON of a status.
pub(super) fn task_json(status: &TaskStatus) -> Value {
    json!({
        "id": &*status.id,
        "name": &*status.name,
        "state": status.state.as_str(),
        "attempt": status.attempt.0,
        "reason": status.reason,
        "unique": status.unique.as_deref(),
        "progress": status.read_progress::<Value>().unwrap_or_default(),
        "result": status.result.as_ref().map(json::bytes),
        "result_too_large": status.result_too_large,
        "accepted_at": json::time(status.accepted_at),
        "started_at": status.started_at.map(json::time),
        "ended_at": status.ended_at.map(json::time),
        "keep_ms": json::milliseconds(status.keep),
    })
}
