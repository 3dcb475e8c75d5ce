//! Runs the applications of a test.

use std::{fmt, panic::Location, sync::Arc, time::Duration};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    journal::Journal,
    record::{Listing, Record},
    settle::HarnessWaits,
};
use crate::{
    Client, error::Error, serve, serve::Serve, service::Servable, transport::memory::Memory,
};

/// Runs applications over the memory transport, and records everything that happens on it. See the
/// [module](super).
///
/// Dropping the harness aborts the applications.
pub struct Harness {
    waits: HarnessWaits,
    apps: JoinSet<Result<(), Error>>,
    stop: CancellationToken,
}

impl Harness {
    /// Creates a harness with a new memory transport. No application is served yet.
    #[expect(clippy::new_without_default, reason = "a default harness has no use")]
    pub fn new() -> Self {
        Self::over(Memory::new())
    }

    /// Creates a harness with an existing memory transport. Use this constructor for a transport
    /// with settings, or if the transport is part of an application's state. Messages that were
    /// sent before are not recorded.
    ///
    /// # Panics
    /// If another harness uses the transport.
    #[track_caller]
    pub fn over(memory: Memory) -> Self {
        let journal = Arc::new(Journal::new());
        assert!(
            memory.watch(journal.clone()),
            "this memory transport has a harness already"
        );
        Self {
            waits: HarnessWaits {
                memory,
                journal,
                patience: Duration::from_secs(60),
                max_deliveries: 10_000,
            },
            apps: JoinSet::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Creates a harness with a new memory transport, and serves an application.
    ///
    /// # Panics
    /// If the application cannot be served.
    #[track_caller]
    pub fn start<A>(app: A) -> impl Future<Output = Self> + Send
    where
        A: Servable,
    {
        let at = Location::caller();
        async move {
            let mut harness = Self::new();
            harness.spawn(serve(harness.memory(), app), at).await;
            harness
        }
    }

    /// Sets the maximum time, on tokio's clock, that [`settled`](Self::settled) waits for handlers.
    /// The other methods that wait until everything is settled have the same limit. If the clock is
    /// paused, the wait takes no real time. 60 s unless set.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.waits.patience = patience;
        self
    }

    /// Sets the maximum number of deliveries during one wait. If there are more, the wait fails,
    /// because handlers that send each other messages could make the wait endless. 10,000 unless
    /// set.
    #[must_use]
    pub fn max_deliveries(mut self, deliveries: u64) -> Self {
        self.waits.max_deliveries = deliveries;
        self
    }

    /// Returns a handle of the transport.
    pub fn memory(&self) -> Memory {
        self.waits.memory.clone()
    }

    /// Returns a client of the transport.
    pub fn client(&self) -> Client<Memory> {
        Client::new(self.memory())
    }

    /// Serves an application with the settings of the harness's transport, and returns once its
    /// source is open.
    ///
    /// # Panics
    /// If the application cannot be served.
    #[track_caller]
    pub fn serve<A>(&mut self, app: A) -> impl Future<Output = ()> + Send
    where
        A: Servable,
    {
        let serve = serve(self.memory(), app);
        self.spawn(serve, Location::caller())
    }

    /// Runs a worker that [`serve`](crate::serve()) has configured, for example on another stream,
    /// or as another group of the same transport. The worker's signal for a graceful shutdown is
    /// replaced: its shutdown begins when [`shutdown`](Self::shutdown) is called.
    ///
    /// # Panics
    /// If the application cannot be served, or if its transport is not that of the harness.
    #[track_caller]
    pub fn run<A>(&mut self, serve: Serve<Memory, A>) -> impl Future<Output = ()> + Send
    where
        A: Servable,
    {
        assert!(
            serve.transport().is_same_broker(&self.waits.memory),
            "it is served from another memory transport than the one of this harness: use \
             `harness.memory()`"
        );
        self.spawn(serve, Location::caller())
    }

    async fn spawn<A>(&mut self, serve: Serve<Memory, A>, at: &'static Location<'static>)
    where
        A: Servable,
    {
        let settings = serve.transport().settings();
        let mut app_end = AppEnd {
            group: format!("group `{}` of stream `{}`", settings.group, settings.stream),
            journal: self.waits.journal.clone(),
            stop: self.stop.clone(),
            fault: Some("it panicked".to_owned()),
        };
        let serve = serve.with_graceful_shutdown(self.stop.clone().cancelled_owned());
        let opened_before = self.waits.journal.counts().opened;
        self.apps.spawn(async move { app_end.note(serve.await) });
        loop {
            let changed = self.waits.journal.changed();
            if let Some(fault) = self.waits.journal.fault() {
                panic!("{fault} (served at {at})");
            }
            if self.waits.journal.counts().opened > opened_before {
                return;
            }
            changed.await;
        }
    }

    /// Waits until all messages are handled, including those that handlers send: no message waits
    /// for delivery, no handler runs, and no event is buffered. Does not wait for retries and
    /// delayed tasks that are not due.
    ///
    /// If the clock is paused, it advances during this wait only while a running handler sleeps.
    ///
    /// # Panics
    /// If the wait takes longer than the [`patience`](Self::patience), if there are more deliveries
    /// than [`max_deliveries`](Self::max_deliveries), or if an application ended unexpectedly.
    /// The text lists the running handlers and all records.
    #[track_caller]
    pub fn settled(&self) -> impl Future<Output = ()> + Send {
        self.waits.settled(Location::caller())
    }

    /// Waits until everything is [settled](Self::settled), then until the next message is due, then
    /// until everything is settled again. A message is due at a retry, at the time of a delayed
    /// task, or when a lease ends. Returns the length of the wait for the message, or `None` if no
    /// message waits.
    ///
    /// # Panics
    /// As [`settled`](Self::settled).
    #[track_caller]
    pub fn advance_to_next(&self) -> impl Future<Output = Option<Duration>> + Send {
        self.waits.advance_to_next(Location::caller())
    }

    /// Sleeps for this time, then waits until everything is [settled](Self::settled).
    ///
    /// # Panics
    /// As [`settled`](Self::settled).
    #[track_caller]
    pub fn advance(&self, time: Duration) -> impl Future<Output = ()> + Send {
        self.waits.advance(time, Location::caller())
    }

    /// Waits until no message is left: every task is done, was dropped, or is a dead letter.
    ///
    /// # Panics
    /// As [`settled`](Self::settled), or if there are more deliveries than
    /// [`max_deliveries`](Self::max_deliveries) in the whole wait.
    #[track_caller]
    pub fn finished(&self) -> impl Future<Output = ()> + Send {
        self.waits.finished(Location::caller())
    }

    /// Returns the time until the next message is due, or `None` if no message waits.
    pub fn next_due(&self) -> Option<Duration> {
        let due = self.waits.memory.outlook().next_due?;
        Some(due.saturating_duration_since(tokio::time::Instant::now()))
    }

    /// Returns all records, in order.
    pub fn records(&self) -> Vec<Record> {
        self.waits.journal.records()
    }

    /// Shuts down all applications gracefully. The records are kept, and applications can be served
    /// again, as if the process had restarted.
    ///
    /// # Panics
    /// If handlers outlive the shutdown deadline, or an application has failed.
    #[track_caller]
    pub fn shutdown(&mut self) -> impl Future<Output = ()> + Send {
        self.close(Location::caller())
    }

    async fn close(&mut self, at: &'static Location<'static>) {
        self.stop.cancel();
        let mut first_failure = self.waits.journal.fault();
        while let Some(ended) = self.apps.join_next().await {
            let failure = match ended {
                Ok(ended) => ended.err().map(|error| error.chain()),
                Err(error) => Some(error.to_string()),
            };
            first_failure = first_failure.or(failure);
        }
        if let Some(failure) = first_failure {
            panic!(
                "the shutdown at {at} was not graceful: {failure}\n\n{}",
                Listing::new(&self.records())
            );
        }
        self.stop = CancellationToken::new();
    }
}

impl fmt::Debug for Harness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Harness")
            .field("memory", &self.waits.memory)
            .field("counts", &self.waits.journal.counts())
            .finish_non_exhaustive()
    }
}

/// Reports an application that fails, or panics, to the journal. Reports nothing once the harness
/// shuts the application down.
struct AppEnd {
    group: String,
    journal: Arc<Journal>,
    stop: CancellationToken,
    /// The fault to report. Before [`note`](Self::note) is called, it says that the application
    /// panicked.
    fault: Option<String>,
}

impl AppEnd {
    /// Notes the result of the application. Until the harness shuts down, only the test can force a
    /// worker to shut down. So such a forced shutdown is no failure.
    fn note(&mut self, result: Result<(), Error>) -> Result<(), Error> {
        let result = result.or_else(|error| {
            let is_by_test = error.is_forced_shutdown() && !self.stop.is_cancelled();
            if is_by_test { Ok(()) } else { Err(error) }
        });
        self.fault = result.as_ref().err().map(Error::chain);
        result
    }
}

impl Drop for AppEnd {
    fn drop(&mut self) {
        if let Some(fault) = self.fault.take().filter(|_| !self.stop.is_cancelled()) {
            let group = &self.group;
            let fault = format!("the application that serves {group} has ended: {fault}");
            self.journal.add_fault(fault);
        }
    }
}
