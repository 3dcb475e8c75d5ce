//! What is served, and how it is shut down.

use std::{fmt, future::IntoFuture, time::Duration};

use futures_util::future::{self, BoxFuture};

use super::{log::WorkerLog, policy::Policy, signals::Signals, worker::Worker};
use crate::{
    error::Error,
    service::Servable,
    transport::{Source, Transport, UnknownNames},
};

/// Serves what a transport delivers with a [`Router`](crate::Router), or with any other
/// `Service<Message>` in a [`WithInterest`](crate::WithInterest), which says what it listens to.
///
/// The future never ends by itself. See the [module](super).
pub fn serve<T, A>(transport: T, app: A) -> Serve<T, A>
where
    T: Transport,
    A: Servable,
{
    Serve {
        transport,
        app,
        expose_error_text: false,
        graceful: Box::pin(future::pending()),
        forced: Box::pin(future::pending()),
        shutdown_deadline: Duration::from_secs(30),
    }
}

/// What [`serve()`] returns: `.await` runs it.
#[must_use = "nothing is served until it is awaited"]
pub struct Serve<T, A> {
    transport: T,
    app: A,
    expose_error_text: bool,
    graceful: BoxFuture<'static, ()>,
    forced: BoxFuture<'static, ()>,
    shutdown_deadline: Duration,
}

impl<T, A> Serve<T, A> {
    /// Shuts down when `signal` is ready: nothing more is fetched, what was not started is given
    /// back at once, running handlers finish, everything is settled.
    pub fn with_graceful_shutdown(
        mut self,
        signal: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        self.graceful = Box::pin(signal);
        self
    }

    /// Ends at once when `signal` is ready, also in the middle of a graceful shutdown: running
    /// handlers are dropped, and their deliveries come back when the lease ends. Where there were
    /// any, `serve` ends with an error that says how many
    /// ([`is_forced_shutdown`](Error::is_forced_shutdown)).
    pub fn with_forced_shutdown(
        mut self,
        signal: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        self.forced = Box::pin(signal);
        self
    }

    /// Shuts down gracefully on the first `SIGINT` or `SIGTERM` (Ctrl-C), and at once on the
    /// second. One that comes within a second of the first is the first said twice: a terminal and a
    /// process manager may both send theirs.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O, or when the handlers cannot be installed.
    #[track_caller]
    pub fn with_signals(self) -> Self {
        let signals = Signals::listen();
        let (first, second) = signals.first_and_second();
        self.with_graceful_shutdown(first)
            .with_forced_shutdown(second)
    }

    /// How long running handlers may take to finish after the signal; then they are dropped and
    /// `serve` ends with an error. 30 s unless set.
    pub fn shutdown_deadline(mut self, deadline: Duration) -> Self {
        self.shutdown_deadline = deadline;
        self
    }

    /// Shows callers the texts of errors that are no [`RpcError`](crate::RpcError). Unless set
    /// they only get `internal error`: such texts are written for logs and can hold secrets.
    pub fn expose_error_text(mut self) -> Self {
        self.expose_error_text = true;
        self
    }
}

#[cfg(feature = "testing")]
impl<T, A> Serve<T, A> {
    /// What it serves from.
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
            let mut stop = Stop {
                graceful: self.graceful,
                forced: self.forced,
            };
            let app = self.app;
            // Before opening: a layer that cannot be built must not leave a consumer behind.
            let interest = app.interest();
            let (at_once, reads_streams) = (interest.at_once, interest.stream);
            let routes = app.route_names();
            let mut source = tokio::select! {
                biased;
                source = self.transport.open(interest) => source?,
                () = &mut stop.graceful => return Ok(()),
                () = &mut stop.forced => return Ok(()),
            };
            let most = source.settings().max_in_flight;
            if at_once > most {
                source.stop().await;
                source.close().await?;
                return Err(Error::config(format!(
                    "a batch handler takes up to {at_once} messages at once, and the transport may \
                     have {most} in flight: raise `max_in_flight` or lower the batch's `size`"
                )));
            }
            let log = WorkerLog::start(source.settings(), reads_streams, &routes);
            let policy = Policy {
                expose_error_text: self.expose_error_text,
                unknown_names: source
                    .settings()
                    .unknown_names
                    .unwrap_or(UnknownNames::Fail),
                expired: source.settings().expired,
                max_deliveries: source.settings().max_deliveries,
                backoff: source.settings().backoff,
            };
            Worker::new(source, app, policy)
                .run(stop, self.shutdown_deadline, log)
                .await
        })
    }
}

impl<T: fmt::Debug, A> fmt::Debug for Serve<T, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve")
            .field("transport", &self.transport)
            .field("shutdown_deadline", &self.shutdown_deadline)
            .field("expose_error_text", &self.expose_error_text)
            .finish_non_exhaustive()
    }
}

/// The two ways to be told to end.
pub(super) struct Stop {
    pub(super) graceful: BoxFuture<'static, ()>,
    pub(super) forced: BoxFuture<'static, ()>,
}
