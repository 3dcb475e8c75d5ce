//! The trait of stores.

use std::{fmt, future::Future, time::Duration};

use bytes::Bytes;
use campanile::BoxError;

/// Stores claims and outcomes. Implemented by [`MemoryStore`](super::MemoryStore) and `RedisStore`,
/// and by any custom store.
///
/// A key is in one of three states: it is free, it is claimed by one token until a certain time, or
/// it has an outcome until a certain time. Each method is atomic and idempotent: after an error or
/// a lost response it may be called again with the same arguments. Each method must have a time
/// limit, because the layer sets none.
pub trait Store: Clone + Send + Sync + 'static {
    /// Claims the key until `claim_for` from now, if the key is free or claimed by this token.
    ///
    /// # Errors
    /// If the store fails.
    fn claim(
        &self,
        key: &str,
        token: Token,
        claim_for: Duration,
    ) -> impl Future<Output = Result<Claim, BoxError>> + Send;

    /// Extends the claim of this token to `claim_for` from now, or claims a key that has become
    /// free. Returns `false` if another token has claimed the key, or if the key has an outcome.
    ///
    /// # Errors
    /// If the store fails.
    fn renew(
        &self,
        key: &str,
        token: Token,
        claim_for: Duration,
    ) -> impl Future<Output = Result<bool, BoxError>> + Send;

    /// Replaces the claim of this token by an outcome, or stores the outcome on a free key. Returns
    /// `false` if another token has claimed the key, or if the key has another outcome.
    ///
    /// # Errors
    /// If the store fails. The outcome may have been stored.
    fn finish(
        &self,
        key: &str,
        token: Token,
        outcome: Bytes,
        keep_for: Duration,
    ) -> impl Future<Output = Result<bool, BoxError>> + Send;

    /// Releases the claim of this token on the key, if there is one.
    ///
    /// # Errors
    /// If the store fails. The claim then expires.
    fn release(&self, key: &str, token: Token)
    -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Removes the outcome of the key if it equals this outcome.
    ///
    /// # Errors
    /// If the store fails.
    fn forget(
        &self,
        key: &str,
        outcome: Bytes,
    ) -> impl Future<Output = Result<(), BoxError>> + Send;
}

/// The result of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The token has claimed the key.
    Won,
    /// Another token has claimed the key.
    Taken,
    /// The key has this outcome.
    Finished(Bytes),
}

/// Identifies a claim. Each run of a message has a unique token. A token is displayed as a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(uuid::Uuid);

impl Token {
    /// Generates a unique token.
    #[allow(clippy::new_without_default)] // `default` would suggest that all new tokens are equal.
    pub fn new() -> Self {
        Self(uuid::Uuid::new_v4())
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
