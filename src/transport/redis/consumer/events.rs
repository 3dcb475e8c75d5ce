//! Events: subscriptions that are restored when their connection is lost.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::FutureExt;
use redis::RedisError;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::transport::redis::{
    connection::{PubSub, Published, copy_if_small},
    error,
    server::Connector,
    server::Outage,
};
use crate::{
    error::{Error, ErrorKind},
    message::{Kind, Message, Name, Parts},
    transport::{Counters, Interest, glob},
};

/// The longest wait for the server to confirm the subscriptions.
const CONFIRMATION: Duration = Duration::from_secs(5);
/// The most events that are handed over at once.
const BATCH: usize = 256;
/// The shortest time between two warnings about dropped events.
const WARNING: Duration = Duration::from_secs(5);

/// The subscriptions of a source, on a separate connection.
pub(super) struct EventSubscriber {
    connector: Connector,
    counters: Arc<Counters>,
    /// The prefix of every channel.
    prefix: Name,
    /// Event names by channel.
    events: HashMap<Vec<u8>, Name>,
    /// Patterns of event names by channel pattern.
    patterns: HashMap<Vec<u8>, Name>,
    /// Events that are handed over next.
    batch: Vec<Message>,
    /// The number of dropped events that no warning has reported yet.
    dropped: usize,
    /// The time of the last warning about dropped events.
    warned: Option<Instant>,
}

impl EventSubscriber {
    pub(super) fn new(
        connector: Connector,
        counters: Arc<Counters>,
        interest: &Interest,
        prefix: Name,
    ) -> Self {
        let after = |prefix: &str, names: &[Name]| -> HashMap<_, _> {
            let with_channel = |name: &Name| (format!("{prefix}{name}").into_bytes(), name.clone());
            names.iter().map(with_channel).collect()
        };
        Self {
            connector,
            counters,
            events: after(&prefix, &interest.events),
            patterns: after(&glob::escape(&prefix), &interest.patterns),
            prefix,
            batch: Vec::new(),
            dropped: 0,
            warned: None,
        }
    }

    /// Subscribes to all channels and patterns, and waits for the server's confirmation.
    pub(super) async fn subscribe(&self) -> Result<PubSub, Error> {
        let mut connection = self.connector.pubsub().await?;
        let channels: Vec<_> = self.events.keys().map(|name| &name[..]).collect();
        let patterns: Vec<_> = self.patterns.keys().map(|name| &name[..]).collect();
        let subscribing = connection.subscribe(&channels, &patterns);
        match timeout(CONFIRMATION, subscribing).await {
            Ok(Ok(())) => Ok(connection),
            Ok(Err(refusal)) => Err(self.refused(refusal)),
            Err(_) => Err(error::unreachable(&self.connector.address())),
        }
    }

    fn refused(&self, refusal: RedisError) -> Error {
        if refusal.code() == Some("NOPERM") {
            let message = "the Redis user may not subscribe to the events that the application \
                           listens to; grant their channels with `ACL SETUSER <user> \
                           &<channel or pattern>` and the commands with `+@pubsub`";
            return Error::new(ErrorKind::Refused, message).with_source(refusal);
        }
        error::unanswered(&self.connector.address()).with_source(refusal)
    }

    /// Passes events to `offer` until `closed`. Reading never waits: events that `offer` leaves in
    /// the list are dropped and counted. Calls `gap` with `None` when the subscriptions are lost,
    /// and with the length of the gap when they are restored.
    pub(super) async fn run(
        mut self,
        first: PubSub,
        closed: CancellationToken,
        offer: impl Fn(&mut Vec<Message>) + Send,
        gap: impl Fn(Option<Duration>) + Send,
    ) {
        let receive = async {
            let mut connection = first;
            let mut outage = Outage::default();
            loop {
                let reason = self.receive(connection, &offer).await;
                let lost = Instant::now();
                gap(None);
                let what = "the connection that brings events";
                outage.lost(&self.connector.address(), what, &reason);
                connection = self.again(&mut outage).await;
                self.counters.reconnects.increment();
                let missed = lost.elapsed();
                tracing::warn!(
                    gap = ?missed,
                    "subscribed to the events again; those published in between are lost"
                );
                gap(Some(missed));
            }
        };
        tokio::select! {
            () = receive => {}
            () = closed.cancelled() => {}
        }
    }

    /// Subscribes again, and retries until it succeeds.
    async fn again(&self, outage: &mut Outage) -> PubSub {
        loop {
            sleep(outage.wait()).await;
            match self.subscribe().await {
                Ok(connection) => {
                    outage.answered();
                    return connection;
                }
                Err(error) => {
                    let what = "subscribe to the events";
                    outage.refused(&self.connector.address(), what, &error);
                }
            }
        }
    }

    /// Receives until the connection is lost. Returns the error.
    async fn receive(
        &mut self,
        mut connection: PubSub,
        offer: &impl Fn(&mut Vec<Message>),
    ) -> RedisError {
        loop {
            match connection.next().await {
                Ok(event) => self.events(event, &mut connection, offer),
                Err(reason) => return reason,
            }
        }
    }

    /// Hands over this event together with the events already received, since each hand-over wakes
    /// the receiving task once.
    fn events(
        &mut self,
        first: Published,
        connection: &mut PubSub,
        offer: &impl Fn(&mut Vec<Message>),
    ) {
        let mut next = Some(first);
        while let Some(event) = next {
            self.batch.push(self.message(event));
            let more = self.batch.len() < BATCH;
            // A connection's error is repeated by the next call, so it may be dropped here.
            next = more
                .then(|| connection.next().now_or_never())
                .flatten()
                .and_then(Result::ok);
        }
        self.counters.events.add(self.batch.len() as u64);
        offer(&mut self.batch);
        if !self.batch.is_empty() {
            self.counters.events_dropped.add(self.batch.len() as u64);
            self.dropped += self.batch.len();
            self.batch.clear();
            if self.warned.is_none_or(|last| last.elapsed() >= WARNING) {
                self.warned = Some(Instant::now());
                let events = std::mem::take(&mut self.dropped);
                tracing::warn!(events, "dropped events: more came than are handled");
            }
        }
    }

    fn message(&self, event: Published) -> Message {
        // A pattern matches channels with any bytes, so the name may not be UTF-8.
        let known = (event.pattern.is_none()).then(|| self.events.get(&event.channel[..]));
        let name = match known.flatten() {
            Some(name) => name.clone(),
            None => {
                let name = event.channel.strip_prefix(self.prefix.as_bytes());
                Name::from(String::from_utf8_lossy(name.unwrap_or(&event.channel)).as_ref())
            }
        };
        let mut parts = Parts::new(Kind::Event, name);
        if let Some(pattern) = event.pattern {
            parts.pattern = self.patterns.get(&pattern[..]).cloned();
        }
        let mut payload = event.payload;
        copy_if_small(&mut payload);
        Message::from_parts(parts, payload)
    }
}
