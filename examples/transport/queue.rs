use std::{
    collections::{HashMap, VecDeque},
    future::{Ready, ready},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use campanile::{
    Attempt, Deadline, Error, Kind, Message, MessageId, Name, Reply,
    transport::{
        self, Delivery, Interest, Settings, SettleDelivery, Source, Transport, Verdict, codec,
    },
};
use tokio::{sync::Notify, time::Instant};
use tower::Service;

/// A stored message: its fields, as they would travel on a wire, and the state of its delivery.
struct Entry {
    id: MessageId,
    accepted_at: Instant,
    attempts: u32,
    fields: Vec<(Bytes, Bytes)>,
}

#[derive(Default)]
struct Broker {
    streams: Mutex<HashMap<Name, VecDeque<Entry>>>,
    arrival: Notify,
}

/// Both halves of the transport in one handle. Clones share one broker.
#[derive(Clone, Default)]
pub(crate) struct Queue {
    broker: Arc<Broker>,
    settings: Settings,
}

impl Queue {
    /// Returns a handle of the same broker with other settings.
    pub(crate) fn with_settings(&self, settings: Settings) -> Self {
        let broker = Arc::clone(&self.broker);
        Self { broker, settings }
    }

    /// Calls `act` with the entries of this handle's stream.
    fn with_stream<T>(&self, act: impl FnOnce(&mut VecDeque<Entry>) -> T) -> T {
        let streams = &self.broker.streams;
        let mut streams = streams.lock().unwrap_or_else(PoisonError::into_inner);
        act(streams.entry(self.settings.stream.clone()).or_default())
    }

    fn put(&self, entry: Entry) {
        self.with_stream(|stream| stream.push_back(entry));
        self.broker.arrival.notify_waiters();
    }

    /// Adds an entry, whose fields may be invalid.
    pub(crate) fn add(&self, fields: Vec<(Bytes, Bytes)>) -> MessageId {
        let id = MessageId::from(uuid::Uuid::new_v4().to_string());
        self.put(Entry {
            id: id.clone(),
            accepted_at: Instant::now(),
            attempts: 0,
            fields,
        });
        id
    }

    fn send(&self, message: &Message) -> Result<Reply, Error> {
        transport::check(message.parts())?;
        let parts = message.parts();
        if parts.kind != Kind::Task || parts.due.is_some() || parts.idempotency_key.is_some() {
            return Err(Error::invalid("this queue takes plain tasks and no more"));
        }
        let mut fields = Vec::new();
        codec::encode(message, |field, value| {
            fields.push((Bytes::copy_from_slice(field), Bytes::copy_from_slice(value)));
        });
        Ok(Reply::accepted(self.add(fields)))
    }
}

// The sending half.
impl Service<Message> for Queue {
    type Response = Reply;
    type Error = Error;
    type Future = Ready<Result<Reply, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, message: Message) -> Self::Future {
        ready(self.send(&message))
    }
}

// The serving half before it is opened.
impl Transport for Queue {
    type Source = QueueSource;

    async fn open(self, interest: Interest) -> Result<QueueSource, Error> {
        if interest.has_events() {
            return Err(Error::config("this queue carries no events"));
        }
        Ok(QueueSource {
            reads_stream: interest.stream,
            queue: self,
            is_stopped: false,
        })
    }
}

/// One worker.
pub(crate) struct QueueSource {
    queue: Queue,
    reads_stream: bool,
    is_stopped: bool,
}

impl Source for QueueSource {
    type Settle = UnsettledDelivery;

    fn settings(&self) -> &Settings {
        &self.queue.settings
    }

    async fn next(&mut self, max: usize) -> Result<Vec<Delivery<UnsettledDelivery>>, Error> {
        let queue = &self.queue;
        loop {
            if self.is_stopped {
                return Err(Error::closed());
            }
            // Created before the stream is read, so that an entry that arrives after the read wakes
            // this source.
            let arrival = queue.broker.arrival.notified();
            let limit = if self.reads_stream { max } else { 0 };
            let taken: Vec<_> = queue.with_stream(|stream| {
                let count = limit.min(stream.len());
                stream.drain(..count).collect()
            });
            if !taken.is_empty() {
                return Ok(taken
                    .into_iter()
                    .map(|entry| queue.deliver(entry))
                    .collect());
            }
            arrival.await;
        }
    }

    async fn stop(&mut self) {
        // This source fetches nothing ahead, so it has nothing to release.
        self.is_stopped = true;
    }

    async fn close(mut self) -> Result<(), Error> {
        self.stop().await;
        Ok(())
    }
}

impl Queue {
    fn deliver(&self, mut entry: Entry) -> Delivery<UnsettledDelivery> {
        entry.attempts += 1;
        let content = codec::decode(entry.fields.clone()).map(|decoded| {
            let mut message = decoded.message;
            let parts = message.parts_mut();
            parts.id = Some(entry.id.clone());
            parts.stream = Some(self.settings.stream.clone());
            parts.group = Some(self.settings.group.clone());
            parts.attempt = Attempt(entry.attempts);
            let age = entry.accepted_at.elapsed();
            let left = decoded.time_to_live.map(|life| life.saturating_sub(age));
            parts.deadline = left.map(Deadline::after);
            message
        });
        let message = content.as_ref().ok();
        let max_attempts = message.and_then(|message| message.parts().max_attempts);
        let unsettled = UnsettledDelivery {
            max_attempts: max_attempts.unwrap_or(self.settings.max_deliveries),
            queue: self.clone(),
            entry: Some(entry),
        };
        Delivery::new(content, unsettled)
    }
}

/// A delivery that is not settled yet.
pub(crate) struct UnsettledDelivery {
    max_attempts: u32,
    queue: Queue,
    entry: Option<Entry>,
}

impl SettleDelivery for UnsettledDelivery {
    fn settle(
        mut self,
        verdict: Verdict,
        on_settled: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) {
        let Some(mut entry) = self.entry.take() else {
            return on_settled(Ok(()));
        };
        match verdict.limited(entry.attempts, self.max_attempts) {
            Verdict::Redeliver { after, counted, .. } => {
                let backoff = self.queue.settings.backoff;
                let after = after.unwrap_or_else(|| backoff.after(entry.attempts));
                entry.attempts -= u32::from(!counted);
                self.queue.put_later(entry, after);
            }
            Verdict::Release => {
                entry.attempts -= 1;
                self.queue.put(entry);
            }
            Verdict::DeadLetter { reason, .. } => eprintln!("{} is given up: {reason}", entry.id),
            // Done or discarded. This transport has no requests, so no caller waits for a reply.
            _ => {}
        }
        on_settled(Ok(()));
    }
}

// This transport has no leases. A delivery that is dropped before it is settled returns to the
// stream at once, and the attempt counts.
impl Drop for UnsettledDelivery {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            self.queue.put(entry);
        }
    }
}

impl Queue {
    /// Puts an entry back after a delay. The delay runs in a spawned task, so it survives the
    /// worker.
    fn put_later(&self, entry: Entry, after: Duration) {
        let queue = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            queue.put(entry);
        });
    }
}
