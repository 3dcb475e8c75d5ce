//! A store on Redis.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use campanile::{
    BoxError, Redis,
    transport::redis::{Script, ScriptCall, ScriptResponse},
};

use super::store::{Claim, Store, Token};

// The value of a claimed key is `c`, followed by the token of the claim. The value of a key with an
// outcome is `d`, followed by the outcome.

/// Claims a key. ARGV: token, milliseconds. Returns `won`, `taken`, or the outcome in a list.
static CLAIM: Script = Script::new(
    "local found, mine = redis.call('GET', KEYS[1]), 'c' .. ARGV[1]
     if found and string.sub(found, 1, 1) == 'd' then return { string.sub(found, 2) } end
     if found and found ~= mine then return 'taken' end
     redis.call('SET', KEYS[1], mine, 'PX', ARGV[2])
     return 'won'",
);

/// Stores an outcome. ARGV: token, milliseconds, outcome. Returns 1 if the key has this outcome
/// now, and otherwise 0.
static FINISH: Script = Script::new(
    "local found, outcome = redis.call('GET', KEYS[1]), 'd' .. ARGV[3]
     if found == outcome then return 1 end
     if found and found ~= 'c' .. ARGV[1] then return 0 end
     redis.call('SET', KEYS[1], outcome, 'PX', ARGV[2])
     return 1",
);

/// Deletes a key if it has this value. ARGV: value.
static DELETE: Script =
    Script::new("if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end");

/// A store on Redis, shared by all workers of a group.
///
/// The store uses the connections of a [`Redis`] handle, with its topology, its credentials and its
/// reconnects. On a cluster each key is on the primary of its hash slot. Outcomes that were
/// replicated survive a failover. Every key has a time to live. The Redis user needs
/// `~<prefix>* +get +set +del +evalsha +eval`.
#[derive(Debug, Clone)]
pub struct RedisStore {
    redis: Redis,
    prefix: Arc<str>,
    timeout: Duration,
}

impl RedisStore {
    /// Creates a store that uses the connections of a handle. The handle may also serve and send.
    /// All keys begin with `prefix`. The prefix should contain the name of the consumer group:
    /// groups must not share a store, because every group has to handle every message. No prefix
    /// may begin with the prefix of another store, because both stores could then use the same key.
    /// On a cluster, a prefix with a hash tag, such as `{once}:`, puts all keys on one node.
    ///
    /// # Panics
    /// If the prefix is empty.
    #[must_use]
    #[track_caller]
    pub fn new(redis: &Redis, prefix: &str) -> Self {
        assert!(!prefix.is_empty(), "the prefix of a Redis store is empty");
        Self {
            redis: redis.clone(),
            prefix: prefix.into(),
            timeout: Duration::from_secs(2),
        }
    }

    /// Sets the time after which a command without a response fails. 2 s unless set.
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

    fn script_call(&self, script: &'static Script, key: &str) -> ScriptCall {
        let call = script.key(format!("{}{key}", self.prefix));
        call.timeout(self.timeout)
    }

    async fn delete(&self, key: &str, value: Vec<u8>) -> Result<(), BoxError> {
        let call = self.script_call(&DELETE, key).arg(value);
        call.run(&self.redis).await?;
        Ok(())
    }
}

impl Store for RedisStore {
    async fn claim(&self, key: &str, token: Token, claim_for: Duration) -> Result<Claim, BoxError> {
        let call = self.script_call(&CLAIM, key).arg(token.to_string());
        match call.arg(millis(claim_for)).run(&self.redis).await? {
            ScriptResponse::Bytes(word) if word == "won" => Ok(Claim::Won),
            ScriptResponse::Bytes(word) if word == "taken" => Ok(Claim::Taken),
            ScriptResponse::List(mut list) => match (list.pop(), list.is_empty()) {
                (Some(ScriptResponse::Bytes(outcome)), true) => Ok(Claim::Finished(outcome)),
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
        let call = self.script_call(&FINISH, key).arg(token.to_string());
        let call = call.arg(millis(keep_for)).arg(outcome);
        match call.run(&self.redis).await? {
            ScriptResponse::Int(stored) => Ok(stored == 1),
            _ => Err(UNREADABLE.into()),
        }
    }

    async fn release(&self, key: &str, token: Token) -> Result<(), BoxError> {
        self.delete(key, format!("c{token}").into()).await
    }

    async fn forget(&self, key: &str, outcome: Bytes) -> Result<(), BoxError> {
        self.delete(key, [b"d", &outcome[..]].concat()).await
    }
}

const UNREADABLE: &str = "a response of the idempotency store cannot be read";

/// Converts a duration to the milliseconds of `PX`: at least 1 ms, and at most a century.
fn millis(duration: Duration) -> String {
    const CENTURY: u64 = 3_155_760_000_000;
    let millis = u64::try_from(duration.as_millis()).map_or(CENTURY, |ms| ms.clamp(1, CENTURY));
    millis.to_string()
}
