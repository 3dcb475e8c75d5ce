//! The serving loop: source → service → settlement.
//!
//! ```
//! use campanile::{Client, Router, transport::memory::Memory};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let memory = Memory::new();
//! let (done, mut finished) = tokio::sync::mpsc::channel(1);
//! let app = Router::new().task("greet", async move |name: String| {
//!     let _ = done.send(format!("hello {name}")).await;
//! });
//! let worker = tokio::spawn(
//!     campanile::serve(memory.clone(), app)
//!         .with_graceful_shutdown(async { tokio::signal::ctrl_c().await.unwrap() })
//!         .into_future(),
//! );
//!
//! Client::new(memory).enqueue("greet", "Ada").await?;
//! assert_eq!(finished.recv().await.as_deref(), Some("hello Ada"));
//! # worker.abort();
//! # Ok(())
//! # }
//! ```
//!
//! # Ordering
//! Deliveries start in the order in which the source hands them out, and run at the same time.
//! With [`max_in_flight`](crate::transport::Settings::max_in_flight) of one they run one after the
//! other.
//!
//! # Back-pressure
//! The source is asked for no more than may be started: while every slot is taken, or the
//! outermost layer is not ready (a limit is reached, a breaker is open), nothing is fetched. A
//! slot is free again when its delivery is settled.
//!
//! # Cancel safety
//! Dropping the future aborts running handlers and settles nothing: their deliveries come back
//! when the lease ends. To end without that, use a graceful shutdown.
//!
//! # Errors
//! A source reconnects by itself. What ends `serve` with an error is a set-up that cannot work, a
//! service that reports itself as broken, or handlers that are dropped: by a forced shutdown, or
//! because they outlive the shutdown's deadline.
//!
//! A server that is away, not ready or takes no writes when `serve` begins is waited for, as it is
//! later; the cause is logged, and the shutdown's signal ends the wait at once. A password that is
//! wrong at the start ends `serve`: nothing says yet that it was ever right.
//!
//! # Panics
//! A panic of a handler or a layer is a failed delivery; it is logged, and nothing else notices.

mod in_flight;
mod policy;
mod signals;
mod worker;

use std::{fmt, future::IntoFuture, time::Duration};

use futures_util::future::{self, BoxFuture};

use self::{policy::Policy, signals::Signals, worker::Worker};
use crate::{
    error::Error,
    service::Servable,
    transport::{Source, Transport, UnknownNames},
};

/// Serves what a transport delivers with a [`Router`](crate::Router), or with any other
/// `Service<Message>` in a [`WithInterest`](crate::WithInterest), which says what it listens to.
///
/// The future never ends by itself. See the [module](self).
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
            let at_once = interest.at_once;
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
            let policy = Policy {
                expose_error_text: self.expose_error_text,
                unknown_names: source
                    .settings()
                    .unknown_names
                    .unwrap_or(UnknownNames::Fail),
                expired: source.settings().expired,
            };
            Worker::new(source, app, policy)
                .run(stop, self.shutdown_deadline)
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
struct Stop {
    graceful: BoxFuture<'static, ()>,
    forced: BoxFuture<'static, ()>,
}
