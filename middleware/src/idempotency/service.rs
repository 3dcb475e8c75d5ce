//! The service of the idempotency layer, and its future.

use std::{
    fmt,
    future::{Future, pending},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use campanile::{BoxError, Message, MessageService, Reply};
use tokio::{
    runtime::Handle,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tower::{Service, ServiceExt};

use super::{
    IdempotencyConfig, IdempotencyLayer, InProgress, Outcome, StoreDown, StoreFailed,
    record::{self, StoredOutcome},
    store::{Claim, Store, Token},
};
use crate::key::{ById, KeyOf, MessageIdentity};

/// A service that runs a message once, and not its duplicates. See the [module](super).
#[derive(Debug, Clone)]
pub struct Idempotency<S, St, K> {
    inner: S,
    layer: IdempotencyLayer<St, K>,
}

impl<S, St: Store> Idempotency<S, St, ById> {
    /// Wraps a service, as [`IdempotencyLayer::new`] does.
    pub fn new(inner: S, store: St) -> Self {
        Self::with_layer(inner, IdempotencyLayer::new(store))
    }
}

impl<S, St, K> Idempotency<S, St, K> {
    pub(super) const fn with_layer(inner: S, layer: IdempotencyLayer<St, K>) -> Self {
        Self { inner, layer }
    }
}

inner_accessors!(Idempotency<S, St, K>);

impl<S, St, K> Service<Message> for Idempotency<S, St, K>
where
    S: MessageService + Clone + Send + 'static,
    St: Store,
    K: KeyOf,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = IdempotencyFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, message: Message) -> IdempotencyFuture {
        let clone = self.inner.clone();
        let service = std::mem::replace(&mut self.inner, clone);
        let key = self.layer.keys.of(&message);
        let (store, config) = (self.layer.store.clone(), self.layer.config);
        let suppressed = self.layer.suppressed.clone();
        IdempotencyFuture(Box::pin(async move {
            match key? {
                None => service.oneshot(message).await.map_err(Into::into),
                Some(key) => {
                    // A name may contain colons. The length before the name keeps the text
                    // unambiguous.
                    let (kind, name) = (message.kind(), message.name());
                    let key = format!("{kind}:{}:{name}:{key}", name.len());
                    let call = KeyedCall {
                        store,
                        config,
                        key,
                        suppressed,
                    };
                    call.run(service, message).await
                }
            }
        }))
    }
}

/// The future of [`Idempotency`].
#[must_use = "futures do nothing unless polled"]
// Boxed, because the futures of a store cannot be named.
pub struct IdempotencyFuture(Pin<Box<dyn Future<Output = Outcome> + Send>>);

impl Future for IdempotencyFuture {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for IdempotencyFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyFuture").finish_non_exhaustive()
    }
}

/// A call with a message that has a key.
struct KeyedCall<St: Store> {
    store: St,
    config: IdempotencyConfig,
    key: String,
    suppressed: Arc<AtomicU64>,
}

impl<St: Store> KeyedCall<St> {
    async fn run<S>(self, service: S, message: Message) -> Outcome
    where
        S: MessageService,
    {
        let token = Token::new();
        match self.claim(token, &message).await {
            Ok(ClaimResult::Won) => {
                let claim = HeldClaim {
                    call: self,
                    token,
                    is_finished: false,
                };
                claim.run(service, message).await
            }
            Ok(ClaimResult::Taken) => Err(InProgress::error(self.config.retry_after)),
            Ok(ClaimResult::Stored(outcome)) => {
                self.suppressed.fetch_add(1, Ordering::Relaxed);
                let parts = message.parts();
                // Does not log the key, which may be a secret.
                tracing::debug!(
                    kind = %parts.kind,
                    name = %parts.name,
                    stream = parts.stream.as_deref(),
                    group = parts.group.as_deref(),
                    id = parts.id.as_deref(),
                    "the message was not run: the outcome for its idempotency key is stored"
                );
                outcome
            }
            Err(error) => match self.config.store_down {
                StoreDown::Fail => Err(StoreFailed::error(error)),
                StoreDown::Run => {
                    tracing::warn!(%error, "the idempotency store failed: the message runs without a claim");
                    service.oneshot(message).await.map_err(Into::into)
                }
            },
        }
    }

    async fn claim(&self, token: Token, message: &Message) -> Result<ClaimResult, BoxError> {
        let identity = MessageIdentity::of(message.parts());
        let claim = self.store.claim(&self.key, token, self.config.claim_for);
        let stored = match claim.await? {
            Claim::Won => return Ok(ClaimResult::Won),
            Claim::Taken => return Ok(ClaimResult::Taken),
            Claim::Finished(stored) => stored,
        };
        if let StoredOutcome::Repeat(outcome) = record::decode(&stored, identity.as_ref())? {
            return Ok(ClaimResult::Stored(outcome));
        }
        // The message was replayed from the dead letters, and the stored failure is from its
        // earlier run. The message runs again if it can claim the key.
        self.store.forget(&self.key, stored).await?;
        let claim = self.store.claim(&self.key, token, self.config.claim_for);
        Ok(match claim.await? {
            Claim::Won => ClaimResult::Won,
            // Another worker claimed the key first. The next delivery of this message gets the
            // outcome of that worker.
            Claim::Taken | Claim::Finished(_) => ClaimResult::Taken,
        })
    }
}

enum ClaimResult {
    Won,
    Taken,
    /// The message gets this stored outcome.
    Stored(Outcome),
}

/// A claim on a key. Dropping this value releases the claim.
struct HeldClaim<St: Store> {
    call: KeyedCall<St>,
    token: Token,
    /// Set after the attempt to store the outcome or to release the claim, even if the attempt
    /// failed. If this is set, dropping the value does nothing.
    is_finished: bool,
}

impl<St: Store> HeldClaim<St> {
    async fn run<S>(mut self, service: S, message: Message) -> Outcome
    where
        S: MessageService,
    {
        let kind = message.kind();
        let identity = MessageIdentity::of(message.parts());
        let outcome: Outcome = {
            let work = pin!(service.oneshot(message));
            tokio::select! {
                biased;
                outcome = work => outcome.map_err(Into::into),
                never = self.renew() => match never {},
            }
        };
        self.finish(record::encode(
            kind,
            identity.as_ref(),
            &outcome,
            self.call.config.remember,
        ))
        .await;
        outcome
    }

    /// Renews the claim until this future is dropped.
    async fn renew(&self) -> std::convert::Infallible {
        let KeyedCall {
            store, config, key, ..
        } = &self.call;
        let period = (config.claim_for / 3).min(Duration::from_secs(3_155_760_000));
        let mut ticks = interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match store.renew(key, self.token, config.claim_for).await {
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!(
                        "an idempotency claim was lost: another message with its key may run"
                    );
                    pending::<()>().await;
                }
                Err(error) => {
                    tracing::warn!(%error, "an idempotency claim could not be renewed; retrying");
                }
            }
        }
    }

    /// Stores the outcome. Releases the claim instead if `record` is `None`.
    async fn finish(&mut self, record: Option<bytes::Bytes>) {
        let KeyedCall {
            store, config, key, ..
        } = &self.call;
        let stored = match record {
            Some(record) => store.finish(key, self.token, record, config.keep_for).await,
            None => store.release(key, self.token).await.map(|()| true),
        };
        self.is_finished = true;
        match stored {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!("an outcome was not stored: another message has claimed its key")
            }
            Err(error) => {
                tracing::warn!(%error, "an outcome could not be stored: a duplicate would run again")
            }
        }
    }
}

impl<St: Store> Drop for HeldClaim<St> {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        // Without a runtime the claim cannot be released, and expires.
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let (store, key) = (self.call.store.clone(), std::mem::take(&mut self.call.key));
        let token = self.token;
        runtime.spawn(async move {
            if let Err(error) = store.release(&key, token).await {
                tracing::debug!(%error, "an idempotency claim could not be released; it will expire");
            }
        });
    }
}
