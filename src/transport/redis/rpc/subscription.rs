//! The one subscription of a client, kept up.

use std::{sync::Arc, time::Duration};

use redis::RedisError;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{Pending, Ready};
use crate::{
    error::Error,
    transport::{
        Counters,
        redis::{
            connect::{BACKOFF, Connector},
            line::PubSub,
        },
    },
};

/// How long the server may take to confirm a subscription.
const CONFIRMATION: Duration = Duration::from_secs(5);

pub(super) struct Subscription {
    pub(super) connector: Connector,
    pub(super) channel: String,
    pub(super) pending: Arc<Pending>,
    pub(super) counters: Arc<Counters>,
    pub(super) ready: watch::Sender<Ready>,
}

impl Subscription {
    /// Stays subscribed, until it is dropped.
    pub(super) async fn run(self) {
        let mut failures = 0;
        let mut down = Ready::No;
        loop {
            match self.subscribe().await {
                Ok(Ok(subscription)) => {
                    failures = 0;
                    if matches!(down, Ready::Lost) {
                        self.counters.reconnects.increment();
                    }
                    down = Ready::Lost;
                    self.pending.subscribed();
                    self.ready.send_replace(Ready::Yes);
                    let reason = self.listen(subscription).await;
                    self.ready.send_replace(Ready::Lost);
                    self.pending.unsubscribed();
                    tracing::warn!(
                        address = self.connector.address(),
                        %reason,
                        "lost the subscription for replies"
                    );
                }
                Ok(Err(refusal)) => {
                    tracing::debug!(error = %refusal, "may not subscribe for replies");
                    self.ready.send_replace(Ready::Refused(refusal));
                }
                Err(error) => {
                    tracing::debug!(error = error.chain(), "cannot subscribe for replies");
                    self.ready.send_replace(down.clone());
                }
            }
            failures += 1;
            sleep(BACKOFF.after(failures)).await;
        }
    }

    /// A subscription that the server has confirmed, or its refusal.
    async fn subscribe(&self) -> Result<Result<PubSub, RedisError>, Error> {
        let mut pubsub = self.connector.pubsub().await?;
        match timeout(
            CONFIRMATION,
            pubsub.subscribe(&[self.channel.as_bytes()], &[]),
        )
        .await
        {
            Ok(Ok(())) => Ok(Ok(pubsub)),
            Ok(Err(refusal)) if refusal.code().is_some() => Ok(Err(refusal)),
            Ok(Err(error)) => {
                Err(Error::disconnected("the subscription failed").with_source(error))
            }
            Err(_) => Err(Error::disconnected("the subscription was not confirmed")),
        }
    }

    /// Hands out replies until the connection is lost, and says why it is.
    async fn listen(&self, mut subscription: PubSub) -> RedisError {
        loop {
            match subscription.next().await {
                Ok(reply) => self.pending.resolve(&reply.payload),
                Err(error) => return error,
            }
        }
    }
}
