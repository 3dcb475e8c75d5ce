//! Turns errors of the server and the driver into [`Error`]s that say what to do.

use std::{io, sync::Arc, time::Duration};

use redis::{ErrorKind as DriverErrorKind, RedisError, ServerError, ServerErrorKind};

use super::value::Value;
use crate::error::{BoxError, Error, ErrorKind, find};

/// Returns the error for a connection that could not be made.
pub(super) fn connect_failed(address: &str, error: RedisError) -> Error {
    if error.detail().is_some_and(is_too_many_clients) {
        return too_many_clients(address).with_source(error);
    }
    let (kind, message) = match error.kind() {
        DriverErrorKind::AuthenticationFailed => return login_refused(address).with_source(error),
        DriverErrorKind::Parse | DriverErrorKind::UnexpectedReturnType => (
            ErrorKind::Config,
            format!("the server at {address} does not speak the Redis protocol"),
        ),
        DriverErrorKind::InvalidClientConfig => (
            ErrorKind::Config,
            format!("the connection to Redis at {address} cannot work as it is set up"),
        ),
        DriverErrorKind::Io => match describe_tls_fault(&error) {
            Some(fault) => (
                ErrorKind::Config,
                format!("no TLS with Redis at {address}: {fault}"),
            ),
            None => return unreachable(address).with_source(error),
        },
        _ => match error.code() {
            Some(code) if is_transient_code(code) => {
                return unreachable(address).with_source(error);
            }
            _ => (
                ErrorKind::Config,
                format!("Redis at {address} refused the connection's set-up"),
            ),
        },
    };
    Error::new(kind, message).with_source(error)
}

/// A command of the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handshake {
    Auth,
    /// Changes to RESP3.
    Hello,
    Select,
    /// Asks for notices about written keys.
    Tracking,
    Ping,
}

/// Returns the error for a failed command of the handshake. `None` if the server has accepted this
/// client although the command failed.
pub(super) fn handshake_error(
    address: &str,
    command: Handshake,
    error: ServerError,
) -> Option<Error> {
    let code = error.code();
    let is_full = error.details().is_some_and(is_too_many_clients);
    Some(match (code, command) {
        _ if is_full => too_many_clients(address).with_source(RedisError::from(error)),
        ("NOAUTH" | "DENIED", _) => refused(error),
        ("ERR", Handshake::Auth) | ("WRONGPASS", _) => {
            login_refused(address).with_source(RedisError::from(error))
        }
        ("NOPERM", Handshake::Tracking) => Error::new(
            ErrorKind::Refused,
            "the Redis user may not track keys, which a worker of very many slots needs; grant it \
             `+client|tracking` with `ACL SETUSER`",
        )
        .with_source(RedisError::from(error)),
        (_, Handshake::Hello) if lacks_resp3(&error) => Error::config(format!(
            "Redis at {address} does not speak RESP3; leave `protocol` out of the URL"
        ))
        .with_source(RedisError::from(error)),
        // A proxy may not know the command.
        ("ERR", Handshake::Ping) if error.details()?.starts_with("unknown command") => return None,
        // A server that is loading, or restricts this user, has accepted the client. Later commands
        // report the error.
        (code, Handshake::Ping) if code != "ERR" => return None,
        _ => connect_failed(address, error.into()),
    })
}

/// Returns `true` if this is the response to `HELLO 3` from a server that does not support RESP3.
pub(super) fn lacks_resp3(error: &ServerError) -> bool {
    matches!(error.code(), "ERR" | "NOPROTO") && !error.details().is_some_and(is_too_many_clients)
}

/// Returns `true` if this is the error text of a server that has reached its `maxclients`. The
/// server sends the error before it reads anything, and closes the connection.
pub(super) fn is_too_many_clients(text: &str) -> bool {
    text.contains("max number of clients")
}

fn too_many_clients(address: &str) -> Error {
    Error::disconnected(format!(
        "Redis at {address} takes no more connections; raise its `maxclients` or find out who has \
         so many"
    ))
}

/// Returns the error for a refused login.
pub(super) fn login_refused(address: &str) -> Error {
    Error::config(format!(
        "Redis at {address} does not accept the user name or the password; check them in the URL, \
         redis://user:password@host:port/db, or in the provider of the credentials"
    ))
}

/// Returns the error for a credentials provider that has failed. A later attempt may succeed.
pub(super) fn without_credentials(address: &str, cause: BoxError) -> Error {
    Error::disconnected(format!(
        "the credentials for Redis at {address} could not be obtained"
    ))
    .with_source(cause)
}

/// Describes a TLS error; `None` for other errors.
fn describe_tls_fault(error: &RedisError) -> Option<&'static str> {
    // The driver's error holds the system's error in an `Arc`.
    let error = find::<Arc<dyn std::error::Error + Send + Sync>>(error)
        .and_then(|error| error.downcast_ref::<io::Error>())?;
    #[cfg(feature = "redis-rustls")]
    return super::server::describe_tls_fault(error);
    #[cfg(not(feature = "redis-rustls"))]
    {
        let _: &io::Error = error;
        None
    }
}

/// The text of the error for a connection whose server has become a replica.
pub(super) const DEMOTED: &str = "the server has become a replica and takes no writes";

/// Returns the error for a server that the Sentinels name as the primary although it is a replica.
pub(super) fn no_primary(address: &str) -> Error {
    Error::disconnected(format!(
        "Redis at {address} is a replica; the Sentinels have named it as the primary, so it is \
         perhaps about to be promoted"
    ))
}

/// Returns the error for a server that cannot be reached.
pub(super) fn unreachable(address: &str) -> Error {
    Error::disconnected(format!(
        "cannot reach Redis at {address}; is a server running there? `redis-server` starts one, \
         and `redis-cli ping` asks it"
    ))
}

/// Returns the error for a new connection on which the server does not respond in time. With TLS,
/// the text asks whether this is the TLS port: a port without TLS takes the handshake for an
/// incomplete command, and waits for the rest.
pub(super) fn no_response(address: &str, is_tls: bool) -> Error {
    match is_tls {
        false => unreachable(address),
        true => Error::disconnected(format!(
            "Redis at {address} has not answered in time; is it running, and is this its TLS port?"
        )),
    }
}

/// Returns the error for a command that was not sent, since it has waited too long for a
/// connection. `cause` is the reason why there is no connection.
pub(super) fn disconnected(address: &str, cause: Option<Arc<Error>>) -> Error {
    let error = Error::disconnected(format!(
        "there is no connection to Redis at {address}; nothing was sent"
    ));
    match cause {
        Some(cause) => error.with_source(cause),
        None => error,
    }
}

/// Returns the error for a handle whose connections have ended with their runtime.
pub(super) fn runtime_ended() -> Error {
    Error::new(
        ErrorKind::Closed,
        "the runtime on which Redis was connected has ended; connect again on a runtime that lasts \
         as long as the handle is used",
    )
}

/// Returns the error for a command whose connection was lost before the response.
pub(super) fn unanswered(address: &str) -> Error {
    Error::unknown_outcome(format!(
        "the connection to Redis at {address} was lost before the answer came; the command may \
         have been carried out"
    ))
}

/// Returns the error for a script whose response does not come in time. If there is no connection,
/// `cause` is the reason.
pub(super) fn script_timeout(address: &str, limit: Duration, cause: Option<Arc<Error>>) -> Error {
    let error = Error::timeout(format!(
        "Redis at {address} has not answered a script within {limit:?}; it may have run"
    ));
    match cause {
        Some(cause) => error.with_source(cause),
        None => error,
    }
}

/// Returns the error for a client that may not receive replies.
pub(super) fn replies_refused(error: RedisError) -> Error {
    let message = match error.code() {
        Some("NOPERM") => {
            "the Redis user may not listen for replies; grant it the client's reply channels and \
             reply streams with `ACL SETUSER`"
        }
        Some("NOAUTH") => {
            "Redis asks for a password; give it in the URL, redis://user:password@host:port/db"
        }
        _ => "Redis refused to let this client listen for replies",
    };
    Error::new(ErrorKind::Refused, message).with_source(error)
}

/// Returns the error for a refused subscription to events.
pub(super) fn subscription_refused(address: &str, refusal: RedisError) -> Error {
    if refusal.code() == Some("NOPERM") {
        let message = "the Redis user may not subscribe to the events that the application listens \
                       to; grant their channels with `ACL SETUSER <user> &<channel or pattern>` and \
                       the commands with `+@pubsub`";
        return Error::new(ErrorKind::Refused, message).with_source(refusal);
    }
    if refusal.detail().is_some_and(lacks_sharded_events) {
        return Error::config(NO_SHARDED_EVENTS).with_source(refusal);
    }
    if refusal.code().is_some() {
        let text = format!("Redis at {address} has refused a subscription to events");
        return Error::disconnected(text).with_source(refusal);
    }
    unanswered(address).with_source(refusal)
}

/// The message for a server without sharded Pub/Sub.
const NO_SHARDED_EVENTS: &str = "the Redis server has no sharded Pub/Sub; update it to Redis 7.0 or \
                                 newer, or use events that are not sharded";

/// Returns `true` if an error with these details means that the server has no sharded Pub/Sub.
fn lacks_sharded_events(details: &str) -> bool {
    let is_unknown = details.starts_with("unknown command");
    is_unknown && (details.contains("SPUBLISH") || details.contains("SSUBSCRIBE"))
}

/// Returns the code of a server's error, such as `NOGROUP`. `None` for other values.
pub(super) fn code(value: &Value) -> Option<&str> {
    match value {
        Value::ServerError(error) => Some(error.code()),
        _ => None,
    }
}

/// Returns a server's error as an `Err`, and any other value as it is.
pub(super) fn check(value: Value) -> Result<Value, Error> {
    match value {
        Value::ServerError(error) => Err(refused(error)),
        value => Ok(value),
    }
}

/// Returns the error for a command that the server has refused. Its text says what to do.
pub(super) fn refused(error: ServerError) -> Error {
    let (kind, message) = match error.code() {
        "NOPERM" => (
            ErrorKind::Refused,
            "the Redis user lacks a right; grant what the server names with `ACL SETUSER`",
        ),
        "NOAUTH" => (
            ErrorKind::Config,
            "Redis asks for a password; give it in the URL, redis://user:password@host:port/db",
        ),
        "WRONGPASS" => (
            ErrorKind::Config,
            "Redis does not accept the user name or the password; check them in the URL",
        ),
        "DENIED" => (
            ErrorKind::Config,
            "Redis is in protected mode and takes no connections from other machines; set a \
             password or `protected-mode no`",
        ),
        "WRONGTYPE" => (
            ErrorKind::Refused,
            "the key holds a value of another type; choose another stream name or another key, or \
             delete this one",
        ),
        "OOM" => (
            ErrorKind::Refused,
            "Redis has used up its memory; raise `maxmemory` or free some",
        ),
        "MISCONF" => (
            ErrorKind::Refused,
            "Redis takes no writes because it cannot save to disk; see the server's log",
        ),
        "MOVED" | "ASK" => (
            ErrorKind::Disconnected,
            "another node of the Redis Cluster has the key; all nodes are found with a URL that \
             begins with redis+cluster:// or rediss+cluster://",
        ),
        "ERR" if error.details().is_some_and(lacks_sharded_events) => {
            (ErrorKind::Config, NO_SHARDED_EVENTS)
        }
        code if is_transient_code(code) => (ErrorKind::Disconnected, "Redis is not ready"),
        _ if is_protocol_error(&error) => (
            ErrorKind::Refused,
            "Redis does not take a value of this size; raise `proto-max-bulk-len` or send less",
        ),
        _ => (ErrorKind::Refused, "Redis refused the command"),
    };
    Error::new(kind, message).with_source(RedisError::from(error))
}

/// The codes of errors that refuse a command for now. The server has not run the command.
pub(super) const TRANSIENT: [&str; 8] = [
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "BUSY",
    "MOVED",
    "ASK",
];

/// Returns `true` for a code in [`TRANSIENT`].
pub(super) fn is_transient_code(code: &str) -> bool {
    TRANSIENT.contains(&code)
}

/// The lowest possible value of `proto-max-bulk-len` and `client-query-buffer-limit`. No server
/// refuses a smaller command for its size.
pub(super) const LEAST_SIZE_LIMIT: usize = 1 << 20;

/// Returns `true` if the server could not parse a command, for example because a value is too
/// large. The server then closes the connection, and runs none of the later commands.
pub(super) fn is_protocol_error(error: &ServerError) -> bool {
    (error.details()).is_some_and(|details| details.starts_with("Protocol error"))
}

/// Returns the error for a large command after which the server has repeatedly closed the
/// connection.
pub(super) fn too_large(address: &str, times: u32) -> Error {
    Error::refused(format!(
        "Redis at {address} closed the connection {times} times at this large command, without an \
         answer; raise `proto-max-bulk-len` and `client-query-buffer-limit`, or send less"
    ))
}

/// Returns `true` if this code means that the server refuses writes for now: it has no memory left,
/// cannot save, or has too few replicas.
pub(super) fn refuses_writes(code: &str) -> bool {
    matches!(code, "OOM" | "MISCONF" | "NOREPLICAS")
}

/// Returns `true` if the same operation may succeed later.
pub(super) fn is_temporary(error: &Error) -> bool {
    error.is_disconnected()
        || error.is_unknown_outcome()
        || find::<RedisError>(error)
            .and_then(RedisError::code)
            .is_some_and(|code| is_transient_code(code) || refuses_writes(code))
}

/// Returns `true` if the error means that the server was demoted, or has lost a slot of the
/// cluster. A new connection may find the new primary.
pub(super) fn is_demoted(error: &ServerError) -> bool {
    error.kind() == Some(ServerErrorKind::ReadOnly) || error.code() == "MOVED"
}

/// The codes that [`script_error`] looks for.
const CODES: [&str; 17] = [
    "BUSY",
    "BUSYGROUP",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "MOVED",
    "NOAUTH",
    "NOGROUP",
    "NOPERM",
    "NOREPLICAS",
    "NOSCRIPT",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "UNBLOCKED",
    "WRONGTYPE",
];

/// Finds the error of a command in the text of a script's error. Returns the code and the details
/// of the command's error.
///
/// Redis 6.2, MemoryDB and others wrap the command's error, as in
/// `ERR Error running script (call to f_…): @user_script:1: -NOREPLICAS Not enough good replicas`.
/// From Redis 7.0 on the code comes first.
fn script_error(text: &str) -> Option<(&str, &str)> {
    let (_, inner) = text.split_once("Error running script")?;
    // Before the code there are only positions in the script, each with a colon behind it. Text
    // from users comes after the code, so the first match is the code.
    inner.split(": ").find_map(|part| {
        let part = part.strip_prefix('-').unwrap_or(part);
        let (code, _) = part.split_once(' ').unwrap_or((part, ""));
        let from = part.as_ptr().addr() - inner.as_ptr().addr();
        CODES
            .contains(&code)
            .then(|| (code, inner[from + code.len()..].trim_start()))
    })
}

/// Extracts the error of a command from a script's error. Returns other errors unchanged.
pub(super) fn inner_error(error: ServerError) -> ServerError {
    if error.code() != "ERR" {
        return error;
    }
    let Some((code, rest)) = error.details().and_then(script_error) else {
        return error;
    };
    // Only the driver can make a `ServerError`, so the extracted error is parsed again.
    let line = format!("-{code} {}\r\n", rest.replace(['\r', '\n'], " "));
    match redis::parse_redis_value(line.as_bytes()) {
        Ok(redis::Value::ServerError(inner)) => inner,
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server's error, parsed by the driver.
    fn response(line: &str) -> ServerError {
        match redis::parse_redis_value(format!("-{line}\r\n").as_bytes()) {
            Ok(redis::Value::ServerError(error)) => error,
            other => panic!("no error: {other:?}"),
        }
    }

    // The texts are in the format of Redis 6.2.14 and 7.0.15.
    #[test]
    fn the_code_is_found_inside_the_error_of_a_script() {
        let hash = "f_7d4cd0ef1d3b6d2a0f61b7ae0f53c2d0c8c1a5ad";
        for (said, code, rest) in [
            (
                format!(
                    "ERR Error running script (call to {hash}): @user_script:1: @user_script: 1: \
                     -NOREPLICAS Not enough good replicas to write."
                ),
                "NOREPLICAS",
                "Not enough good replicas to write.",
            ),
            (
                format!(
                    "ERR Error running script (call to {hash}): @user_script:1: -READONLY You can't \
                     write against a read only replica."
                ),
                "READONLY",
                "You can't write against a read only replica.",
            ),
            (
                format!(
                    "ERR Error running script (call to {hash}): @user_script:3: NOGROUP No such key \
                     's: OOM x' or consumer group 'g'"
                ),
                "NOGROUP",
                "No such key 's: OOM x' or consumer group 'g'",
            ),
            (
                format!("OOM command not allowed script: {hash}, on @user_script:1."),
                "OOM",
                "command not allowed script: f_7d4cd0ef1d3b6d2a0f61b7ae0f53c2d0c8c1a5ad, on \
                 @user_script:1.",
            ),
        ] {
            let found = inner_error(response(&said));
            assert_eq!(found.code(), code, "{said}");
            assert_eq!(found.details(), Some(rest), "{said}");
        }
        let demoted = format!(
            "ERR Error running script (call to {hash}): @user_script:1: -READONLY You can't write"
        );
        assert!(is_demoted(&inner_error(response(&demoted))));
    }

    #[test]
    fn an_error_that_wraps_no_other_stays_as_it_is() {
        for said in [
            "ERR no such key",
            "ERR the stream is called OOM: OOM x",
            "ERR Error running script (call to f_1): @user_script:1: user_script:1: attempt to \
             index a nil value",
        ] {
            assert_eq!(inner_error(response(said)), response(said));
        }
    }

    #[test]
    fn only_an_error_that_was_not_asked_for_ends_a_handshake() {
        let ends = |command, said| handshake_error("here", command, response(said));
        for accepted in [
            "NOPERM User sender has no permissions to run the 'ping' command",
            "LOADING Redis is loading the dataset in memory",
            "MISCONF Errors writing to the AOF file",
            "MASTERDOWN Pipeline with MASTER is down",
            "ERR unknown command 'PING'",
        ] {
            assert!(ends(Handshake::Ping, accepted).is_none(), "{accepted}");
        }
        for command in [Handshake::Auth, Handshake::Select, Handshake::Ping] {
            let full = ends(command, "ERR max number of clients reached").unwrap();
            assert!(full.is_disconnected(), "{full:?}");
            assert!(!full.chain().contains("password"), "{}", full.chain());
            let denied = ends(command, "DENIED Redis is running in protected mode");
            assert!(denied.unwrap().is_config());
        }
        assert!(ends(Handshake::Ping, "ERR something").is_some());
    }
}
