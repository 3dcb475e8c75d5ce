//! Where claims and outcomes are.

use std::{fmt, future::Future, time::Duration};

use bytes::Bytes;
use campanile::BoxError;

/// Where claims and outcomes are kept: [`MemoryStore`](super::MemoryStore), `RedisStore`, or one of
/// your own.
///
/// A key is free, claimed by one token until a time, or has an outcome until a time. Each method is
/// one atomic step. Each may be called again with the same arguments, after an error or a lost
/// answer, and then changes nothing more. A method fails rather than hang: whoever calls it sets no
/// time limit.
pub trait Store: Clone + Send + Sync + 'static {
    /// Claims a free key, or one that this token has claimed before, for this long from now.
    ///
    /// # Errors
    /// When the store cannot tell.
    fn claim(
        &self,
        key: &str,
        token: Token,
        claim_for: Duration,
    ) -> impl Future<Output = Result<Claim, BoxError>> + Send;

    /// Makes a claim last for this long from now. A key that has become free is claimed again.
    /// `false` where somebody else has it.
    ///
    /// # Errors
    /// When the store cannot tell.
    fn renew(
        &self,
        key: &str,
        token: Token,
        claim_for: Duration,
    ) -> impl Future<Output = Result<bool, BoxError>> + Send;

    /// Stores the outcome in place of the claim, or on a free key. `false` where somebody else has
    /// the key, or it has an outcome already.
    ///
    /// # Errors
    /// When the store cannot tell whether it was stored.
    fn finish(
        &self,
        key: &str,
        token: Token,
        outcome: Bytes,
        keep_for: Duration,
    ) -> impl Future<Output = Result<bool, BoxError>> + Send;

    /// Gives a claim up. Nothing happens where the token has none.
    ///
    /// # Errors
    /// When the store cannot tell; the claim then runs out.
    fn release(&self, key: &str, token: Token)
    -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Makes a key free that has this outcome. Nothing happens where it has another or none.
    ///
    /// # Errors
    /// When the store cannot tell.
    fn forget(
        &self,
        key: &str,
        outcome: Bytes,
    ) -> impl Future<Output = Result<(), BoxError>> + Send;
}

/// What came of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The key is the caller's.
    Won,
    /// Somebody else has it.
    Taken,
    /// It has this outcome.
    Finished(Bytes),
}

/// Who claims: unique for each run of a message. As text it is a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(uuid::Uuid);

impl Token {
    /// One that nobody has.
    #[allow(clippy::new_without_default)] // Two are never the same.
    pub fn new() -> Self {
        Self(uuid::Uuid::new_v4())
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
