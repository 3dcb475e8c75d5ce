//! An application, run for a test.

use std::{fmt, panic::Location, sync::Arc, time::Duration};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    journal::Journal,
    record::{Listing, Record},
    settle,
};
use crate::{
    client::Client,
    error::Error,
    serve::{Serve, serve},
    service::IntoService,
    transport::memory::Memory,
};

/// Runs applications over the memory transport, and sees all that happens there. See the
/// [module](super).
///
/// Dropping it ends the applications where they are; nothing of it goes on.
pub struct Harness {
    pub(super) memory: Memory,
    pub(super) journal: Arc<Journal>,
    pub(super) patience: Duration,
    pub(super) most_deliveries: u64,
    apps: JoinSet<Result<(), Error>>,
    stop: CancellationToken,
}

impl Harness {
    /// Over a memory transport of its own, with nothing served yet.
    #[expect(clippy::new_without_default, reason = "nobody has it made by default")]
    pub fn new() -> Self {
        Self::over(Memory::new())
    }

    /// Over this memory transport: one whose settings matter, or that an application's state holds
    /// a client of. What was sent before is not seen.
    ///
    /// # Panics
    /// When another harness watches it.
    #[track_caller]
    pub fn over(memory: Memory) -> Self {
        let journal = Arc::new(Journal::new());
        assert!(
            memory.watch(journal.clone()),
            "this memory transport has a harness already"
        );
        Self {
            memory,
            journal,
            patience: Duration::from_secs(60),
            most_deliveries: 10_000,
            apps: JoinSet::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Serves an application over a memory transport of its own.
    ///
    /// # Panics
    /// When the application cannot be served.
    #[track_caller]
    pub fn start<A>(app: A) -> impl Future<Output = Self> + Send
    where
        A: IntoService + Send + 'static,
    {
        let at = Location::caller();
        async move {
            let mut harness = Self::new();
            harness.open(serve(harness.memory(), app), at).await;
            harness
        }
    }

    /// How long [`settled`](Self::settled) and what is built on it wait for handlers to end, on
    /// tokio's clock: no time at all where that is paused. 60 s unless set.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How many deliveries one wait may see before it fails: messages that cause one another for
    /// ever would make it endless. 10,000 unless set.
    #[must_use]
    pub fn most_deliveries(mut self, deliveries: u64) -> Self {
        self.most_deliveries = deliveries;
        self
    }

    /// A handle of the transport.
    pub fn memory(&self) -> Memory {
        self.memory.clone()
    }

    /// A client of the transport.
    pub fn client(&self) -> Client<Memory> {
        Client::new(self.memory())
    }

    /// Serves an application as the settings of the harness's handle say. It listens when this
    /// returns.
    ///
    /// # Panics
    /// When the application cannot be served.
    #[track_caller]
    pub fn serve<A>(&mut self, app: A) -> impl Future<Output = ()> + Send
    where
        A: IntoService + Send + 'static,
    {
        let serve = serve(self.memory(), app);
        self.open(serve, Location::caller())
    }

    /// Serves what [`serve`](crate::serve()) made, with whatever it was told: on another stream or
    /// as another group of the same transport, say. Its graceful shutdown is the harness's.
    ///
    /// # Panics
    /// When the application cannot be served, or its transport is not the one that is watched.
    #[track_caller]
    pub fn run<A>(&mut self, serve: Serve<Memory, A>) -> impl Future<Output = ()> + Send
    where
        A: IntoService + Send + 'static,
    {
        assert!(
            serve.transport().is_same_broker(&self.memory),
            "it is served from another memory transport than the one of this harness: use \
             `harness.memory()`"
        );
        self.open(serve, Location::caller())
    }

    async fn open<A>(&mut self, serve: Serve<Memory, A>, at: &'static Location<'static>)
    where
        A: IntoService + Send + 'static,
    {
        let settings = serve.transport().settings();
        let mut end = End {
            group: format!("group `{}` of stream `{}`", settings.group, settings.stream),
            journal: self.journal.clone(),
            stop: self.stop.clone(),
            fault: Some("it panicked".to_owned()),
        };
        let serve = serve.with_graceful_shutdown(self.stop.clone().cancelled_owned());
        let before = self.journal.progress().opened;
        self.apps.spawn(async move { end.note(serve.await) });
        loop {
            let changed = self.journal.changed();
            if let Some(fault) = self.journal.fault() {
                panic!("{fault} (served at {at})");
            }
            if self.journal.progress().opened > before {
                return;
            }
            changed.await;
        }
    }

    /// Waits until everything that was sent has been handled, and everything that its handlers
    /// sent in turn: no message is in line, no handler runs, no event is buffered. What waits for a
    /// time to come, a retry or a delayed task, goes on waiting.
    ///
    /// No time passes by itself; where a handler sleeps, the clock goes on as far as it takes.
    ///
    /// # Panics
    /// When that takes longer than the [`patience`](Self::patience) or more than
    /// [`most_deliveries`](Self::most_deliveries), and when an application has ended by itself. The
    /// text lists what still runs, and what has happened.
    #[track_caller]
    pub fn settled(&self) -> impl Future<Output = ()> + Send {
        settle::settled(self, Location::caller())
    }

    /// Waits as [`settled`](Self::settled) does, then until the next message is due that waits for
    /// its time (a retry, a delayed task, the end of a lost worker's lease), then until that is
    /// handled. Returns how long the clock had to go on, or `None` when nothing waits.
    ///
    /// # Panics
    /// As [`settled`](Self::settled) does.
    #[track_caller]
    pub fn advance_to_next(&self) -> impl Future<Output = Option<Duration>> + Send {
        settle::advance_to_next(self, Location::caller())
    }

    /// Lets this much time pass, and waits as [`settled`](Self::settled) does.
    ///
    /// # Panics
    /// As [`settled`](Self::settled) does.
    #[track_caller]
    pub fn advance(&self, time: Duration) -> impl Future<Output = ()> + Send {
        settle::advance(self, time, Location::caller())
    }

    /// Lets time pass until nothing waits any more: every task is done, or dead, or dropped.
    ///
    /// # Panics
    /// As [`settled`](Self::settled) does; also when it takes more than
    /// [`most_deliveries`](Self::most_deliveries) over all.
    #[track_caller]
    pub fn finished(&self) -> impl Future<Output = ()> + Send {
        settle::finished(self, Location::caller())
    }

    /// How long until the next message is due that waits for its time; `None` when nothing waits.
    pub fn next_due(&self) -> Option<Duration> {
        let due = self.memory.outlook().next_due?;
        Some(due.saturating_duration_since(tokio::time::Instant::now()))
    }

    /// Everything that has happened, in order.
    pub fn records(&self) -> Vec<Record> {
        self.journal.records()
    }

    /// Shuts all applications down gracefully. What has happened can still be looked at, and
    /// applications can be served again, as after a restart.
    ///
    /// # Panics
    /// When handlers outlive the shutdown's deadline, or an application has ended in another way.
    #[track_caller]
    pub fn shutdown(&mut self) -> impl Future<Output = ()> + Send {
        self.close(Location::caller())
    }

    async fn close(&mut self, at: &'static Location<'static>) {
        self.stop.cancel();
        let mut failed = self.journal.fault();
        while let Some(ended) = self.apps.join_next().await {
            let failure = match ended {
                Ok(ended) => ended.err().map(|error| error.chain()),
                Err(error) => Some(error.to_string()),
            };
            failed = failed.or(failure);
        }
        if let Some(failure) = failed {
            panic!(
                "the shutdown at {at} was not graceful: {failure}\n\n{}",
                Listing::of(&self.records())
            );
        }
        self.stop = CancellationToken::new();
    }
}

impl fmt::Debug for Harness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Harness")
            .field("memory", &self.memory)
            .field("progress", &self.journal.progress())
            .finish_non_exhaustive()
    }
}

/// Notes that an application has ended, if nobody has told it to end.
struct End {
    group: String,
    journal: Arc<Journal>,
    stop: CancellationToken,
    fault: Option<String>,
}

impl End {
    /// Notes how it ended. A forced end before the harness's own shutdown was the test's wish.
    fn note(&mut self, result: Result<(), Error>) -> Result<(), Error> {
        let result = result.or_else(|error| {
            let wished = error.is_forced_shutdown() && !self.stop.is_cancelled();
            if wished { Ok(()) } else { Err(error) }
        });
        self.fault = result.as_ref().err().map(Error::chain);
        result
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(fault) = self.fault.take().filter(|_| !self.stop.is_cancelled()) {
            let group = &self.group;
            let fault = format!("the application that serves {group} has ended: {fault}");
            self.journal.add_fault(fault);
        }
    }
}
