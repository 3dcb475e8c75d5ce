//! The service, and its future.

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

use campanile::{BoxError, Message, Reply};
use tokio::{
    runtime::Handle,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tower::{Service, ServiceExt};

use super::{
    IdempotencyLayer, InProgress, Outcome, Rules, StoreDown, StoreFailed,
    record::{self, Stored},
    store::{Claim, Store, Token},
};
use crate::key::{Identity, KeyOf};

/// A service that runs what comes twice once. See the [module](super).
#[derive(Debug, Clone)]
pub struct Idempotency<S, St, K> {
    inner: S,
    layer: IdempotencyLayer<St, K>,
}

impl<S, St, K> Idempotency<S, St, K> {
    pub(super) fn new(inner: S, layer: IdempotencyLayer<St, K>) -> Self {
        Self { inner, layer }
    }
}

impl<S, St, K> Service<Message> for Idempotency<S, St, K>
where
    S: Service<Message, Response = Reply, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static,
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
        let (store, rules) = (self.layer.store.clone(), self.layer.rules);
        let suppressed = self.layer.suppressed.clone();
        IdempotencyFuture(Box::pin(async move {
            match key? {
                None => service.oneshot(message).await.map_err(Into::into),
                Some(key) => {
                    // With the name's length, since a name and a key may have any character.
                    let (kind, name) = (message.kind(), message.name());
                    let key = format!("{kind}:{}:{name}:{key}", name.len());
                    let once = Once {
                        store,
                        rules,
                        key,
                        suppressed,
                    };
                    once.run(service, message).await
                }
            }
        }))
    }
}

/// The future of [`Idempotency`].
#[must_use = "futures do nothing unless polled"]
// Boxed, since a store's futures have no names.
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

/// One message with a key.
struct Once<St: Store> {
    store: St,
    rules: Rules,
    key: String,
    suppressed: Arc<AtomicU64>,
}

impl<St: Store> Once<St> {
    async fn run<S>(self, service: S, message: Message) -> Outcome
    where
        S: Service<Message, Response = Reply, Error: Into<BoxError>>,
    {
        let token = Token::new();
        match self.claim(token, &message).await {
            Ok(Claimed::Won) => {
                let held = Held {
                    once: self,
                    token,
                    ended: false,
                };
                held.run(service, message).await
            }
            Ok(Claimed::Taken) => Err(InProgress::error(self.rules.retry_after)),
            Ok(Claimed::Ended(outcome)) => {
                self.suppressed.fetch_add(1, Ordering::Relaxed);
                let parts = message.parts();
                // Without the key, which may be a secret.
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
            Err(error) => match self.rules.store_down {
                StoreDown::Fail => Err(StoreFailed::error(error)),
                StoreDown::Run => {
                    tracing::warn!(%error, "the idempotency store failed; running without a guard");
                    service.oneshot(message).await.map_err(Into::into)
                }
            },
        }
    }

    async fn claim(&self, token: Token, message: &Message) -> Result<Claimed, BoxError> {
        let identity = Identity::of(message.parts());
        let claim = self.store.claim(&self.key, token, self.rules.claim_for);
        let stored = match claim.await? {
            Claim::Won => return Ok(Claimed::Won),
            Claim::Taken => return Ok(Claimed::Taken),
            Claim::Finished(stored) => stored,
        };
        if let Stored::Repeat(outcome) = record::decode(&stored, identity.as_ref())? {
            return Ok(Claimed::Ended(outcome));
        }
        self.store.forget(&self.key, stored).await?;
        let claim = self.store.claim(&self.key, token, self.rules.claim_for);
        Ok(match claim.await? {
            Claim::Won => Claimed::Won,
            // Somebody else was faster; what came of that is for the next delivery.
            Claim::Taken | Claim::Finished(_) => Claimed::Taken,
        })
    }
}

enum Claimed {
    Won,
    Taken,
    Ended(Outcome),
}

/// A claim that is held. Dropping it gives the claim up.
struct Held<St: Store> {
    once: Once<St>,
    token: Token,
    ended: bool,
}

impl<St: Store> Held<St> {
    async fn run<S>(mut self, service: S, message: Message) -> Outcome
    where
        S: Service<Message, Response = Reply, Error: Into<BoxError>>,
    {
        let kind = message.kind();
        let identity = Identity::of(message.parts());
        let outcome: Outcome = {
            let work = pin!(service.oneshot(message));
            tokio::select! {
                biased;
                outcome = work => outcome.map_err(Into::into),
                never = self.renew() => match never {},
            }
        };
        self.end(record::encode(
            kind,
            identity.as_ref(),
            &outcome,
            self.once.rules.remember,
        ))
        .await;
        outcome
    }

    /// Renews the claim for as long as it is polled.
    async fn renew(&self) -> std::convert::Infallible {
        let Once {
            store, rules, key, ..
        } = &self.once;
        let third = (rules.claim_for / 3).min(Duration::from_secs(3_155_760_000));
        let mut ticks = interval_at(Instant::now() + third, third);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match store.renew(key, self.token, rules.claim_for).await {
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!("an idempotency claim was lost: another may run");
                    pending::<()>().await;
                }
                Err(error) => {
                    tracing::warn!(%error, "an idempotency claim could not be renewed; trying again");
                }
            }
        }
    }

    async fn end(&mut self, record: Option<bytes::Bytes>) {
        let Once {
            store, rules, key, ..
        } = &self.once;
        let stored = match record {
            Some(record) => store.finish(key, self.token, record, rules.keep_for).await,
            None => store.release(key, self.token).await.map(|()| true),
        };
        self.ended = true;
        match stored {
            Ok(true) => {}
            Ok(false) => tracing::warn!("an outcome was not stored: another has the key"),
            Err(error) => tracing::warn!(%error, "an outcome could not be stored"),
        }
    }
}

impl<St: Store> Drop for Held<St> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // Without a runtime the claim runs out.
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let (store, key) = (self.once.store.clone(), std::mem::take(&mut self.once.key));
        let token = self.token;
        runtime.spawn(async move {
            if let Err(error) = store.release(&key, token).await {
                tracing::debug!(%error, "an idempotency claim could not be given up; it runs out");
            }
        });
    }
}
