//! Checks messages before they are sent, in every transport.

use std::time::Duration;

use crate::{
    error::{Error, ErrorKind},
    message::{IdempotencyKey, Kind, PartitionKey, Parts, Replicas, UniqueKey},
};

/// The maximum delay of a task: a hundred years.
const LONGEST_DELAY: Duration = Duration::from_secs(3_155_760_000);
/// The maximum wait for replicas. It is short, because later tasks that need replicas are written
/// only after this wait.
const LONGEST_CONFIRMATION: Duration = Duration::from_secs(60);

/// Checks a message before it is sent. Refuses invalid names, streams and keys, options that the
/// kind of the message does not have (such as the delay of a request), and tasks that would expire
/// before they are due.
///
/// The sending half of every transport calls this function first. The function also refuses
/// messages with [`replicas`](Parts::replicas): a transport that has replicas must clear this field
/// before the call.
///
/// # Errors
/// An [invalid message](Error::is_invalid) error, or a [timeout](Error::is_timeout) if a task has
/// expired.
pub fn check(parts: &Parts) -> Result<(), Error> {
    check_replicated(parts)?;
    match parts.replicas {
        None => Ok(()),
        Some(_) => Err(Error::new(
            ErrorKind::Invalid,
            "this transport has no replicas that could confirm a task; leave `replicas` out",
        )),
    }
}

/// Checks a message as [`check`] does, for a transport that has replicas.
pub(crate) fn check_replicated(parts: &Parts) -> Result<(), Error> {
    if let Some(fault) = parts.name.fault() {
        return invalid(fault);
    }
    match parts.kind {
        Kind::Event => {
            check_event(parts)?;
            check_no_task_options(parts)
        }
        Kind::Rpc => {
            check_destination(parts)?;
            check_no_task_options(parts)
        }
        Kind::Task => {
            check_destination(parts)?;
            check_keys(parts)?;
            check_attempts(parts)?;
            check_replicas(parts)?;
            check_times(parts)
        }
    }
}

/// An event has no headers, no stream and no partition key.
fn check_event(parts: &Parts) -> Result<(), Error> {
    if !parts.headers.is_empty() {
        return invalid(
            "events carry no headers on Pub/Sub; put them in the payload, or send a task",
        );
    }
    if parts.to.is_some() {
        return invalid("events are published, not put on a stream: leave the stream out");
    }
    if parts.partition_key.is_some() {
        return invalid("events are published, not put on a stream: leave the partition key out");
    }
    Ok(())
}

/// Checks the stream and the partition key of a task or a request.
fn check_destination(parts: &Parts) -> Result<(), Error> {
    if parts.sharded {
        return invalid("only events can be sharded");
    }
    if let Some(fault) = parts.to.as_ref().and_then(|stream| stream.fault()) {
        return invalid(&format!("the stream cannot be used: {fault}"));
    }
    match &parts.partition_key {
        Some(key) => check_key("partition key", key),
        None => Ok(()),
    }
}

fn check_no_task_options(parts: &Parts) -> Result<(), Error> {
    if parts.due.is_some() {
        return invalid("only tasks can be delayed");
    }
    if parts.idempotency_key.is_some() {
        return invalid("only tasks can have an idempotency key");
    }
    if parts.unique.is_some() || parts.tracked.is_some() {
        return invalid("only tasks can be unique or tracked");
    }
    if parts.max_attempts.is_some() || parts.attempt_timeout.is_some() {
        return invalid("only tasks can have limits for their attempts");
    }
    if parts.replicas.is_some() {
        return invalid("only tasks can wait for replicas");
    }
    Ok(())
}

/// Checks the keys of a task, and the time for which its status is kept.
fn check_keys(parts: &Parts) -> Result<(), Error> {
    if let Some(key) = &parts.idempotency_key {
        check_key("idempotency key", key)?;
    }
    if let Some(unique) = &parts.unique {
        if parts.idempotency_key.is_some() {
            return invalid("a task has an idempotency key or a unique key, not both");
        }
        check_key("unique key", &unique.key)?;
    }
    if parts.tracked.is_some_and(|keep| keep > LONGEST_DELAY) {
        return invalid("the status of a task cannot be kept for more than a hundred years");
    }
    Ok(())
}

fn check_attempts(parts: &Parts) -> Result<(), Error> {
    if parts.max_attempts == Some(0) {
        return invalid("a task needs at least one attempt");
    }
    if parts.attempt_timeout.is_some_and(|limit| limit.is_zero()) {
        return invalid("an attempt needs some time");
    }
    Ok(())
}

fn check_replicas(parts: &Parts) -> Result<(), Error> {
    match parts.replicas {
        Some(Replicas { count: 0, .. }) => invalid("no replica is asked for; leave `replicas` out"),
        Some(Replicas { within, .. }) if within.is_zero() => {
            invalid("replicas need some time to confirm a task")
        }
        Some(Replicas { within, .. }) if within > LONGEST_CONFIRMATION => {
            invalid("replicas have at most a minute to confirm a task")
        }
        _ => Ok(()),
    }
}

/// Checks the delay of a task, and its deadline, which must be later.
fn check_times(parts: &Parts) -> Result<(), Error> {
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

fn invalid(text: &str) -> Result<(), Error> {
    Err(Error::new(ErrorKind::Invalid, text))
}

/// The maximum length of a key, in bytes.
const MAX_KEY_LEN: usize = 1024;

const _: () = assert!(
    IdempotencyKey::MAX_LEN == MAX_KEY_LEN
        && PartitionKey::MAX_LEN == MAX_KEY_LEN
        && UniqueKey::MAX_LEN == MAX_KEY_LEN
);

/// Refuses a key that is empty or too long.
pub(crate) fn check_key(what: &str, key: &str) -> Result<(), Error> {
    let fault = match key.len() {
        0 => "is empty",
        1..=MAX_KEY_LEN => return Ok(()),
        _ => "is longer than 1024 bytes",
    };
    Err(Error::new(
        ErrorKind::Invalid,
        format!("the {what} {fault}"),
    ))
}
