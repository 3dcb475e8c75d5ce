//! One worker: the loop that fetches deliveries and starts them, and its end.

use std::{
    future::{pending, poll_fn},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tower::ServiceExt;

use super::{in_flight::InFlight, log::WorkerLog, policy::Policy, work::Work};
use crate::{
    error::{Error, ErrorKind},
    message::EscapedText,
    service::MessageService,
    sync::{LazyTimer, next_turn},
    transport::{Source, WorkerMonitor},
};

/// If all slots are taken for this time, a log line reports the stall.
const STALL_REPORT_AFTER: Duration = Duration::from_secs(5);
/// If deliveries wait this long to start, a handler is assumed to block its thread. A timer that
/// fires more often would slow the loop measurably.
const MAX_START_DELAY: Duration = Duration::from_millis(5);

/// The maximum number of times that the loop yields to handlers before a fetch, if few slots are
/// free.
const MAX_YIELDS: usize = 4;
/// The maximum time that the loop waits for verdicts to be confirmed before a fetch. After this
/// time the worker fetches for its free slots, even if the server confirms nothing.
const MAX_SETTLE_WAIT: Duration = Duration::from_millis(100);

/// A worker: an open source, its application, and the deliveries in flight.
pub(super) struct Worker<Src: Source, S> {
    source: Src,
    app: S,
    policy: Policy,
    in_flight: InFlight<Work<S, Src::Settle>>,
    monitor: Arc<WorkerMonitor>,
}

/// The signals that end a worker.
pub(super) struct EndSignals {
    pub(super) graceful: BoxFuture<'static, ()>,
    pub(super) forced: BoxFuture<'static, ()>,
}

/// The reason why the loop ended.
enum EndReason {
    Gracefully,
    ByForce,
    Broken(Error),
}

impl<Src, S> Worker<Src, S>
where
    Src: Source,
    S: MessageService + Clone + Send + 'static,
{
    pub(super) fn new(source: Src, app: S, policy: Policy, monitor: Arc<WorkerMonitor>) -> Self {
        Self {
            source,
            app,
            policy,
            in_flight: InFlight::new(),
            monitor,
        }
    }

    /// Serves until a signal or an error ends the worker, and logs the end.
    pub(super) async fn run(
        self,
        stop: EndSignals,
        shutdown_timeout: Duration,
        log: WorkerLog,
    ) -> Result<(), Error> {
        let tally = self.in_flight.tally();
        let result = self.serve_and_shut_down(stop, shutdown_timeout, &log).await;
        log.log_end(&tally, &result);
        result
    }

    /// Serves until a signal or an error ends the worker, and then shuts down.
    async fn serve_and_shut_down(
        mut self,
        mut stop: EndSignals,
        shutdown_timeout: Duration,
        log: &WorkerLog,
    ) -> Result<(), Error> {
        let loop_error = match self.serve(&mut stop).await {
            EndReason::ByForce => return self.end_by_force().await,
            EndReason::Gracefully => None,
            EndReason::Broken(error) => Some(error),
        };
        self.monitor.set_draining();
        log.log_drain(self.in_flight.delivery_count(), shutdown_timeout);
        // A second signal ends the graceful shutdown at any step.
        let finished = tokio::select! {
            biased;
            () = &mut stop.forced => {
                let forced = self.end_by_force().await;
                return loop_error.map_or(forced, Err);
            }
            finished = self.finish(shutdown_timeout) => finished,
        };
        if finished.is_err() {
            self.drop_all().await;
        }
        let closed = tokio::select! {
            biased;
            () = stop.forced => Ok(()),
            closed = self.source.close() => closed,
        };
        loop_error.map_or(finished.and(closed), Err)
    }

    /// Serves until a signal ends the worker, or the source or the service fails.
    async fn serve(&mut self, stop: &mut EndSignals) -> EndReason {
        let mut stall = StallWatch::new();
        let mut start_watch = StartWatch::new();
        loop {
            // An operator may lower this number at any time. It is 0 while the worker is paused.
            let max = self.monitor.max_in_flight();
            self.wait_briefly_for_slots(max).await;
            self.log_panics();
            let free = max.saturating_sub(self.in_flight.delivery_count());
            stall.observe(free == 0 && max > 0);
            let max_bytes = self.source.settings().max_in_flight_bytes;
            let step = if free == 0 || self.in_flight.bytes() >= max_bytes {
                self.wait_for_capacity(stop, &mut stall, &mut start_watch, max)
                    .await
            } else {
                // While at least half of the capacity is free, the end of a delivery does not
                // interrupt the read. The next fetch counts the slot of that delivery as free.
                let is_half_free =
                    free >= max.div_ceil(2) && self.in_flight.bytes() < max_bytes / 2;
                self.fetch(stop, &mut start_watch, free, is_half_free).await
            };
            if let Err(reason) = step {
                return reason;
            }
        }
    }

    /// Waits until a delivery ends or an operator changes the number of slots, which is `max`.
    async fn wait_for_capacity(
        &mut self,
        stop: &mut EndSignals,
        stall: &mut StallWatch,
        start_watch: &mut StartWatch,
        max: usize,
    ) -> Result<(), EndReason> {
        tokio::select! {
            biased;
            () = &mut stop.forced => return Err(EndReason::ByForce),
            () = &mut stop.graceful => return Err(EndReason::Gracefully),
            () = self.in_flight.ended() => {}
            () = self.monitor.changed() => {}
            () = start_watch.passed(), if self.in_flight.has_unstarted() => {
                self.in_flight.start_on_another_thread();
            }
            () = stall.stalled() => self.report_stall(max),
        }
        Ok(())
    }

    /// Waits until the service is ready, fetches up to `free` deliveries, and starts them. The end
    /// of a delivery interrupts the wait for deliveries unless `is_half_free`.
    async fn fetch(
        &mut self,
        stop: &mut EndSignals,
        start_watch: &mut StartWatch,
        free: usize,
        is_half_free: bool,
    ) -> Result<(), EndReason> {
        // `ready` reserves capacity, such as a permit. Dropping the clone before the wait for
        // deliveries releases the capacity: an idle worker must not hold a permit that others could
        // use.
        let mut probe = self.app.clone();
        tokio::select! {
            biased;
            () = &mut stop.forced => return Err(EndReason::ByForce),
            () = &mut stop.graceful => return Err(EndReason::Gracefully),
            ready = probe.ready() => if let Err(error) = ready {
                let text = "the service is broken and cannot serve";
                let error = Error::new(ErrorKind::Service, text).with_source(error);
                tracing::error!(error = error.chain(), "the service is broken");
                return Err(EndReason::Broken(error));
            },
        }
        drop(probe);
        tokio::select! {
            biased;
            () = &mut stop.forced => return Err(EndReason::ByForce),
            () = &mut stop.graceful => return Err(EndReason::Gracefully),
            () = self.monitor.changed() => {}
            deliveries = self.source.next(free) => {
                let deliveries = deliveries.map_err(EndReason::Broken)?;
                let work =
                    |delivery| Work::new(&self.app, &self.policy, &self.monitor, delivery);
                self.in_flight.start(deliveries.into_iter().map(work));
                start_watch.reset();
            }
            () = self.in_flight.ended(), if !is_half_free => {}
            () = start_watch.passed(), if self.in_flight.has_unstarted() => {
                self.in_flight.start_on_another_thread();
            }
        }
        Ok(())
    }

    /// Logs panics while deliveries are settled. Panics of handlers do not get here: they are
    /// caught, and fail the deliveries.
    fn log_panics(&mut self) {
        while let Some(error) = self.in_flight.next_panic() {
            tracing::error!(%error, "the task of a delivery failed");
        }
    }

    /// Waits briefly for deliveries to end while few slots are free, because reading many
    /// deliveries takes little longer than reading one. Yields to handlers up to [`MAX_YIELDS`]
    /// times. Then waits for verdicts to be confirmed, for at most [`MAX_SETTLE_WAIT`]. May return
    /// while no slot is free.
    async fn wait_briefly_for_slots(&mut self, max: usize) {
        let free = || max.saturating_sub(self.in_flight.delivery_count());
        for _ in 0..MAX_YIELDS {
            if free() >= max / 2 {
                return;
            }
            next_turn().await;
        }
        // If deliveries wait to start, a handler may block its thread. The loop does not wait in
        // this case, so that it can start the deliveries on another thread.
        let may_wait =
            || self.in_flight.settling_count() > free() && !self.in_flight.has_unstarted();
        let settled = async {
            while free() < max / 2 && may_wait() {
                self.in_flight.ended().await;
            }
        };
        let _ = tokio::time::timeout(MAX_SETTLE_WAIT, settled).await;
    }

    /// Logs that all slots are taken by handlers that do not end. This may be a deadlock: if
    /// handlers wait for replies to requests that only this worker can handle, no slot is free for
    /// those requests, and each handler waits until its request times out.
    fn report_stall(&self, slots: usize) {
        let settings = self.source.settings();
        let stream = EscapedText::new(&settings.stream);
        let group = EscapedText::new(&settings.group);
        match self.source.requests_waiting() {
            0 => tracing::info!(
                %stream, %group,
                "all {slots} slots of this worker have been taken for {STALL_REPORT_AFTER:?} by \
                 handlers that have not finished; no message is fetched meanwhile"
            ),
            requests => tracing::warn!(
                %stream, %group,
                "all {slots} slots of this worker have been taken for {STALL_REPORT_AFTER:?} by \
                 handlers that have not finished, while {requests} requests of this process wait \
                 for replies; if the handlers wait for replies of this same worker, none of them \
                 can go on: serve the requests with another worker, or raise `max_in_flight`"
            ),
        }
    }

    /// Stops the source, releases the deliveries that were not started, and waits until the started
    /// deliveries are settled. Returns an error after `shutdown_timeout`.
    async fn finish(&mut self, shutdown_timeout: Duration) -> Result<(), Error> {
        self.source.stop().await;
        self.in_flight.stop();
        let all = async {
            while self.in_flight.delivery_count() > 0 {
                let ended = tokio::time::timeout(MAX_START_DELAY, self.in_flight.ended()).await;
                if ended.is_err() {
                    self.in_flight.start_on_another_thread();
                }
            }
        };
        let finished = tokio::time::timeout(shutdown_timeout, all).await;
        finished.map_err(|_| {
            let unfinished = match self.in_flight.running_count() {
                0 => "the outcomes of handlers were not confirmed",
                _ => "handlers were still running",
            };
            let text = format!("{unfinished} {shutdown_timeout:?} after the shutdown's signal");
            Error::new(ErrorKind::Timeout, text)
        })
    }

    /// Drops the running handlers. If deliveries were in flight, returns an error with their
    /// number.
    async fn end_by_force(&mut self) -> Result<(), Error> {
        let text = match self.drop_all().await {
            (0, 0) => return Ok(()),
            (0, unconfirmed) => format!(
                "the shutdown was forced before the outcomes of handlers were confirmed \
                 ({unconfirmed}); their messages may be delivered again"
            ),
            (running, _) => format!(
                "the shutdown was forced and dropped running handlers ({running}); their messages \
                 are delivered again when their leases end"
            ),
        };
        Err(Error::new(ErrorKind::ForcedShutdown, text))
    }

    /// Drops all deliveries. Returns the number of handlers that were running, and the number of
    /// outcomes that were not confirmed.
    async fn drop_all(&mut self) -> (usize, usize) {
        let (running, unconfirmed) = (
            self.in_flight.running_count(),
            self.in_flight.settling_count(),
        );
        self.in_flight.shut_down().await;
        if running > 0 {
            tracing::warn!(
                dropped = running,
                "running handlers were dropped; their messages are delivered again when the leases end"
            );
        }
        if unconfirmed > 0 {
            tracing::warn!(
                unconfirmed,
                "the outcomes of handlers were not confirmed; their messages may be delivered again"
            );
        }
        (running, unconfirmed)
    }
}

/// Notices when all slots have been taken for [`STALL_REPORT_AFTER`].
struct StallWatch {
    /// The time since which all slots are taken. `None` while a slot is free.
    full_since: Option<Instant>,
    /// Set once this stall was noticed.
    is_noticed: bool,
    timer: LazyTimer,
}

impl StallWatch {
    fn new() -> Self {
        Self {
            full_since: None,
            is_noticed: false,
            timer: LazyTimer::new(STALL_REPORT_AFTER),
        }
    }

    fn observe(&mut self, is_full: bool) {
        if is_full {
            self.full_since.get_or_insert_with(Instant::now);
        } else {
            self.full_since = None;
            self.is_noticed = false;
        }
    }

    /// Completes once for each stall.
    async fn stalled(&mut self) {
        match self.full_since {
            Some(since) if !self.is_noticed => {
                poll_fn(|cx| self.timer.poll_until(cx, since + STALL_REPORT_AFTER)).await;
                self.is_noticed = true;
            }
            _ => pending().await,
        }
    }
}

/// A timer that ends [`MAX_START_DELAY`] after the loop last woke a tokio task to start deliveries.
/// The loop waits for it only while deliveries are not started.
struct StartWatch {
    last_wakeup: Instant,
    timer: LazyTimer,
}

impl StartWatch {
    fn new() -> Self {
        Self {
            last_wakeup: Instant::now(),
            timer: LazyTimer::new(Duration::ZERO),
        }
    }

    /// Begins a new delay, because the loop has woken a tokio task.
    fn reset(&mut self) {
        self.last_wakeup = Instant::now();
    }

    /// Completes when the delay has passed, and begins a new one.
    async fn passed(&mut self) {
        let end = self.last_wakeup + MAX_START_DELAY;
        poll_fn(|cx| self.timer.poll_until(cx, end)).await;
        self.reset();
    }
}
