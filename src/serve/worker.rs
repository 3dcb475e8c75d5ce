//! One worker: the loop that fetches deliveries, and the work on each delivery.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::time::{Instant, timeout};
use tower::{Service, ServiceExt, timeout::error::Elapsed};

use super::{
    failure_span::poll_with_failure_span,
    give_up::GivenUp,
    in_flight::{HandleDelivery, InFlight, InFlightGuard},
    log::{self, MessageLog, WorkerLog},
    policy::{Policy, ServiceFailure},
};
use crate::{
    ablation::Mechanism,
    error::{BoxError, Error, ErrorKind},
    message::{Kind, Lease, Message, Shown},
    reply::Reply,
    routing::FromSubscription,
    service::MessageService,
    sync::{LazyTimer, next_turn},
    transport::{Delivery, Discarded, SettleDelivery, Source, Undecodable, Verdict, WorkerMonitor},
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
        let max_bytes = self.source.settings().max_in_flight_bytes;
        // The time since which all slots or all bytes are taken, and `true` once a log line has
        // reported this.
        let mut full_since = None;
        let mut stall_timer = LazyTimer::new(STALL_REPORT_AFTER);
        // The last time at which the loop woke a tokio task to start deliveries. If deliveries
        // still wait to start `MAX_START_DELAY` later, `wakeup_timer` fires, and the loop wakes
        // more tokio tasks.
        let mut last_wakeup = Instant::now();
        let mut wakeup_timer = LazyTimer::new(Duration::ZERO);
        loop {
            // An operator may lower this number at any time. It is 0 while the worker is paused.
            let max = self.monitor.max_in_flight();
            self.wait_briefly_for_slots(max).await;
            // Panics of handlers are caught and fail their deliveries, so a panic here comes from
            // settling.
            while let Some(error) = self.in_flight.next_panic() {
                tracing::error!(%error, "the task of a delivery failed");
            }
            let free = max.saturating_sub(self.in_flight.delivery_count());
            if free > 0 || max == 0 {
                full_since = None;
            }
            if free == 0 || self.in_flight.bytes() >= max_bytes {
                let (since, reported) = *full_since.get_or_insert((Instant::now(), false));
                let is_stalled = free == 0 && max > 0 && !reported;
                // Fetches nothing until a delivery ends or the number of slots changes.
                tokio::select! {
                    biased;
                    () = &mut stop.forced => return EndReason::ByForce,
                    () = &mut stop.graceful => return EndReason::Gracefully,
                    () = self.in_flight.ended() => {}
                    () = self.monitor.changed() => {}
                    () = poll_fn(|cx| wakeup_timer.poll_until(cx, last_wakeup + MAX_START_DELAY)),
                        if self.in_flight.has_unstarted() =>
                    {
                        last_wakeup = Instant::now();
                        self.in_flight.start_on_another_thread();
                    }
                    () = poll_fn(|cx| stall_timer.poll_until(cx, since + STALL_REPORT_AFTER)),
                        if is_stalled =>
                    {
                        full_since = Some((since, true));
                        self.report_stall(max);
                    }
                }
                continue;
            }
            // `ready` reserves capacity, such as a permit. Dropping the clone before the wait for
            // messages releases the capacity: an idle worker must not hold a permit that others
            // could use.
            let mut probe = self.app.clone();
            tokio::select! {
                biased;
                () = &mut stop.forced => return EndReason::ByForce,
                () = &mut stop.graceful => return EndReason::Gracefully,
                ready = probe.ready() => if let Err(error) = ready {
                    let error = Error::new(ErrorKind::Service, "the service is broken and cannot serve")
                        .with_source(error);
                    tracing::error!(error = error.chain(), "the service is broken");
                    return EndReason::Broken(error);
                },
            }
            drop(probe);
            // While at least half of the capacity is free, the end of a delivery does not interrupt
            // the read. The next fetch counts the slot that it frees.
            let is_half_free = free >= max.div_ceil(2) && self.in_flight.bytes() < max_bytes / 2;
            tokio::select! {
                biased;
                () = &mut stop.forced => return EndReason::ByForce,
                () = &mut stop.graceful => return EndReason::Gracefully,
                () = self.monitor.changed() => {}
                deliveries = self.source.next(free) => match deliveries {
                    Ok(deliveries) => {
                        let work = |delivery| {
                            Work::new(&self.app, &self.policy, &self.monitor, delivery)
                        };
                        self.in_flight.start(deliveries.into_iter().map(work));
                        last_wakeup = Instant::now();
                    }
                    Err(error) => return EndReason::Broken(error),
                },
                () = self.in_flight.ended(), if !is_half_free => {}
                () = poll_fn(|cx| wakeup_timer.poll_until(cx, last_wakeup + MAX_START_DELAY)),
                    if self.in_flight.has_unstarted() =>
                {
                    last_wakeup = Instant::now();
                    self.in_flight.start_on_another_thread();
                }
            }
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
        // this case, so that it can wake other tokio tasks.
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
        let stream = Shown::new(&settings.stream);
        let group = Shown::new(&settings.group);
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

/// A delivery, and its clone of the service.
struct Work<S, Settler> {
    content: Result<(S, Message), Undecodable>,
    settler: Settler,
    policy: Policy,
    monitor: Arc<WorkerMonitor>,
}

impl<S: Service<Message> + Clone, Settler> Work<S, Settler> {
    fn new(
        app: &S,
        policy: &Policy,
        monitor: &Arc<WorkerMonitor>,
        delivery: Delivery<Settler>,
    ) -> Self {
        let Delivery {
            content,
            settle: settler,
        } = delivery;
        let content = content.map(|mut message| {
            let parts = message.parts_mut();
            parts.max_attempts.get_or_insert(policy.max_deliveries);
            if message.kind() == Kind::Event {
                message.parts_mut().extensions.insert(FromSubscription);
            }
            let mut app = app.clone();
            // Polls readiness here and not in the tokio tasks, because these may run in any order.
            // So a layer that keeps an order sees the deliveries in the order of the source. The
            // poll also reserves the capacity of the layers before the loop checks readiness again.
            // If the layers are not ready, the delivery waits in its tokio task.
            let _ = app.ready().now_or_never();
            (app, message)
        });
        Self {
            content,
            settler,
            policy: policy.clone(),
            monitor: monitor.clone(),
        }
    }
}

impl<S, Settler> HandleDelivery for Work<S, Settler>
where
    S: MessageService + Send + 'static,
    Settler: SettleDelivery,
{
    fn bytes(&self) -> usize {
        match &self.content {
            Ok((_, message)) => message.payload().len(),
            Err(_) => 0,
        }
    }

    async fn handle(self, guard: InFlightGuard) {
        let verdict = match self.content {
            Ok((_, message)) if is_paused(&self.monitor, &message) => paused_verdict(),
            Ok((app, message)) => {
                let is_counted = !Mechanism::WorkerCounts.is_off();
                let running = is_counted.then(|| self.monitor.start(&message));
                let verdict = handle_message(app, message, &self.policy, &guard).await;
                if let Some(running) = running {
                    running.end(&verdict);
                }
                verdict
            }
            Err(undecodable) => undecodable_verdict(undecodable),
        };
        guard.tally().count(&verdict);
        self.settler
            .settle(verdict, on_settled(guard.mark_settling()));
    }
}

/// Returns `true` if an operator has paused the message's name on this worker. An event is never
/// delivered again, so it is not paused.
fn is_paused(monitor: &WorkerMonitor, message: &Message) -> bool {
    monitor.has_paused(message.name()) && message.kind() != Kind::Event
}

/// Returns the verdict on a message whose name is paused on this worker.
fn paused_verdict() -> Verdict {
    Verdict::Redeliver {
        after: None,
        counted: false,
        reason: "its name is paused on this worker".to_owned(),
    }
}

/// The result of a service that did not fail.
enum Handled {
    Reply(Reply),
    /// The service was not called. This is the verdict on the delivery.
    NotStarted(Verdict),
}

/// Runs the service and returns the verdict on the delivery. If the message expires before the
/// service is ready, it is not handled. If the worker stops before the service is ready, the
/// delivery is released.
async fn handle_message<S>(
    mut app: S,
    message: Message,
    policy: &Policy,
    guard: &InFlightGuard,
) -> Verdict
where
    S: MessageService,
{
    let message_log = MessageLog::new(&message);
    let hook = policy.on_give_up.as_ref();
    // An event is not stored, so it cannot become a dead letter.
    let hook = hook.filter(|_| message.kind() != Kind::Event);
    let hook_and_message = hook.map(|hook| (hook, message.clone()));
    // Calls the hook with the message if the verdict is a dead letter.
    let give_up = |verdict: &Verdict, error| {
        if let Verdict::DeadLetter { reason, .. } = verdict
            && let Some((hook, message)) = hook_and_message
        {
            let reason = reason.clone();
            hook.call(GivenUp {
                message,
                reason,
                error,
            });
        }
    };
    let attempt_timeout = message.parts().attempt_timeout;
    let deadline = message.parts().deadline;
    let drop_signal = message.parts().lease.as_ref().and_then(Lease::drop_signal);
    let is_late = || deadline.is_some_and(|deadline| deadline.has_passed());
    let expired = || {
        let verdict = policy.expired(message_log.kind);
        message_log.log_expired(&verdict);
        verdict
    };
    // The message expired before it was delivered.
    if is_late() {
        let verdict = expired();
        give_up(&verdict, None);
        return verdict;
    }
    // Waits for the service and calls it.
    let mut handling = pin!(async {
        match poll_fn(|cx| Poll::Ready(app.poll_ready(cx).map_err(Into::into))).await {
            Poll::Ready(ready) => ready?,
            // Boxed because this future is rare and large.
            Poll::Pending => {
                if !Box::pin(wait_until_ready(&mut app, message_log.kind, guard)).await? {
                    return Ok(Handled::NotStarted(Verdict::Release));
                }
                if is_late() {
                    return Ok(Handled::NotStarted(expired()));
                }
            }
        }
        let reply = match attempt_timeout {
            None => app.call(message).await.map_err(Into::into)?,
            // Boxed, so that the futures of messages without a timeout do not grow.
            Some(limit) => match Box::pin(timeout(limit, app.call(message))).await {
                Ok(result) => result.map_err(Into::into)?,
                Err(_) => return Err(Elapsed::new().into()),
            },
        };
        Ok(Handled::Reply(reply))
    });
    // `AssertUnwindSafe` is sound because nothing uses the service after a panic. The future is
    // polled in place, because moving it into the `catch_unwind` of `futures` would take as long as
    // finding the route of the message.
    let mut span = None;
    let catching = poll_fn(|cx| {
        let poll = AssertUnwindSafe(|| handling.as_mut().poll(cx));
        let polled;
        (polled, span) = poll_with_failure_span(|| catch_unwind(poll));
        polled.map_or_else(|panic| Poll::Ready(Err(panic)), |polled| polled.map(Ok))
    });
    let handled = match drop_signal {
        None => catching.await,
        // Boxed because few tasks can be cancelled.
        Some(drop_signal) => tokio::select! {
            biased;
            handled = catching => handled,
            () = Box::pin(drop_signal) => {
                // The server has ended the delivery already, so the verdict has no effect.
                return Verdict::Discard {
                    reason: Discarded::Requested,
                    answer: None,
                };
            }
        },
    };
    // The policy decides the verdict on a failure.
    let failure = match handled {
        Ok(Ok(Handled::Reply(reply))) => return Verdict::Done(Ok(reply)),
        Ok(Ok(Handled::NotStarted(verdict))) => {
            give_up(&verdict, None);
            return verdict;
        }
        Ok(Err(error)) => ServiceFailure::Returned(error),
        Err(panic) => ServiceFailure::panicked(&*panic),
    };
    let (kind, name) = (message_log.kind, &message_log.name);
    let attempts = (message_log.attempt, message_log.max_attempts);
    let verdict = policy.verdict(kind, name, attempts, &failure);
    message_log.log_failure(&failure.reason(kind, name), &verdict, span);
    give_up(&verdict, failure.into_error());
    verdict
}

/// Waits for the service to be ready. Returns `false` if the worker stops first.
async fn wait_until_ready<S>(
    app: &mut S,
    kind: Kind,
    guard: &InFlightGuard,
) -> Result<bool, BoxError>
where
    S: Service<Message, Error: Into<BoxError>>,
{
    tokio::select! {
        biased;
        ready = app.ready() => ready.map(|_| true).map_err(Into::into),
        // An event cannot be released.
        () = guard.stopping(), if kind != Kind::Event => Ok(false),
    }
}

/// Logs an entry that could not be decoded, and returns the verdict on it.
fn undecodable_verdict(undecodable: Undecodable) -> Verdict {
    log::undecodable(&undecodable);
    Verdict::DeadLetter {
        reason: undecodable.reason,
        answer: None,
    }
}

/// Returns the callback for the result of settling. The callback frees the slot of the delivery.
fn on_settled(guard: InFlightGuard) -> impl FnOnce(Result<(), Error>) + Send {
    move |settled| {
        drop(guard);
        if let Err(error) = settled {
            tracing::error!(error = error.chain(), "a delivery could not be settled");
        }
    }
}
