//! The builder of a worker: its transport, its application and its shutdown signals.

use std::{fmt, future::IntoFuture, sync::Arc, time::Duration};

use futures_util::{
    FutureExt,
    future::{self, BoxFuture},
};

use super::{
    give_up::{GivenUp, OnGiveUp},
    log::WorkerLog,
    policy::Policy,
    signals::ShutdownSignals,
    worker::{EndSignals, Worker},
};
use crate::{
    error::Error,
    service::Servable,
    transport::{Source, Transport, UnknownNames, WorkerMonitor},
};

/// Handles the deliveries of a transport with a [`Router`](crate::Router). Any other
/// `Service<Message>` can be served in a [`WithInterest`](crate::WithInterest), which lists the
/// messages that the service wants.
///
/// The future completes after a shutdown or with an error. See the [module](super).
///
/// ```no_run
/// use campanile::{Redis, Router, serve};
///
/// # async fn run() -> Result<(), campanile::Error> {
/// let app = Router::new().task("greet", async |name: String| println!("hello {name}"));
/// let redis = Redis::connect("redis://127.0.0.1/").await?;
/// serve(redis, app).with_signals().await
/// # }
/// ```
pub fn serve<T, A>(transport: T, app: A) -> Serve<T, A>
where
    T: Transport,
    A: Servable,
{
    Serve {
        transport,
        app,
        expose_error_text: false,
        on_give_up: None,
        name_and_version: Default::default(),
        graceful: Box::pin(future::pending()),
        forced: Box::pin(future::pending()),
        shutdown_timeout: Duration::from_secs(30),
    }
}

/// A worker that has not started: `.await` runs it. Created by [`serve()`].
#[must_use = "nothing is served until it is awaited"]
pub struct Serve<T, A> {
    transport: T,
    app: A,
    expose_error_text: bool,
    on_give_up: Option<OnGiveUp>,
    /// The name and the version of the service.
    name_and_version: (String, String),
    graceful: BoxFuture<'static, ()>,
    forced: BoxFuture<'static, ()>,
    shutdown_timeout: Duration,
}

impl<T, A> Serve<T, A> {
    /// Shuts down gracefully when `signal` completes: stops fetching, releases the deliveries that
    /// were not started, waits for running handlers, and settles their deliveries.
    pub fn with_graceful_shutdown(
        mut self,
        signal: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        self.graceful = Box::pin(signal);
        self
    }

    /// Stops immediately when `signal` completes, even during a graceful shutdown. Running handlers
    /// are dropped, and their messages are delivered again when the leases end. `serve` returns an
    /// error with the number of dropped handlers
    /// ([`is_forced_shutdown`](Error::is_forced_shutdown)).
    pub fn with_forced_shutdown(
        mut self,
        signal: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        self.forced = Box::pin(signal);
        self
    }

    /// Shuts down gracefully on the first `SIGINT` (Ctrl-C) or `SIGTERM`, and by force on the
    /// second. Signals within a second after the first are ignored, because a terminal and a
    /// process manager may both send one for the same shutdown.
    ///
    /// # Panics
    /// When called outside a tokio runtime with I/O, or when the signal handlers cannot be
    /// installed.
    #[track_caller]
    pub fn with_signals(self) -> Self {
        let signals = ShutdownSignals::listen();
        let (first, second) = signals.first_and_second();
        self.with_graceful_shutdown(first)
            .with_forced_shutdown(second)
    }

    /// Sets how long a graceful shutdown waits for running handlers and for the confirmation of
    /// their outcomes. After this time the handlers are dropped, and `serve` returns an error. 30 s
    /// unless set.
    ///
    /// At the end of the shutdown, `serve` closes the transport. If the server does not answer,
    /// closing takes up to the length of a lease.
    pub fn shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.shutdown_timeout = timeout;
        self
    }

    /// Sends the text of every error to the caller, even if the error is not an
    /// [`RpcError`](crate::RpcError). Unless set, callers get `internal error` instead of the text
    /// of such an error, because the text is written for logs and may contain secrets.
    pub fn expose_error_text(mut self) -> Self {
        self.expose_error_text = true;
        self
    }

    /// Sets the name and the version of the service, which the worker announces: see
    /// [`Workers`](crate::transport::Workers). Each may have up to 200 bytes.
    ///
    /// ```
    /// use campanile::{Router, serve, transport::memory::Memory};
    ///
    /// # let app: Router = Router::new();
    /// let worker = serve(Memory::new(), app).service("orders", env!("CARGO_PKG_VERSION"));
    /// # drop(worker);
    /// ```
    pub fn service(mut self, name: impl Into<String>, version: impl Into<String>) -> Self {
        self.name_and_version = (name.into(), version.into());
        self
    }

    /// Calls this function with each message that the worker gives up, just before the message
    /// becomes a dead letter. The worker gives a message up after its last attempt, after an error
    /// that no attempt can cure, or because the message expired. Use this hook, for example, to
    /// undo an order or to notify a person.
    ///
    /// The function is called once for each dead letter. If the worker ends before the dead letter
    /// is stored, the message is delivered and given up again, and the function is called again.
    /// It is not called for entries that cannot be decoded, nor for messages that become dead
    /// letters because their workers crashed at each attempt. It runs on a thread of the runtime,
    /// so it must not block. It may spawn a tokio task.
    ///
    /// ```
    /// use campanile::{Router, serve, transport::memory::Memory};
    ///
    /// # let app: Router = Router::new();
    /// let worker = serve(Memory::new(), app).on_give_up(|given_up| {
    ///     let parts = given_up.message.parts();
    ///     eprintln!("{} after attempt {}: {}", parts.name, parts.attempt.0, given_up.reason);
    /// });
    /// # drop(worker);
    /// ```
    pub fn on_give_up(mut self, hook: impl Fn(GivenUp) + Send + Sync + 'static) -> Self {
        self.on_give_up = Some(OnGiveUp::new(hook));
        self
    }
}

#[cfg(feature = "testing")]
impl<T, A> Serve<T, A> {
    /// Returns the transport whose deliveries are handled.
    pub(crate) fn transport(&self) -> &T {
        &self.transport
    }
}

impl<T, A> IntoFuture for Serve<T, A>
where
    T: Transport,
    A: Servable,
{
    type Output = Result<(), Error>;
    type IntoFuture = BoxFuture<'static, Result<(), Error>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let mut stop = EndSignals {
                graceful: self.graceful,
                forced: self.forced,
            };
            let app = self.app;
            // `interest` builds the service of a router, and a layer may panic there. `interest` is
            // called before `open`, so that such a panic leaves no consumer behind.
            let interest = app.interest();
            let (batch_size, reads_streams) = (interest.batch_size, interest.stream);
            let (routes, description) = (app.route_names(), app.description());
            let announced_interest = interest.clone();
            // A signal that comes before the source is open ends the worker without an error.
            let mut source = tokio::select! {
                biased;
                source = self.transport.open(interest) => source?,
                () = &mut stop.graceful => return Ok(()),
                () = &mut stop.forced => return Ok(()),
            };
            let max_in_flight = source.settings().max_in_flight;
            if batch_size > max_in_flight {
                source.stop().await;
                source.close().await?;
                return Err(Error::config(format!(
                    "a batch handler takes up to {batch_size} messages at once, and the transport may \
                     have {max_in_flight} in flight: raise `max_in_flight` or lower the batch's `size`"
                )));
            }
            let log = WorkerLog::start(&source, reads_streams, &routes);
            let monitor = WorkerMonitor::new(
                source.consumer().unwrap_or_default(),
                source.settings(),
                &announced_interest,
                self.name_and_version,
                routes,
            );
            let monitor = Arc::new(monitor.described_as(description));
            source.monitor(monitor.clone());
            // An operator's order to drain the worker starts the same shutdown as a signal.
            let graceful_or_drained = future::select(
                stop.graceful,
                Box::pin(monitor.clone().wait_until_drained()),
            );
            stop.graceful = graceful_or_drained.map(drop).boxed();
            let policy = Policy {
                expose_error_text: self.expose_error_text,
                unknown_names: source
                    .settings()
                    .unknown_names
                    .unwrap_or(UnknownNames::Fail),
                expired: source.settings().expired,
                max_deliveries: source.settings().max_deliveries,
                backoff: source.settings().backoff,
                on_give_up: self.on_give_up,
            };
            Worker::new(source, app, policy, monitor)
                .run(stop, self.shutdown_timeout, log)
                .await
        })
    }
}

impl<T: fmt::Debug, A> fmt::Debug for Serve<T, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve")
            .field("transport", &self.transport)
            .field("shutdown_timeout", &self.shutdown_timeout)
            .field("expose_error_text", &self.expose_error_text)
            .finish_non_exhaustive()
    }
}
