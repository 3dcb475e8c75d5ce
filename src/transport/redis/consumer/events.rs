//! Receives events over one connection, and restores the subscriptions when the connection is lost.

use std::{sync::Arc, time::Duration};

use redis::RedisError;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::event_sink::{EventChannels, EventGaps, EventSink};
use crate::{
    error::Error,
    transport::redis::{
        connection::PubSub,
        error,
        server::{Connector, Outage},
    },
};

/// The longest wait for the server to confirm the subscriptions.
pub(super) const CONFIRMATION_LIMIT: Duration = Duration::from_secs(5);

/// The subscriptions of a source on a separate connection: to channels and patterns. Outside of a
/// cluster, where sharded channels need no connection to the owner of their slot, also to those.
pub(super) struct EventSubscriber {
    connector: Connector,
    channels: Arc<EventChannels>,
}

impl EventSubscriber {
    /// Makes a subscriber. `None` if there is nothing to subscribe to.
    pub(super) fn new(connector: Connector, channels: Arc<EventChannels>) -> Option<Self> {
        let sharded = !channels.sharded.is_empty() && !connector.is_cluster();
        let any = sharded || !channels.events.is_empty() || !channels.patterns.is_empty();
        any.then_some(Self {
            connector,
            channels,
        })
    }

    /// Subscribes to all channels and patterns, and waits for the server's confirmation.
    pub(super) async fn subscribe(&self) -> Result<PubSub, Error> {
        let mut connection = self.connector.pubsub().await?;
        let address = self.connector.address();
        let channels: Vec<_> = self.channels.events.keys().map(|name| &name[..]).collect();
        let patterns = self.channels.patterns.keys();
        let patterns: Vec<_> = patterns.map(|name| &name[..]).collect();
        let sharded = self.channels.sharded.keys();
        let sharded: Vec<_> = sharded.map(|name| &name[..]).collect();
        let subscribing = async {
            connection.subscribe(&channels, &patterns).await?;
            if !sharded.is_empty() && !self.connector.is_cluster() {
                connection.subscribe_sharded(&sharded).await?;
            }
            Ok(())
        };
        match timeout(CONFIRMATION_LIMIT, subscribing).await {
            Ok(Ok(())) => Ok(connection),
            Ok(Err(refusal)) => Err(error::subscription_refused(&address, refusal)),
            Err(_) => Err(error::unreachable(&address)),
        }
    }

    /// Hands events over until `closed` is cancelled, and reports gaps.
    pub(super) async fn run(
        self,
        first: PubSub,
        mut sink: EventSink,
        gaps: EventGaps,
        closed: CancellationToken,
    ) {
        let receive = async {
            let mut connection = first;
            let mut outage = Outage::default();
            loop {
                let reason = receive(connection, &mut sink).await;
                let lost = Instant::now();
                gaps.begin(1);
                let what = "the connection that brings events";
                outage.record_loss(&self.connector.address(), what, &reason);
                connection = self.resubscribe(&mut outage).await;
                gaps.end(1, lost.elapsed());
            }
        };
        tokio::select! {
            biased;
            () = receive => {}
            () = closed.cancelled() => {}
        }
    }

    /// Subscribes again, and retries until it succeeds.
    async fn resubscribe(&self, outage: &mut Outage) -> PubSub {
        loop {
            sleep(outage.delay()).await;
            match self.subscribe().await {
                Ok(connection) => {
                    outage.record_success();
                    return connection;
                }
                Err(error) => {
                    let what = "subscribe to the events";
                    outage.record_failed_attempt(&self.connector.address(), what, &error);
                }
            }
        }
    }
}

/// Receives until the connection is lost. Returns the error.
async fn receive(mut connection: PubSub, sink: &mut EventSink) -> RedisError {
    loop {
        match connection.next().await {
            Ok(event) => sink.hand_over(event, &mut connection),
            Err(reason) => return reason,
        }
    }
}
