//! The work on one delivery: the call of the service, and the verdict on its result.

use std::{
    any::Any,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
};

use futures_util::FutureExt;
use tokio::time::timeout;
use tower::{Service, ServiceExt, timeout::error::Elapsed};
use tracing::Span;

use super::{
    failure_span::poll_with_failure_span,
    give_up::GiveUpHook,
    in_flight::{HandleDelivery, InFlightGuard},
    log::{self, MessageLog},
    policy::{Policy, ServiceFailure},
};
use crate::{
    ablation::Mechanism,
    error::{BoxError, Error},
    message::{Kind, Lease, Message},
    reply::Reply,
    routing::FromSubscription,
    service::MessageService,
    transport::{Delivery, Discarded, SettleDelivery, Undecodable, Verdict, WorkerMonitor},
};

/// A delivery, and its clone of the service.
pub(super) struct Work<S, Settler> {
    content: Result<(S, Message), Undecodable>,
    settler: Settler,
    policy: Policy,
    monitor: Arc<WorkerMonitor>,
}

impl<S: Service<Message> + Clone, Settler> Work<S, Settler> {
    pub(super) fn new(
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

/// The outcome of an attempt that did not fail.
enum AttemptOutcome {
    Reply(Reply),
    /// The message expired before the service was ready.
    Expired,
    /// The worker stopped before the service was ready.
    Stopped,
}

/// Runs the service, and returns the verdict on the delivery.
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
    let hook = GiveUpHook::new(policy.on_give_up.as_ref(), &message);
    if is_expired(&message) {
        return expired_verdict(policy, &message_log, hook);
    }
    let drop_signal = message.parts().lease.as_ref().and_then(Lease::drop_signal);
    let mut span = None;
    let attempt = pin!(attempt(&mut app, message, guard));
    let handling = catch_panic(attempt, &mut span);
    let result = match drop_signal {
        None => handling.await,
        // Boxed because few tasks can be cancelled.
        Some(drop_signal) => tokio::select! {
            biased;
            result = handling => result,
            () = Box::pin(drop_signal) => {
                // The server has ended the delivery already, so the verdict has no effect.
                return Verdict::Discard {
                    reason: Discarded::Requested,
                    answer: None,
                };
            }
        },
    };
    let failure = match result {
        Ok(Ok(AttemptOutcome::Reply(reply))) => return Verdict::Done(Ok(reply)),
        Ok(Ok(AttemptOutcome::Expired)) => return expired_verdict(policy, &message_log, hook),
        Ok(Ok(AttemptOutcome::Stopped)) => return Verdict::Release,
        Ok(Err(error)) => ServiceFailure::Returned(error),
        Err(panic) => ServiceFailure::panicked(&*panic),
    };
    let (kind, name) = (message_log.kind, &message_log.name);
    let attempts = (message_log.attempt, message_log.max_attempts);
    let verdict = policy.verdict(kind, name, attempts, &failure);
    message_log.log_failure(&failure.reason(kind, name), &verdict, span);
    hook.call_if_given_up(&verdict, failure.into_error());
    verdict
}

/// Waits for the service and calls it. The first error of the service ends the attempt.
async fn attempt<S>(
    app: &mut S,
    message: Message,
    guard: &InFlightGuard,
) -> Result<AttemptOutcome, BoxError>
where
    S: MessageService,
{
    match poll_fn(|cx| Poll::Ready(app.poll_ready(cx).map_err(Into::into))).await {
        Poll::Ready(ready) => ready?,
        // Boxed because this future is rare and large.
        Poll::Pending => {
            if !Box::pin(wait_until_ready(app, message.kind(), guard)).await? {
                return Ok(AttemptOutcome::Stopped);
            }
            if is_expired(&message) {
                return Ok(AttemptOutcome::Expired);
            }
        }
    }
    let reply = match message.parts().attempt_timeout {
        None => app.call(message).await.map_err(Into::into)?,
        // Boxed, so that the futures of messages without a timeout do not grow.
        Some(limit) => match Box::pin(timeout(limit, app.call(message))).await {
            Ok(result) => result.map_err(Into::into)?,
            Err(_) => return Err(Elapsed::new().into()),
        },
    };
    Ok(AttemptOutcome::Reply(reply))
}

/// Catches a panic of the service. Sets `span` to the span in which the service failed.
///
/// Polls the attempt in place: moving it into the `catch_unwind` of `futures` would take as long as
/// finding the route of the message.
async fn catch_panic<A: Future>(
    mut attempt: Pin<&mut A>,
    span: &mut Option<Span>,
) -> Result<A::Output, Box<dyn Any + Send>> {
    poll_fn(|cx| {
        // `AssertUnwindSafe` is sound because nothing uses the service after a panic.
        let poll = AssertUnwindSafe(|| attempt.as_mut().poll(cx));
        let polled;
        (polled, *span) = poll_with_failure_span(|| catch_unwind(poll));
        polled.map_or_else(|panic| Poll::Ready(Err(panic)), |polled| polled.map(Ok))
    })
    .await
}

fn is_expired(message: &Message) -> bool {
    let deadline = message.parts().deadline;
    deadline.is_some_and(|deadline| deadline.has_passed())
}

/// Logs that the message expired before it was handled, and returns the verdict on it.
fn expired_verdict(policy: &Policy, message_log: &MessageLog, hook: GiveUpHook<'_>) -> Verdict {
    let verdict = policy.expired(message_log.kind);
    message_log.log_expired(&verdict);
    hook.call_if_given_up(&verdict, None);
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
