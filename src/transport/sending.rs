//! The checks of every sending half.

use std::time::Duration;

use crate::{
    error::{Error, ErrorKind},
    message::{IdempotencyKey, Kind, Parts},
};

/// The longest delay of a task: a hundred years.
const LONGEST_DELAY: Duration = Duration::from_secs(3_155_760_000);

/// Checks a message that is to be sent. Refuses names that are empty, too long or contain control
/// characters, delays and idempotency keys of requests and events, and tasks that would expire before
/// they are due.
///
/// The sending half of every transport calls this first.
///
/// # Errors
/// An [invalid message](Error::is_invalid), or a [timeout](Error::is_timeout) if a task has expired.
pub fn check(parts: &Parts) -> Result<(), Error> {
    let invalid = |text: &str| Err(Error::new(ErrorKind::Invalid, text));
    if let Some(fault) = parts.name.fault() {
        return invalid(fault);
    }
    if parts.kind == Kind::Event && !parts.headers.is_empty() {
        return invalid(
            "events carry no headers on Pub/Sub; put them in the payload, or send a task",
        );
    }
    match &parts.to {
        Some(_) if parts.kind == Kind::Event => {
            return invalid("events are published, not put on a stream: leave the stream out");
        }
        Some(stream) => {
            if let Some(fault) = stream.fault() {
                return invalid(&format!("the stream cannot be used: {fault}"));
            }
        }
        None => {}
    }
    if parts.kind != Kind::Task {
        if parts.due.is_some() {
            return invalid("only tasks can be delayed");
        }
        if parts.idempotency_key.is_some() {
            return invalid("only tasks can have an idempotency key");
        }
        return Ok(());
    }
    match &parts.idempotency_key {
        Some(key) if key.is_empty() => return invalid("the idempotency key is empty"),
        Some(key) if key.len() > IdempotencyKey::MAX_LEN => {
            return invalid("the idempotency key is longer than 1024 bytes");
        }
        _ => {}
    }
    let wait = parts.due.map(|due| due.wait()).unwrap_or_default();
    if wait > LONGEST_DELAY {
        return invalid("a task cannot be delayed by more than a hundred years");
    }
    match parts.deadline {
        Some(deadline) if deadline.has_passed() => Err(Error::new(
            ErrorKind::Timeout,
            "the task expired before it was sent",
        )),
        Some(deadline) if deadline.remaining() <= wait => {
            invalid("the task expires before it is due")
        }
        _ => Ok(()),
    }
}
