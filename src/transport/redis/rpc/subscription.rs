//! Keeps a client subscribed to its reply channel.

use std::{sync::Arc, time::Duration};

use redis::RedisError;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{PendingRequests, Readiness};
use crate::{
    error::Error,
    transport::{
        Counters,
        redis::{connection::PubSub, error, server::Connector, server::Outage},
    },
};

/// The time limit for the server's confirmation of a subscription.
const CONFIRMATION_TIMEOUT: Duration = Duration::from_secs(5);

/// Keeps a client subscribed to its reply channel, and delivers the replies.
pub(super) struct Subscription {
    pub(super) connector: Connector,
    pub(super) channel: String,
    pub(super) pending: Arc<PendingRequests>,
    pub(super) counters: Arc<Counters>,
    pub(super) readiness: watch::Sender<Readiness>,
}

impl Subscription {
    /// Subscribes, and subscribes again after each failure or loss. Never returns.
    pub(super) async fn run(self) {
        let mut outage = Outage::default();
        // The state after a failed attempt: `No` before the first success, `Lost` after it.
        let mut failed_state = Readiness::No;
        loop {
            match self.subscribe().await {
                Ok(Ok(subscription)) => {
                    outage.record_success();
                    if matches!(failed_state, Readiness::Lost) {
                        self.counters.reconnects.increment();
                    }
                    failed_state = Readiness::Lost;
                    self.pending.mark_subscribed();
                    self.readiness.send_replace(Readiness::Yes);
                    let reason = self.listen(subscription).await;
                    self.readiness.send_replace(Readiness::Lost);
                    self.pending.mark_unsubscribed();
                    outage.record_loss(
                        &self.connector.address(),
                        "the subscription for replies",
                        &reason,
                    );
                }
                Ok(Err(refusal)) => {
                    let error = error::replies_refused(refusal.clone());
                    outage.record_failed_attempt(
                        &self.connector.address(),
                        "subscribe for replies",
                        &error,
                    );
                    self.readiness.send_replace(Readiness::Refused(refusal));
                }
                Err(error) => {
                    outage.record_failed_attempt(
                        &self.connector.address(),
                        "subscribe for replies",
                        &error,
                    );
                    self.readiness.send_replace(failed_state.clone());
                }
            }
            sleep(outage.delay()).await;
        }
    }

    /// Makes one attempt to subscribe. The inner error is the server's refusal. The outer error is
    /// a failed connection or a missing confirmation.
    async fn subscribe(&self) -> Result<Result<PubSub, RedisError>, Error> {
        let mut pubsub = self.connector.pubsub().await?;
        match timeout(
            CONFIRMATION_TIMEOUT,
            pubsub.subscribe(&[self.channel.as_bytes()], &[]),
        )
        .await
        {
            Ok(Ok(())) => Ok(Ok(pubsub)),
            // A transient error, such as `LOADING`, is not a refusal. It is handled like a lost
            // connection.
            Ok(Err(refusal))
                if refusal
                    .code()
                    .is_some_and(|code| !error::is_transient_code(code)) =>
            {
                Ok(Err(refusal))
            }
            Ok(Err(error)) => {
                Err(Error::disconnected("the subscription failed").with_source(error))
            }
            Err(_) => Err(Error::disconnected("the subscription was not confirmed")),
        }
    }

    /// Delivers replies until the connection is lost. Returns the cause.
    async fn listen(&self, mut subscription: PubSub) -> RedisError {
        loop {
            match subscription.next().await {
                Ok(reply) => self.pending.resolve(&reply.payload),
                Err(error) => return error,
            }
        }
    }
}
