//! What the server and the driver say went wrong, as [`Error`]s that say what to do.

use std::{io, sync::Arc};

use redis::{ErrorKind as Driver, RedisError, ServerError, ServerErrorKind};

use super::value::Value;
use crate::error::{Error, ErrorKind, find};

/// Why a connection could not be made.
pub(super) fn connecting(address: &str, error: RedisError) -> Error {
    let (kind, message) = match error.kind() {
        Driver::AuthenticationFailed => (
            ErrorKind::Config,
            format!(
                "Redis at {address} does not accept the user name or the password; check them in \
                 the URL, redis://user:password@host:port/db"
            ),
        ),
        Driver::RESP3NotSupported => (
            ErrorKind::Config,
            format!("Redis at {address} does not speak RESP3; leave `protocol` out of the URL"),
        ),
        Driver::Parse | Driver::UnexpectedReturnType => (
            ErrorKind::Config,
            format!("what answers at {address} does not speak the Redis protocol"),
        ),
        Driver::InvalidClientConfig => (
            ErrorKind::Config,
            format!("the connection to Redis at {address} cannot work as it is set up"),
        ),
        Driver::Io if is_tls(&error) => (
            ErrorKind::Config,
            format!("Redis at {address} has a certificate that is not trusted, or speaks no TLS"),
        ),
        Driver::Io => return unreachable(address).with_source(error),
        _ => match error.code() {
            Some(code) if is_passing(code) => return unreachable(address).with_source(error),
            _ => (
                ErrorKind::Config,
                format!("Redis at {address} refused the connection's set-up"),
            ),
        },
    };
    Error::new(kind, message).with_source(error)
}

/// Whether a handshake failed, and not the way to the server.
fn is_tls(error: &RedisError) -> bool {
    // The driver's source is a shared box around the error of the system.
    find::<Arc<dyn std::error::Error + Send + Sync>>(error)
        .and_then(|error| error.downcast_ref::<io::Error>())
        .is_some_and(|error| error.kind() == io::ErrorKind::InvalidData)
}

/// Nobody answers there.
pub(super) fn unreachable(address: &str) -> Error {
    Error::disconnected(format!(
        "cannot reach Redis at {address}; is a server running there? `redis-server` starts one, \
         and `redis-cli ping` asks it"
    ))
}

/// A command waited for a connection for as long as it may.
pub(super) fn disconnected(address: &str) -> Error {
    Error::disconnected(format!(
        "there is no connection to Redis at {address}; nothing was sent"
    ))
}

/// The connection was lost while a command was under way.
pub(super) fn unanswered(address: &str) -> Error {
    Error::unknown_outcome(format!(
        "the connection to Redis at {address} was lost before the answer came; the command may \
         have been carried out"
    ))
}

/// The server does not let this client hear replies.
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

/// The code of a server's error answer, such as `NOGROUP`.
pub(super) fn code(value: &Value) -> Option<&str> {
    match value {
        Value::ServerError(error) => Some(error.code()),
        _ => None,
    }
}

/// The answer itself, or the server's refusal as an error.
pub(super) fn check(value: Value) -> Result<Value, Error> {
    match value {
        Value::ServerError(error) => Err(refused(error)),
        value => Ok(value),
    }
}

/// What a server's error answer means for whoever sent the command, and what to do about it.
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
            "the key holds something that is not a stream; choose another stream name, or delete \
             the key",
        ),
        "OOM" => (
            ErrorKind::Refused,
            "Redis has used up its memory; raise `maxmemory` or free some",
        ),
        "MISCONF" => (
            ErrorKind::Refused,
            "Redis takes no writes because it cannot save to disk; see the server's log",
        ),
        code if is_passing(code) => (ErrorKind::Disconnected, "Redis is not ready"),
        _ if is_protocol_error(&error) => (
            ErrorKind::Refused,
            "Redis does not take a value of this size; raise `proto-max-bulk-len` or send less",
        ),
        _ => (ErrorKind::Refused, "Redis refused the command"),
    };
    Error::new(kind, message).with_source(RedisError::from(error))
}

/// Whether a server that answers this is only not ready: it has not done what it was asked, and
/// will take it later.
pub(super) fn is_passing(code: &str) -> bool {
    matches!(
        code,
        "LOADING" | "READONLY" | "MASTERDOWN" | "TRYAGAIN" | "CLUSTERDOWN" | "BUSY"
    )
}

/// The smallest value of `proto-max-bulk-len` and of `client-query-buffer-limit`: no server refuses
/// a smaller command for its size.
pub(super) const LEAST_SIZE_LIMIT: usize = 1 << 20;

/// Whether the server could not read a command, such as one with a value that is larger than it takes.
/// Then it closes the connection, and carries out nothing that was sent behind that command.
pub(super) fn is_protocol_error(error: &ServerError) -> bool {
    (error.details()).is_some_and(|details| details.starts_with("Protocol error"))
}

/// A command was sent again and again, and each time the server closed the connection.
pub(super) fn not_taken(address: &str, times: u32) -> Error {
    Error::refused(format!(
        "Redis at {address} closed the connection {times} times at this large command, without an \
         answer; raise `proto-max-bulk-len` and `client-query-buffer-limit`, or send less"
    ))
}

/// Whether this server is the wrong one to ask: another connection may reach the right one.
pub(super) fn is_demoted(error: &ServerError) -> bool {
    error.kind() == Some(ServerErrorKind::ReadOnly)
}
