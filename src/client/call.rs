//! A call, its options and its future.

use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use http::{HeaderName, HeaderValue};
use pin_project::pin_project;
use tokio::time::{Sleep, sleep_until};
use tower::{Service, ServiceExt, util::Oneshot};

use super::Receipt;
use crate::{
    error::{BoxError, Error, ErrorKind},
    message::{
        Deadline, Due, IdempotencyKey, Kind, Message, Name, PartitionKey, Replicas, ReplyMode,
        Unique,
    },
    reply::Reply,
    service::MessageService,
};

/// A call that is made when it is awaited. Created by the methods of [`Client`](crate::Client).
#[must_use = "nothing is sent until it is awaited"]
pub struct Call<S, R> {
    service: S,
    message: Result<Message, Error>,
    timeout: Option<Duration>,
    /// The maximum time that a task may wait for its start after it is due.
    time_to_live: Option<Duration>,
    read: ReadReply<R>,
}

/// Reads a reply as the type that the caller asked for.
pub(super) type ReadReply<R> = fn(Reply) -> Result<R, BoxError>;

impl<S, R> Call<S, R> {
    pub(super) fn new(service: S, message: Result<Message, Error>, read: ReadReply<R>) -> Self {
        Self {
            service,
            message,
            timeout: None,
            time_to_live: None,
            read,
        }
    }

    pub(super) fn reply_mode(mut self, mode: ReplyMode) -> Self {
        if let Ok(message) = &mut self.message {
            message.parts_mut().reply_mode = mode;
        }
        self
    }

    /// Adds a header. Earlier headers of the same name are kept. An invalid header fails the call.
    pub fn header<K, V>(mut self, name: K, value: V) -> Self
    where
        HeaderName: TryFrom<K, Error: Into<http::Error>>,
        HeaderValue: TryFrom<V, Error: Into<http::Error>>,
    {
        let Ok(message) = &mut self.message else {
            return self;
        };
        if let Err(error) = append_header(message, name, value) {
            self.message = Err(error);
        }
        self
    }

    /// Sets the stream that the task or request is sent to, instead of the stream of the
    /// transport's handle. Has no effect over a router.
    ///
    /// ```
    /// # async fn run() -> Result<(), campanile::Error> {
    /// use campanile::{Client, transport::memory::Memory};
    ///
    /// let client = Client::new(Memory::new());
    /// client.enqueue("report.make", "{}").stream("tenant-7").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn stream(mut self, stream: impl Into<Name>) -> Self {
        if let Ok(message) = &mut self.message {
            message.parts_mut().to = Some(stream.into());
        }
        self
    }

    /// Sets the key that chooses the partition of the task or request on a
    /// [partitioned](crate::transport::Streams::partitioned) stream. Messages with the same key are
    /// in the same partition, in the order in which they were sent. A key that is empty or longer
    /// than 1024 bytes is refused.
    ///
    /// The key is sent with the message: handlers find it in
    /// [`Parts::partition_key`](crate::Parts::partition_key).
    ///
    /// To set the key of each call of a client from a header, the name or the payload, wrap the
    /// transport in tower's `map_request`:
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), campanile::Error> {
    /// use campanile::{Client, Message, PartitionKey, transport::{Streams, memory::Memory}};
    /// use tower::ServiceExt;
    ///
    /// fn by_tenant(mut message: Message) -> Message {
    ///     let tenant = message.headers().get("x-tenant").and_then(|it| it.to_str().ok());
    ///     if let Some(tenant) = tenant.map(PartitionKey::from) {
    ///         message.parts_mut().partition_key.get_or_insert(tenant);
    ///     }
    ///     message
    /// }
    ///
    /// let orders = Memory::new().streams(Streams::partitioned("orders", 16));
    /// let client = Client::new(orders.map_request(by_tenant));
    /// client.enqueue("order.paid", "{}").header("x-tenant", "acme").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn partition_key(mut self, key: impl Into<PartitionKey>) -> Self {
        if let Ok(message) = &mut self.message {
            message.parts_mut().partition_key = Some(key.into());
        }
        self
    }

    /// Sets the maximum duration of the call, including the wait for the service to be ready. The
    /// timeout of a request is also its deadline: no worker starts the request later.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

/// Options of events.
impl<S> Call<S, ()> {
    /// Publishes the event to the subscribers of
    /// [`Router::event_sharded`](crate::Router::event_sharded) only. On a Redis Cluster, a sharded
    /// event stays within the shard of its name. Any other event is sent to all nodes. Redis 7.0 or
    /// newer is needed (`SPUBLISH`).
    ///
    /// Sharded events and other events have separate subscribers. Handlers of
    /// [`Router::event`](crate::Router::event) or [`event_pattern`](crate::Router::event_pattern),
    /// and classic Redis subscribers such as a Go-Broker service, do not receive sharded events. If
    /// the call is not an event, it is refused.
    ///
    /// ```
    /// # async fn run() -> Result<(), campanile::Error> {
    /// use campanile::{Client, transport::memory::Memory};
    ///
    /// let client = Client::new(Memory::new());
    /// client.publish("prices.eur", "1.08").sharded().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn sharded(mut self) -> Self {
        if let Ok(message) = &mut self.message {
            message.parts_mut().sharded = true;
        }
        self
    }
}

/// Options of tasks. A router, or another service that handles tasks in place, starts them
/// immediately and ignores these options.
impl<S> Call<S, Receipt> {
    /// Delays the task. The server keeps the task, and adds it to its stream once `delay` has
    /// passed since the task was stored, on the server's clock. Zero means no delay. A delay of
    /// more than a hundred years is refused.
    ///
    /// Until the task is due, the transport's [`tasks`](crate::transport::Tasks) can cancel it by
    /// its id. If both `delay` and [`at`](Self::at) are called, the last call wins.
    pub fn delay(mut self, delay: Duration) -> Self {
        if let Ok(message) = &mut self.message {
            message.parts_mut().due = (!delay.is_zero()).then_some(Due::After(delay));
        }
        self
    }

    /// Delays the task, as [`delay`](Self::delay) does, until this time on the server's clock. A
    /// time in the past means no delay.
    pub fn at(mut self, time: SystemTime) -> Self {
        if let Ok(message) = &mut self.message {
            message.parts_mut().due = Some(Due::At(time));
        }
        self
    }

    /// Sets the time for which the task may wait for its start, counted from when it is due. After
    /// that no attempt is started. The worker's
    /// [`Settings::expired`](crate::transport::Settings::expired) decides whether an expired task
    /// is dropped and counted, or becomes a dead letter. Zero is refused.
    pub fn expires_after(mut self, time_to_live: Duration) -> Self {
        if time_to_live.is_zero() && self.message.is_ok() {
            let text = "a task that expires at once cannot be sent";
            self.message = Err(Error::new(ErrorKind::Invalid, text));
        }
        self.time_to_live = Some(time_to_live);
        self
    }

    /// Sends the task only if no task with this key was sent to the same stream before. If there
    /// was an earlier task, the call returns its receipt. So it is safe to repeat a call whose
    /// [outcome is unknown](Error::is_unknown_outcome).
    ///
    /// The server keeps the key until the transport's
    /// [`idempotency_window`](crate::transport::Settings::idempotency_window) has passed since the
    /// task was due, even if the task is done earlier. A task that is given up, discarded or
    /// cancelled frees its key, so the task can be sent again. If the stream has several groups,
    /// the first group that gives the task up frees the key. A key that is empty or longer than
    /// 1024 bytes is refused.
    ///
    /// The receipt of a repeated call has the id of the first task, and
    /// [is a duplicate](Receipt::is_duplicate).
    pub fn idempotency_key(mut self, key: impl Into<IdempotencyKey>) -> Self {
        if let Ok(message) = &mut self.message {
            message.parts_mut().idempotency_key = Some(key.into());
        }
        self
    }

    /// Sends the task only if no other task holds this key. The task holds the key until it has
    /// ended: until it is done, dead, discarded or cancelled. A delayed task, a running task, and a
    /// task that waits for its next attempt hold the key.
    ///
    /// If another task holds the key, the call returns that task's receipt, which [is a
    /// duplicate](Receipt::is_duplicate). With [`Unique::replace`](crate::message::Unique) the new
    /// task replaces a holder that is not due yet. With `Unique::refuse` the call fails as a
    /// [duplicate](Error::is_duplicate).
    ///
    /// A key belongs to a stream and a group: those of the transport's handle. On a partitioned
    /// stream, a task without a [`partition_key`](Self::partition_key) goes to the partition of its
    /// unique key. A key that is empty or longer than 1024 bytes is refused. A task with both a
    /// unique key and an idempotency key is refused, too.
    ///
    /// The key limits how many tasks are accepted, not how many run: a worker that has lost its
    /// lease may still run an earlier task for a moment.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), campanile::Error> {
    /// use campanile::{Client, transport::memory::Memory};
    ///
    /// let client = Client::new(Memory::new());
    /// let first = client.enqueue("report.make", "7").unique("report 7").await?;
    /// let second = client.enqueue("report.make", "7").unique("report 7").await?;
    /// assert!(second.is_duplicate());
    /// assert_eq!(second.id(), first.id());
    /// # Ok(())
    /// # }
    /// ```
    pub fn unique(mut self, unique: impl Into<Unique>) -> Self {
        if let Ok(message) = &mut self.message {
            message.parts_mut().unique = Some(unique.into());
        }
        self
    }

    /// Records the status of the task, and keeps the record for this time after the task's end. The
    /// `tasks` method of the transport's handle gives access to the status. It can also cancel the
    /// task until the task has ended.
    pub fn tracked(mut self, keep: Duration) -> Self {
        if let Ok(message) = &mut self.message {
            message.parts_mut().tracked = Some(keep);
        }
        self
    }

    /// Sets how long each attempt at the task may run. An attempt that takes longer is dropped at
    /// its current `.await`. The attempt counts as failed, and the task is delivered again. The
    /// time of an attempt starts when the layers are ready and the handler is called.
    ///
    /// The attempt timeout limits neither the call ([`timeout`](Self::timeout)) nor the wait for
    /// the first attempt ([`expires_after`](Self::expires_after)). Zero is refused.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        if let Ok(message) = &mut self.message {
            message.parts_mut().attempt_timeout = Some(timeout);
        }
        self
    }

    /// Sets the number of attempts after which the task is given up and becomes a dead letter,
    /// instead of the workers'
    /// [`max_deliveries`](crate::transport::Settings::max_deliveries). Zero is refused.
    ///
    /// ```
    /// # async fn run() -> Result<(), campanile::Error> {
    /// use std::time::Duration;
    /// use campanile::{Client, transport::memory::Memory};
    ///
    /// let client = Client::new(Memory::new());
    /// client
    ///     .enqueue("payments.book", "7")
    ///     .max_attempts(3)
    ///     .attempt_timeout(Duration::from_secs(10))
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        if let Ok(message) = &mut self.message {
            message.parts_mut().max_attempts = Some(attempts);
        }
        self
    }

    /// Waits until `count` replicas also have the task. If only the primary is lost after an `Ok`,
    /// and one of these replicas is promoted, the task is not lost. The guide's page about
    /// durability lists the other conditions.
    ///
    /// If fewer than `count` replicas confirm the task `within` this time, the call fails although
    /// the task is stored: the error is [unreplicated](Error::is_unreplicated) and has the task's
    /// [id](Error::stored_id). Do not send the task again without an
    /// [`idempotency_key`](Self::idempotency_key). With the same key the call asks the replicas
    /// again, and stores no second task.
    ///
    /// The first call with a given `count` checks that the primary has that number of replicas. If
    /// the primary has fewer, the call fails at once as [refused](Error::is_refused), and nothing
    /// is stored.
    ///
    /// `within` counts from the write. While a connection waits for replicas, Redis answers nothing
    /// else on it. So tasks with this option are sent over a separate connection. Tasks that are
    /// sent together wait together, for the largest `count` and the longest `within` among them.
    /// Tasks that are sent during a wait are written after the wait. So use the same `count` and
    /// `within` for all tasks. [`timeout`](Self::timeout) bounds the whole call.
    ///
    /// A transport without replicas, such as [`Memory`](crate::transport::memory::Memory), refuses
    /// the call as [invalid](Error::is_invalid). An application that is also tested over such a
    /// transport should make this option configurable. Every transport refuses a `count` of zero,
    /// and a `within` of zero or of more than a minute.
    ///
    /// ```no_run
    /// # async fn run(client: campanile::Client<campanile::transport::memory::Memory>)
    /// #     -> Result<(), campanile::Error> {
    /// use std::time::Duration;
    ///
    /// let sent = client
    ///     .enqueue("payments.book", r#"{"order":7}"#)
    ///     .idempotency_key("book order 7")
    ///     .replicas(1, Duration::from_millis(500))
    ///     .await;
    /// match sent {
    ///     Ok(receipt) => println!("{receipt} is on a replica"),
    ///     Err(error) if error.is_unreplicated() => {
    ///         let id = error.stored_id().expect("it is stored");
    ///         println!("{id} will be handled, unless the primary is lost now: {error}");
    ///     }
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn replicas(mut self, count: u32, within: Duration) -> Self {
        if let Ok(message) = &mut self.message {
            message.parts_mut().replicas = Some(Replicas { count, within });
        }
        self
    }
}

impl<S, R> Call<S, R> {
    /// Returns the message as it is sent, and the timeout of the call.
    pub(super) fn prepare(self) -> PreparedCall {
        self.into_parts().1
    }

    fn into_parts(self) -> (S, PreparedCall) {
        let message = self.message.map(|mut message| {
            // The timeout of a task bounds only the sending. `expires_after` sets the deadline for
            // workers.
            let parts = message.parts_mut();
            if parts.kind == Kind::Rpc {
                parts.deadline = self.timeout.map(Deadline::after);
            } else if let Some(time_to_live) = self.time_to_live {
                let wait = parts.due.map(Due::wait).unwrap_or_default();
                parts.deadline = Some(Deadline::after(wait.saturating_add(time_to_live)));
            }
            message
        });
        let call = PreparedCall {
            message,
            timeout: self.timeout,
        };
        (self.service, call)
    }
}

/// A message as it is sent, and the timeout of its call.
pub(super) struct PreparedCall {
    pub(super) message: Result<Message, Error>,
    pub(super) timeout: Option<Duration>,
}

/// Returns the error of a call that has timed out.
pub(super) fn timeout_error(timeout: Duration) -> Error {
    Error::new(ErrorKind::Timeout, format!("no answer within {timeout:?}"))
}

fn append_header<K, V>(message: &mut Message, name: K, value: V) -> Result<(), Error>
where
    HeaderName: TryFrom<K, Error: Into<http::Error>>,
    HeaderValue: TryFrom<V, Error: Into<http::Error>>,
{
    let invalid = |error: http::Error| {
        Error::new(ErrorKind::Invalid, "a header that HTTP does not allow").with_source(error)
    };
    let name = HeaderName::try_from(name).map_err(|error| invalid(error.into()))?;
    let value = HeaderValue::try_from(value).map_err(|error| invalid(error.into()))?;
    message
        .headers_mut()
        .try_append(name, value)
        .map_err(|error| Error::new(ErrorKind::Invalid, "too many headers").with_source(error))?;
    Ok(())
}

impl<S, R> fmt::Debug for Call<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("message", &self.message)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl<S, R> IntoFuture for Call<S, R>
where
    S: MessageService,
{
    type Output = Result<R, Error>;
    type IntoFuture = CallFuture<S, R>;

    fn into_future(self) -> CallFuture<S, R> {
        let deadline = self.timeout.map(Deadline::after);
        let read = self.read;
        let (service, PreparedCall { message, timeout }) = self.into_parts();
        let (call, build_error) = match message {
            Ok(message) => (Some(service.oneshot(message)), None),
            Err(error) => (None, Some(error)),
        };
        CallFuture {
            call,
            build_error,
            timer: deadline.map(|deadline| sleep_until(deadline.0)),
            timeout,
            read,
        }
    }
}

/// The future of a [`Call`].
#[pin_project]
#[must_use = "futures do nothing unless polled"]
pub struct CallFuture<S: Service<Message>, R> {
    /// `None` if the message could not be built. The reason is then in `build_error`.
    #[pin]
    call: Option<Oneshot<S, Message>>,
    build_error: Option<Error>,
    #[pin]
    timer: Option<Sleep>,
    timeout: Option<Duration>,
    read: ReadReply<R>,
}

impl<S, R> Future for CallFuture<S, R>
where
    S: MessageService,
{
    type Output = Result<R, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // Polls the call before the timer, so that a reply that has already arrived is not late.
        match this.call.as_pin_mut() {
            None => {
                let error = this.build_error.take().expect("polled after completion");
                return Poll::Ready(Err(error));
            }
            Some(call) => {
                if let Poll::Ready(result) = call.poll(cx) {
                    let reply = result.map_err(Error::from_service)?;
                    return Poll::Ready((this.read)(reply).map_err(|error| {
                        Error::new(ErrorKind::Decode, "the reply is not what was asked for")
                            .with_source(error)
                    }));
                }
            }
        }
        match this.timer.as_pin_mut() {
            None => Poll::Pending,
            Some(timer) => {
                ready!(timer.poll(cx));
                Poll::Ready(Err(timeout_error(this.timeout.unwrap_or_default())))
            }
        }
    }
}

impl<S: Service<Message>, R> fmt::Debug for CallFuture<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallFuture").finish_non_exhaustive()
    }
}
