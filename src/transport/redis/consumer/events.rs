//! Events: subscriptions that outlive their connections.

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

/// How long the server may take to confirm the subscriptions.
const CONFIRMATION: Duration = Duration::from_secs(5);
/// How many events are handed over at once at most.
const BATCH: usize = 256;
/// How often at most a warning about dropped events is logged.
const WARNING: Duration = Duration::from_secs(5);

/// The subscriptions of a source, on a connection of their own.
pub(super) struct Subscriber {
    connector: Connector,
    counters: Arc<Counters>,
    /// What every channel starts with.
    prefix: Name,
    /// Names by their channels.
    events: HashMap<Vec<u8>, Name>,
    /// Patterns of names by those of their channels.
    patterns: HashMap<Vec<u8>, Name>,
    /// What is about to be handed over.
    batch: Vec<Message>,
    dropped: usize,
    warned: Option<Instant>,
}

impl Subscriber {
    pub(super) fn new(
        connector: Connector,
        counters: Arc<Counters>,
        interest: &Interest,
        prefix: &Name,
    ) -> Self {
        let after = |prefix: &str, names: &[Name]| -> HashMap<_, _> {
            let with_channel = |name: &Name| (format!("{prefix}{name}").into_bytes(), name.clone());
            names.iter().map(with_channel).collect()
        };
        Self {
            connector,
            counters,
            prefix: prefix.clone(),
            events: after(prefix, &interest.events),
            patterns: after(&glob::escape(prefix), &interest.patterns),
            batch: Vec::new(),
            dropped: 0,
            warned: None,
        }
    }

    /// Subscribes to everything, and returns when the server has confirmed it.
    pub(super) async fn subscribe(&self) -> Result<PubSub, Error> {
        let mut connection = self.connector.pubsub().await?;
        let channels: Vec<_> = self.events.keys().map(|name| &name[..]).collect();
        let patterns: Vec<_> = self.patterns.keys().map(|name| &name[..]).collect();
        let subscribing = connection.subscribe(&channels, &patterns);
        match timeout(CONFIRMATION, subscribing).await {
            Ok(Ok(())) => Ok(connection),
            Ok(Err(refusal)) => Err(self.refused(refusal)),
            Err(_) => Err(error::unreachable(self.connector.address())),
        }
    }

    fn refused(&self, refusal: RedisError) -> Error {
        if refusal.code() == Some("NOPERM") {
            let message = "the Redis user may not subscribe to the events that the application \
                           listens to; grant their channels with `ACL SETUSER <user> \
                           &<channel or pattern>` and the commands with `+@pubsub`";
            return Error::new(ErrorKind::Refused, message).with_source(refusal);
        }
        error::unanswered(self.connector.address()).with_source(refusal)
    }

    /// Hands every event to `offer`, until `closed`. Reading never waits: what `offer` does not
    /// take out of the list is dropped and counted. `gap` is told when the subscriptions are lost, and for how long
    /// they were when they are there again.
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
                outage.lost(self.connector.address(), what, &reason);
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

    /// Subscribes again, however long it takes.
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
                    outage.refused(self.connector.address(), what, &error);
                }
            }
        }
    }

    /// Receives until the connection is lost, and says why it is.
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

    /// Hands over this event and those that have come with it: to wake whoever waits for them costs
    /// as much for many as for one.
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
            // What is wrong with the connection is said again to whoever asks next.
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
        // What comes by a pattern may have any name, be it no text.
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
