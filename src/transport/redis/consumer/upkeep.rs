//! The upkeep of a consumer: renews leases, and maintains the streams and the group.
//!
//! One thread runs the upkeep of all consumers of the process. Its runtime is separate from the
//! application's, so a handler that blocks a thread does not delay the renewal of leases. If the
//! application's runtime runs no task at all for some time, the [`Canary`] stops the renewals. The
//! upkeep also has separate connections, which the consumers of a source share.
//!
//! A *tick* is one periodic run of the upkeep. A tick makes one script call that renews leases and
//! maintains the streams. A few more calls do other work.

use std::{
    sync::{Arc, Mutex, Weak},
    thread,
};

use redis::Cmd;
use tokio::{
    runtime::Handle,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    canary::Canary,
    due_timers::DueTimers,
    health::ClockReading,
    lease::LeaseRenewer,
    maintenance::Maintenance,
    member::Member,
    registry::RegistryReader,
    served_names::NameRecorder,
    tick::TickResponse,
    upkeep_connection::{UpkeepConnection, UpkeepPipeline},
};
use crate::{
    error::Error,
    sync::lock,
    transport::{
        Counters,
        redis::{
            response::wrong_length,
            scripts,
            server::{Connector, LogLimit, Outage},
        },
    },
};

/// The upkeep of one consumer. One of the [`StopSignals`] stops it.
pub(super) struct Upkeep {
    pub(super) member: Arc<Member>,
    pub(super) connector: Connector,
    /// The connections, which all consumers of a source share.
    pub(super) pipeline: UpkeepPipeline,
    pub(super) counters: Arc<Counters>,
    pub(super) renewer: LeaseRenewer,
    pub(super) maintenance: Maintenance,
    /// Timers for the next due messages of the streams.
    pub(super) due_timers: Arc<DueTimers>,
    /// Reads the registry of the streams. `None` if the source serves no registry.
    pub(super) registry: Option<RegistryReader>,
    /// Records the names of the messages that this worker serves. `None` if there is nothing to
    /// record.
    pub(super) names: Option<NameRecorder>,
    /// Detects that the application's runtime no longer runs tasks.
    pub(super) canary: Arc<Canary>,
    /// Limits the warnings of the canary.
    pub(super) stall_warnings: LogLimit,
    /// Logs the ticks that fail.
    pub(super) outage: Outage,
    pub(super) stop_signals: StopSignals,
}

/// The signals that stop the upkeep, and the signal that it has stopped.
#[derive(Debug, Clone, Default)]
pub(super) struct StopSignals {
    /// Cancelled when the source is dropped.
    pub(super) closed: CancellationToken,
    /// Cancelled before the consumer leaves the group, because a later command of the upkeep would
    /// create the consumer again.
    pub(super) leaving: CancellationToken,
    /// Cancelled when the upkeep has stopped.
    pub(super) ended: CancellationToken,
}

/// The thread of the upkeep. It ends with the last consumer of the process.
struct UpkeepThread {
    runtime: Handle,
    /// Ends the thread when it is dropped.
    _end: DropGuard,
}

impl UpkeepThread {
    /// Returns the thread of the process. Starts it if it is not running.
    fn shared() -> Result<Arc<Self>, Error> {
        static THREAD: Mutex<Weak<UpkeepThread>> = Mutex::new(Weak::new());
        let mut shared = lock(&THREAD);
        if let Some(running) = shared.upgrade() {
            return Ok(running);
        }
        let start_failed = |error: std::io::Error| {
            Error::config("the thread that renews leases could not be started").with_source(error)
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(start_failed)?;
        let end = CancellationToken::new();
        let started = Arc::new(Self {
            runtime: runtime.handle().clone(),
            _end: end.clone().drop_guard(),
        });
        thread::Builder::new()
            .name("campanile-lease".into())
            .spawn(move || runtime.block_on(end.cancelled()))
            .map_err(start_failed)?;
        *shared = Arc::downgrade(&started);
        Ok(started)
    }
}

/// Spawns a future on the thread of the upkeep. The thread ends when its last future has ended.
pub(super) fn spawn_on_upkeep(
    future: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Error> {
    let thread = UpkeepThread::shared()?;
    let runtime = thread.runtime.clone();
    runtime.spawn(async move {
        future.await;
        drop(thread);
    });
    Ok(())
}

impl Upkeep {
    /// Starts the upkeep on its thread.
    pub(super) fn start(self) -> Result<(), Error> {
        // In a simulation the upkeep runs on a runtime of the simulated process.
        #[cfg(test)]
        if let Some(runtime) = self.connector.upkeep_runtime() {
            runtime.spawn(self.run());
            return Ok(());
        }
        spawn_on_upkeep(self.run())
    }

    async fn run(mut self) {
        let _ended = self.stop_signals.ended.clone().drop_guard();
        let streams = self.maintenance.streams.all();
        let key = streams
            .first()
            .map(|stream| stream.keys.stream_key.as_str());
        let lease = self.member.lease;
        let connection = (self.pipeline).connection(&self.connector, &self.counters, lease, key);
        let mut ticks = interval(self.member.interval());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.stop_signals.closed.cancelled() => return,
                () = self.stop_signals.leaving.cancelled() => {
                    // A last tick stores the counts since the previous tick in the history.
                    if self.maintenance.has_counts() {
                        self.tick(&connection).await;
                    }
                    return;
                }
                _ = ticks.tick() => {
                    self.tick(&connection).await;
                }
                due = self.due_timers.expired() => self.maintenance.promote(&connection, due).await,
            }
        }
    }

    /// Runs one tick, unless the application's runtime is stalled.
    async fn tick(&mut self, connection: &UpkeepConnection) {
        if let Some(since) = self.canary.stalled_for() {
            self.renewer.health.failed();
            if let Some(withheld) = self.stall_warnings.admit() {
                tracing::error!(
                    group = %self.member.group,
                    consumer = %self.member.consumer,
                    withheld,
                    "the application's runtime has run no task for {since:.0?}; its leases are not \
                     renewed any more, and other workers claim its deliveries: look for a handler that \
                     blocks"
                );
            }
            return;
        }
        match self.try_tick(connection).await {
            Ok(()) => {
                self.outage.record_success();
                if let Some(names) = &mut self.names {
                    let streams = self.maintenance.streams.all();
                    names.record(connection, &self.member, &streams).await;
                }
            }
            Err(error) => {
                self.renewer.health.failed();
                let address = self.connector.address();
                self.outage
                    .record_failed_attempt(&address, "renew the leases", &error);
            }
        }
    }

    /// Runs one tick. There is a tick even without leases to renew, because its success shows that
    /// this consumer can reach the server.
    async fn try_tick(&mut self, connection: &UpkeepConnection) -> Result<(), Error> {
        let (leases, further_leases) = self.renewer.due().split();
        let mut request = self.maintenance.request(|stream| leases.has(stream));
        request.registry = self.registry.as_mut().map(RegistryReader::request);
        let keys = request.keys();
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        let sent_at = Instant::now();
        let args = |cmd: &mut Cmd| request.add_args(&self.member, &leases, cmd);
        let response = connection.script(&scripts::TICK, &keys, args).await;
        let result = response.and_then(TickResponse::decode).and_then(|result| {
            let (expected, found) = (request.streams.len(), result.streams.len());
            match expected == found {
                true => Ok(result),
                false => Err(wrong_length(expected, found)),
            }
        });
        // If this tick has failed, the next tick sends its counts.
        let result = result.inspect_err(|_| self.maintenance.keep_counts(&request))?;
        let reading = ClockReading {
            sent_at,
            answered_at: Instant::now(),
            on_server: result.time,
        };
        self.maintenance.note_time(result.time);
        // The results of the streams are in the order of the request.
        let (mut lost, mut questions) = (Vec::new(), Vec::new());
        for (requested, mut stream_result) in request.streams.iter().zip(result.streams) {
            lost.extend(stream_result.take_lost(&requested.stream));
            if let Some(maintained) = stream_result.maintained {
                let question = self.maintenance.handle_tick(requested, maintained);
                questions.extend(question.map(|question| (requested.stream.clone(), question)));
            }
        }
        if let Some(registry) = &mut self.registry {
            registry.registered(result.time, result.registered);
        }
        // Leases that did not fit into the tick are renewed by further calls.
        let leases = (leases, further_leases);
        self.renewer
            .handle_tick(connection, leases, reading, lost)
            .await?;
        let consumer = &self.member.consumer;
        self.maintenance
            .announcer
            .answer(connection, consumer, questions)
            .await;
        match &mut self.registry {
            Some(registry) => registry.retire(connection, result.time).await,
            None => Ok(()),
        }
    }
}
