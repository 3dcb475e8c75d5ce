//! A store in the memory of this process.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use campanile::BoxError;
use tokio::time::Instant;

use super::store::{Claim, Store, Token};
use crate::sync::lock;

/// A store in the memory of this process, for a single worker and for tests. It uses tokio's clock.
/// Clones share one store.
///
/// The store keeps at most [`max_outcomes`](Self::max_outcomes). When it is full, it removes the
/// outcome that expires soonest. It never removes a claim that has not expired.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    state: Arc<Mutex<MemoryState>>,
    max_outcomes: usize,
}

#[derive(Debug, Default)]
struct MemoryState {
    claims: HashMap<String, (Token, Instant)>,
    /// If there are more claims than this number, the next call removes the expired claims.
    max_claims_before_cleanup: usize,
    outcomes: HashMap<String, (Bytes, Expiry)>,
    /// The keys of the outcomes, ordered by expiry.
    keys_by_expiry: BTreeMap<Expiry, String>,
    /// The number of outcomes that were stored so far.
    stored_count: u64,
}

/// The time at which an outcome expires, and a serial number, which makes the pair unique.
type Expiry = (Instant, u64);

impl MemoryStore {
    /// Creates an empty store.
    #[allow(clippy::new_without_default)] // `default` would hide that each new store is separate.
    pub fn new() -> Self {
        Self {
            state: Arc::default(),
            max_outcomes: 100_000,
        }
    }

    /// Sets the maximum number of outcomes that are kept. 100,000 unless set.
    ///
    /// # Panics
    /// If `outcomes` is zero.
    #[must_use]
    #[track_caller]
    pub fn max_outcomes(mut self, outcomes: usize) -> Self {
        assert!(outcomes > 0, "a store must keep at least one outcome");
        self.max_outcomes = outcomes;
        self
    }

    /// Returns the current number of outcomes.
    pub fn outcomes(&self) -> usize {
        let mut state = lock(&self.state);
        state.remove_expired(Instant::now());
        state.outcomes.len()
    }
}

impl MemoryState {
    fn remove_expired(&mut self, now: Instant) {
        while let Some(first) = self.keys_by_expiry.first_entry()
            && first.key().0 <= now
        {
            self.outcomes.remove(&first.remove());
        }
        if self.claims.len() > self.max_claims_before_cleanup {
            self.claims.retain(|_, (_, until)| *until > now);
            self.max_claims_before_cleanup = (2 * self.claims.len()).max(1_000);
        }
    }

    /// Returns the token of the claim on this key, unless the claim has expired.
    fn claimed_by(&self, key: &str, now: Instant) -> Option<Token> {
        let (token, until) = self.claims.get(key)?;
        (*until > now).then_some(*token)
    }

    fn claim(&mut self, key: &str, token: Token, claim_for: Duration) -> Claim {
        let now = Instant::now();
        self.remove_expired(now);
        if let Some((outcome, _)) = self.outcomes.get(key) {
            return Claim::Finished(outcome.clone());
        }
        if self.claimed_by(key, now).is_some_and(|by| by != token) {
            return Claim::Taken;
        }
        self.claims
            .insert(key.to_owned(), (token, add_saturating(now, claim_for)));
        Claim::Won
    }

    fn finish(&mut self, key: &str, token: Token, outcome: Bytes, keep_for: Duration) -> bool {
        let now = Instant::now();
        self.remove_expired(now);
        if let Some((known, _)) = self.outcomes.get(key) {
            return *known == outcome;
        }
        if self.claimed_by(key, now).is_some_and(|by| by != token) {
            return false;
        }
        self.claims.remove(key);
        self.stored_count += 1;
        let expiry = (add_saturating(now, keep_for), self.stored_count);
        self.outcomes.insert(key.to_owned(), (outcome, expiry));
        self.keys_by_expiry.insert(expiry, key.to_owned());
        true
    }
}

/// Returns `now` plus `after`, or a century from now if the sum overflows.
fn add_saturating(now: Instant, after: Duration) -> Instant {
    let sum = now.checked_add(after);
    sum.unwrap_or_else(|| now + Duration::from_secs(3_155_760_000))
}

impl Store for MemoryStore {
    async fn claim(&self, key: &str, token: Token, claim_for: Duration) -> Result<Claim, BoxError> {
        Ok(lock(&self.state).claim(key, token, claim_for))
    }

    async fn renew(&self, key: &str, token: Token, claim_for: Duration) -> Result<bool, BoxError> {
        Ok(lock(&self.state).claim(key, token, claim_for) == Claim::Won)
    }

    async fn finish(
        &self,
        key: &str,
        token: Token,
        outcome: Bytes,
        keep_for: Duration,
    ) -> Result<bool, BoxError> {
        let mut state = lock(&self.state);
        let stored = state.finish(key, token, outcome, keep_for);
        while state.outcomes.len() > self.max_outcomes
            && let Some((_, first)) = state.keys_by_expiry.pop_first()
        {
            state.outcomes.remove(&first);
        }
        Ok(stored)
    }

    async fn release(&self, key: &str, token: Token) -> Result<(), BoxError> {
        let mut state = lock(&self.state);
        if state.claimed_by(key, Instant::now()) == Some(token) {
            state.claims.remove(key);
        }
        Ok(())
    }

    async fn forget(&self, key: &str, outcome: Bytes) -> Result<(), BoxError> {
        let mut state = lock(&self.state);
        if let Some((known, expiry)) = state.outcomes.get(key)
            && *known == outcome
        {
            let expiry = *expiry;
            state.keys_by_expiry.remove(&expiry);
            state.outcomes.remove(key);
        }
        Ok(())
    }
}
