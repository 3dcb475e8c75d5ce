//! The serving half: a consumer of the group, and a subscriber of the events.
//!
//! A [`RedisSource`] reads the group's stream and the group's own retry stream, on a connection of
//! its own, and no more than it is asked for. What it fetched it holds under a lease, which a
//! thread of its own renews until the delivery is settled; a worker that is gone stops to renew,
//! and another takes its deliveries over.
//!
//! # Cancel safety
//! A read is never broken off, since it may have taken entries: `next` asks a task for deliveries,
//! and what comes after it was dropped is kept for the next call or given back.
//!
//! # Delivery guarantee
//! Whatever happens to a delivery is one atomic step on the server, fenced by who it is pending
//! for, so a verdict that comes late or twice changes nothing. Only that it is done is not fenced: the
//! first to finish wins, and answers.

mod acks;
mod answer;
mod clock;
mod deliver;
pub(super) mod events;
mod held;
mod inbox;
mod join;
mod keeper;
mod queued;
mod reader;
#[cfg(any(test, fuzzing))]
pub(super) mod readers;
mod replies;
mod riders;
mod settle;
mod take_over;
mod worker;

use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock, Weak, atomic::Ordering},
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

pub use self::settle::RedisSettle;
pub(super) use self::worker::CONSUMER_PREFIX;
use self::{clock::Clock, inbox::Inbox, reader::Reader, worker::Worker};
use super::{
    Redis,
    consumer::events::Subscriber,
    entry::{self, EntryId},
    error,
    ids::unique,
    keys::Keys,
    pipeline::{Pipeline, Retry},
    rpc::Hub,
    scripts,
    server::Outage,
    state::Heart,
};
use crate::{
    error::Error,
    transport::{Delivery, Interest, Settings, Source, Transport},
};

/// How often a blocked read is asked to end.
const UNBLOCK: Duration = Duration::from_millis(20);

/// The deliveries of one consumer on Redis. [`Redis`] opens it.
pub struct RedisSource {
    worker: Arc<Worker>,
    /// The requests of the handle that it was opened with. They end with the handle's last clone,
    /// which this is not.
    rpc: Weak<OnceLock<Arc<Hub>>>,
    /// Whether anything is read from the stream.
    reads: bool,
    reader: Option<JoinHandle<()>>,
    /// Ends what runs beside the source when it is dropped, closed or not.
    _closing: Closing,
}

impl Transport for Redis {
    type Source = RedisSource;

    /// Waits for a server that is away, not ready, or takes no writes, and logs the cause as a
    /// warning every few seconds. What does not pass is an error at once: a wrong password, a missing
    /// right, a key of another type.
    async fn open(self, interest: Interest) -> Result<RedisSource, Error> {
        let keys = Keys::new(&self.settings.stream, &self.settings.group)?;
        // One name for all attempts: each may leave its consumer in the group.
        let consumer = consumer(self.settings.lease);
        let mut outage = Outage::default();
        loop {
            let attempt = self
                .clone()
                .attempt(&interest, keys.clone(), consumer.clone());
            match attempt.await {
                Err(error) if error::is_temporary(&error) => {
                    let address = self.shared.connector.address();
                    outage.refused(address, "begin to serve", &error);
                    tokio::time::sleep(outage.wait()).await;
                }
                opened => return opened,
            }
        }
    }
}

impl Redis {
    /// Opens a source, if the server is ready for it.
    async fn attempt(
        self,
        interest: &Interest,
        keys: Keys,
        consumer: String,
    ) -> Result<RedisSource, Error> {
        let connector = self.shared.connector.clone();
        let counters = self.shared.counters.clone();
        let first = connector.checked().await?;
        let pipeline = Pipeline::spawn(connector.clone(), Some(first), counters.clone());
        let time = pipeline.command(redis::cmd("TIME"), Retry::Never).await?;
        let (acks, queue) = mpsc::unbounded_channel();
        let (replies, stored) = mpsc::unbounded_channel();
        let worker = Arc::new(Worker {
            inbox: Inbox::new(self.settings.event_buffer),
            platform: Default::default(),
            settings: self.settings,
            options: self.options,
            keys,
            consumer,
            counters: counters.clone(),
            connector: connector.clone(),
            pipeline,
            clock: Clock::new(time)?,
            held: Default::default(),
            acks,
            replies,
            flights: Default::default(),
            health: Default::default(),
            alarm: Default::default(),
            suspect: Default::default(),
            blocked: Default::default(),
            reads: interest.stream,
            reading: Default::default(),
            delivered: Mutex::new(EntryId::ZERO),
            dropped: Default::default(),
            without_writes: Default::default(),
            deaf: Default::default(),
            leaving: Default::default(),
            upkeep_ended: Default::default(),
            closed: Default::default(),
        });
        let closing = Closing(worker.clone());
        let heart: Weak<dyn Heart> = Arc::<Worker>::downgrade(&worker);
        self.shared.hearts.add(heart);
        if !interest.events.is_empty() || !interest.patterns.is_empty() {
            let prefix = &worker.options.event_prefix;
            let subscriber = Subscriber::new(connector, counters, interest, prefix);
            let first = subscriber.subscribe().await?;
            let closed = worker.closed.clone();
            let worker = worker.clone();
            let hearing = worker.clone();
            let offer = move |events: &mut Vec<_>| worker.inbox.offer(events);
            let gap = move |gap: Option<Duration>| {
                hearing.deaf.store(gap.is_none(), Ordering::Relaxed);
                if let Some(gap) = gap {
                    hearing.options.on_event_gap.call(gap);
                }
            };
            tokio::spawn(subscriber.run(first, closed, offer, gap));
        }
        let mut reader = None;
        // Without a reader there is nothing to be asked of the stream.
        worker.inbox.set_reading(!interest.stream);
        if interest.stream {
            worker.join().await?;
            keeper::start(worker.clone())?;
            tokio::spawn(acks::run(worker.clone(), queue));
            tokio::spawn(replies::run(worker.clone(), stored));
            reader = Some(tokio::spawn(Reader::new(worker.clone()).run()));
        }
        Ok(RedisSource {
            worker,
            rpc: Arc::downgrade(&self.rpc),
            reads: interest.stream,
            reader,
            _closing: closing,
        })
    }
}

impl Source for RedisSource {
    type Settle = RedisSettle;

    fn settings(&self) -> &Settings {
        &self.worker.settings
    }

    fn requests_waiting(&self) -> usize {
        let hub = self.rpc.upgrade();
        hub.and_then(|hub| Some(hub.get()?.waiting())).unwrap_or(0)
    }

    async fn next(&mut self, max: usize) -> Result<Vec<Delivery<RedisSettle>>, Error> {
        let deliveries = self.worker.inbox.take(max).await;
        let from_stream = deliveries
            .iter()
            .filter(|delivery| delivery.settle.is_owed());
        self.worker
            .counters
            .delivered
            .add(from_stream.count() as u64);
        Ok(deliveries)
    }

    async fn stop(&mut self) {
        self.worker.inbox.stop();
        if let Some(mut reader) = self.reader.take() {
            tokio::select! {
                biased;
                _ = &mut reader => {}
                never = self.unblock() => match never {},
            }
        }
        let (deliveries, events) = self.worker.inbox.rest();
        self.worker.counters.events_dropped.add(events as u64);
        // Without a server the leases end by themselves.
        let _ = timeout(self.worker.settings.lease, reader::give_back(deliveries)).await;
    }

    async fn close(mut self) -> Result<(), Error> {
        self.stop().await;
        let address = self.worker.connector.address();
        // The leases of what cannot be settled by then have ended.
        let settled = timeout(self.worker.settings.lease, self.worker.flights.none()).await;
        if settled.is_err() {
            return Err(error::unanswered(address));
        }
        if self.reads {
            // A command of the keeper that came after this worker has left would make its consumer
            // anew.
            self.worker.leaving.cancel();
            let ended = self.worker.upkeep_ended.cancelled();
            let _ = timeout(self.worker.settings.lease, ended).await;
            self.worker.leave().await?;
        }
        Ok(())
    }
}

impl RedisSource {
    /// Ends the reader's blocked read, again and again: the command may come before the read does.
    async fn unblock(&self) -> std::convert::Infallible {
        loop {
            let blocked = &self.worker.blocked;
            let id = blocked.load(std::sync::atomic::Ordering::SeqCst);
            self.worker.unblock(id).await;
            tokio::time::sleep(UNBLOCK).await;
        }
    }
}

/// Ends what runs beside a source.
struct Closing(Arc<Worker>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.inbox.stop();
        self.0.closed.cancel();
        // What is still here is left to its leases.
        drop(self.0.inbox.rest());
    }
}

impl fmt::Debug for RedisSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSource")
            .field("stream", &self.worker.keys.stream)
            .field("group", &self.worker.keys.group)
            .field("consumer", &self.worker.consumer)
            .finish_non_exhaustive()
    }
}

/// A name that no other consumer has: the lease that it renews by, host, process, and a UUID for what
/// these do not tell apart. No host's name has a `=`, so names without a lease are told apart.
fn consumer(lease: Duration) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok());
    let host = host
        .as_deref()
        .map(str::trim)
        .filter(|host| !host.is_empty());
    let (process, id) = (std::process::id(), unique());
    let (lease, host) = (lease.as_millis(), host.unwrap_or("host"));
    format!("{CONSUMER_PREFIX}lease={lease}ms-{host}-{process}-{id}")
}
