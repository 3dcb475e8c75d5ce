//! A store on Redis.

use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use campanile::{BoxError, Error, transport::redis::script_error};
use redis::{
    AsyncConnectionConfig, Client, RedisError, Script, ScriptInvocation, ServerErrorKind, Value,
    aio::MultiplexedConnection,
};
use tokio::{sync::Mutex, time::timeout};

use super::store::{Claim, Store, Token};

// The value of a key is `c` and the token of its claim, or `d` and the outcome.

/// Claims a key. ARGV: token, milliseconds. Returns `won`, `taken`, or the outcome in a list.
static CLAIM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local found, mine = redis.call('GET', KEYS[1]), 'c' .. ARGV[1]
         if found and string.sub(found, 1, 1) == 'd' then return { string.sub(found, 2) } end
         if found and found ~= mine then return 'taken' end
         redis.call('SET', KEYS[1], mine, 'PX', ARGV[2])
         return 'won'",
    )
});

/// Stores an outcome. ARGV: token, milliseconds, outcome. Returns 1 if the key has this outcome
/// now, else 0.
static FINISH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local found, outcome = redis.call('GET', KEYS[1]), 'd' .. ARGV[3]
         if found == outcome then return 1 end
         if found and found ~= 'c' .. ARGV[1] then return 0 end
         redis.call('SET', KEYS[1], outcome, 'PX', ARGV[2])
         return 1",
    )
});

/// Deletes a key if it has this value. ARGV: value.
static DELETE: LazyLock<Script> = LazyLock::new(|| {
    Script::new("if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end")
});

/// A store on Redis, shared by all workers of a group. Clones share its connection.
///
/// The store uses `GET`, `SET … PX` and `DEL` in scripts of one key each, so it works with Redis
/// 6.2 and later, also on a node of a cluster. Every key that it writes has a time to live. After a
/// lost connection, the next command connects again.
#[derive(Clone)]
pub struct RedisStore {
    connection: Arc<SharedConnection>,
    prefix: Arc<str>,
    timeout: Duration,
}

impl RedisStore {
    /// Connects. All keys begin with `prefix`, which should name the consumer group: every group
    /// has to handle every message, so groups must not share a store. No prefix may begin with the
    /// prefix of another store, or the two stores could use the same key.
    ///
    /// # Errors
    /// If the URL cannot be read, or the server does not respond within 2 s.
    ///
    /// # Panics
    /// If the prefix is empty.
    #[track_caller]
    pub fn connect(
        url: &str,
        prefix: &str,
    ) -> impl Future<Output = Result<Self, Error>> + Send + use<> {
        assert!(!prefix.is_empty(), "the prefix of a Redis store is empty");
        let prefix: Arc<str> = prefix.into();
        let client = Client::open(url);
        async move {
            let client = client.map_err(|error| {
                // The driver's text does not contain the URL, which may contain a password.
                Error::config(format!(
                    "the Redis URL cannot be read ({error}); it looks like \
                     redis://user:password@host:port/db"
                ))
            })?;
            let store = Self {
                connection: Arc::new(SharedConnection {
                    client,
                    current: Mutex::default(),
                }),
                prefix,
                timeout: Duration::from_secs(2),
            };
            match timeout(store.timeout, store.connection.get()).await {
                Ok(Ok(_)) => Ok(store),
                Ok(Err(error)) => Err(store.connection.unreachable(&error)),
                Err(_) => Err(store.connection.unreachable(&"no response in time")),
            }
        }
    }

    /// Sets the time after which a command without a response has failed. 2 s unless set.
    ///
    /// # Panics
    /// If `timeout` is zero.
    #[must_use]
    #[track_caller]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        assert!(!timeout.is_zero(), "a timeout must be above zero");
        self.timeout = timeout;
        self
    }

    async fn invoke(&self, invocation: &ScriptInvocation<'_>) -> Result<Value, BoxError> {
        let mut used = 0;
        match timeout(self.timeout, self.connection.invoke(invocation, &mut used)).await {
            Ok(answer) => Ok(answer?),
            Err(_) => {
                // The server may be slow, or the connection dead. The next command makes a new one.
                self.connection.give_up(used).await;
                Err(self.connection.unreachable(&"no response in time").into())
            }
        }
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    async fn delete(&self, key: &str, value: &[u8]) -> Result<(), BoxError> {
        let invocation = &mut DELETE.key(self.key(key));
        self.invoke(invocation.arg(value)).await.map(drop)
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("address", &self.connection.address())
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl Store for RedisStore {
    async fn claim(&self, key: &str, token: Token, claim_for: Duration) -> Result<Claim, BoxError> {
        let invocation = &mut CLAIM.key(self.key(key));
        invocation.arg(token.to_string()).arg(millis(claim_for));
        match self.invoke(invocation).await? {
            Value::BulkString(word) if word == b"won" => Ok(Claim::Won),
            Value::BulkString(word) if word == b"taken" => Ok(Claim::Taken),
            Value::Array(mut list) => match (list.pop(), list.is_empty()) {
                (Some(Value::BulkString(outcome)), true) => Ok(Claim::Finished(outcome.into())),
                _ => Err(UNREADABLE.into()),
            },
            _ => Err(UNREADABLE.into()),
        }
    }

    async fn renew(&self, key: &str, token: Token, claim_for: Duration) -> Result<bool, BoxError> {
        let claim = self.claim(key, token, claim_for).await?;
        Ok(claim == Claim::Won)
    }

    async fn finish(
        &self,
        key: &str,
        token: Token,
        outcome: Bytes,
        keep_for: Duration,
    ) -> Result<bool, BoxError> {
        let invocation = &mut FINISH.key(self.key(key));
        invocation.arg(token.to_string()).arg(millis(keep_for));
        match self.invoke(invocation.arg(&outcome[..])).await? {
            Value::Int(stored) => Ok(stored == 1),
            _ => Err(UNREADABLE.into()),
        }
    }

    async fn release(&self, key: &str, token: Token) -> Result<(), BoxError> {
        self.delete(key, format!("c{token}").as_bytes()).await
    }

    async fn forget(&self, key: &str, outcome: Bytes) -> Result<(), BoxError> {
        self.delete(key, &[b"d", &outcome[..]].concat()).await
    }
}

const UNREADABLE: &str = "a response of the idempotency store cannot be read";

/// Converts a duration to the whole milliseconds of `PX`, which must be above zero and below a
/// limit.
fn millis(duration: Duration) -> u64 {
    const CENTURY: u64 = 3_155_760_000_000;
    u64::try_from(duration.as_millis()).map_or(CENTURY, |ms| ms.clamp(1, CENTURY))
}

/// One connection for all commands, which is replaced after it was lost.
struct SharedConnection {
    client: Client,
    current: Mutex<NumberedConnection>,
}

#[derive(Default)]
struct NumberedConnection {
    /// The number of the connection, counted from 1.
    number: u64,
    connection: Option<MultiplexedConnection>,
}

impl SharedConnection {
    /// Runs a script, and writes the number of the connection to `used`. After a lost connection it
    /// sends the script once more, which every script must allow.
    async fn invoke(
        &self,
        invocation: &ScriptInvocation<'_>,
        used: &mut u64,
    ) -> Result<Value, RedisError> {
        let mut may_retry = true;
        loop {
            let mut connection;
            (*used, connection) = self.get().await?;
            match invocation.invoke_async(&mut connection).await {
                Err(error) if is_lost(&error) => {
                    self.give_up(*used).await;
                    if !std::mem::take(&mut may_retry) {
                        return Err(error);
                    }
                }
                answer => return answer,
            }
        }
    }

    /// The connection, with its number. Connects if there is none; concurrent callers wait for the
    /// same new connection.
    async fn get(&self) -> Result<(u64, MultiplexedConnection), RedisError> {
        let mut current = self.current.lock().await;
        if let Some(connection) = &current.connection {
            return Ok((current.number, connection.clone()));
        }
        // The timeout around the whole command covers connecting and responses.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None);
        let client = &self.client;
        let connection = client.get_multiplexed_async_connection_with_config(&config);
        let connection = connection.await?;
        current.number += 1;
        current.connection = Some(connection.clone());
        Ok((current.number, connection))
    }

    /// Drops the connection with this number, so that the next command makes a new one.
    async fn give_up(&self, number: u64) {
        let mut current = self.current.lock().await;
        if current.number == number {
            current.connection = None;
        }
    }

    fn address(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }

    fn unreachable(&self, cause: &dyn fmt::Display) -> Error {
        let address = self.address();
        Error::disconnected(format!("Redis at {address} cannot be reached: {cause}"))
    }
}

/// Returns `true` if the command may succeed on a new connection.
fn is_lost(error: &RedisError) -> bool {
    let demoted = redis::ErrorKind::Server(ServerErrorKind::ReadOnly);
    error.is_io_error()
        || error.is_connection_dropped()
        || error.kind() == demoted
        || error.detail().is_some_and(|text| {
            // Redis 6.2 wraps the error of a command inside a script.
            let inside = script_error(text).is_some_and(|(code, _)| code == "READONLY");
            // A server at its `maxclients` sends this instead of a response, and closes.
            inside || text.contains("max number of clients")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_replicas_and_full_servers_count_as_lost_connections() {
        let lost = |line: &str| match redis::parse_redis_value(line.as_bytes()) {
            Ok(Value::ServerError(error)) => is_lost(&error.into()),
            other => panic!("no error: {other:?}"),
        };
        assert!(lost(
            "-READONLY You can't write against a read only replica.\r\n"
        ));
        assert!(lost(
            "-ERR Error running script (call to f_1): @user_script:1: -READONLY You can't write\r\n"
        ));
        assert!(lost("-ERR max number of clients reached\r\n"));
        assert!(!lost("-ERR no such key\r\n"));
    }
}
