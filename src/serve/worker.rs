//! One worker: the loop, and the task of each delivery.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use tokio::task::{JoinError, JoinSet};
use tower::{Service, ServiceExt};

use super::{
    Stop,
    policy::{Outcome, Policy},
};
use crate::{
    error::{BoxError, Error, ErrorKind},
    message::Message,
    reply::Reply,
    transport::{Delivery, SettleDelivery, Source, Undecodable, Verdict},
};

/// What the loop owns. Its state lives in one task, so there is nothing to lock.
pub(super) struct Worker<Src: Source, S> {
    source: Src,
    app: S,
    policy: Policy,
    /// One task for each delivery; each returns the bytes that it held.
    running: JoinSet<usize>,
    bytes: usize,
}

/// Why the loop ended.
enum Ended {
    Gracefully,
    ByForce,
    Broken(Error),
}

impl<Src, S> Worker<Src, S>
where
    Src: Source,
    S: Service<Message, Response = Reply, Error: Into<BoxError>, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
{
    pub(super) fn new(source: Src, app: S, policy: Policy) -> Self {
        Self {
            source,
            app,
            policy,
            running: JoinSet::new(),
            bytes: 0,
        }
    }

    pub(super) async fn run(mut self, mut stop: Stop, deadline: Duration) -> Result<(), Error> {
        let broken = match self.serve(&mut stop).await {
            Ended::ByForce => {
                self.drop_running().await;
                return Ok(());
            }
            Ended::Gracefully => None,
            Ended::Broken(error) => Some(error),
        };
        // The second signal counts in every step of what the first one began.
        let finished = tokio::select! {
            biased;
            () = &mut stop.forced => {
                self.drop_running().await;
                return Ok(());
            }
            finished = self.finish(deadline) => finished,
        };
        if finished.is_err() {
            self.drop_running().await;
        }
        let closed = tokio::select! {
            biased;
            () = stop.forced => Ok(()),
            closed = self.source.close() => closed,
        };
        broken.map_or(finished.and(closed), Err)
    }

    /// Runs until it is told to end.
    async fn serve(&mut self, stop: &mut Stop) -> Ended {
        let most = self.source.settings().max_in_flight;
        let most_bytes = self.source.settings().max_in_flight_bytes;
        loop {
            while let Some(ended) = self.running.try_join_next() {
                self.account(ended);
            }
            let free = most - self.running.len();
            if free == 0 || self.bytes >= most_bytes {
                tokio::select! {
                    biased;
                    () = &mut stop.forced => return Ended::ByForce,
                    () = &mut stop.graceful => return Ended::Gracefully,
                    Some(ended) = self.running.join_next() => self.account(ended),
                }
                // What settled together ends together: collecting it makes the next read larger.
                tokio::task::yield_now().await;
                continue;
            }
            // A clone takes the reservation and drops it before anything is waited for, else an
            // idle worker would keep others from what it holds.
            let mut gate = self.app.clone();
            tokio::select! {
                biased;
                () = &mut stop.forced => return Ended::ByForce,
                () = &mut stop.graceful => return Ended::Gracefully,
                ready = gate.ready() => if let Err(error) = ready {
                    let error = Error::new(ErrorKind::Service, "the service is broken and cannot serve")
                        .with_source(error);
                    tracing::error!(error = error.chain(), "the service is broken");
                    return Ended::Broken(error);
                },
            }
            drop(gate);
            tokio::select! {
                biased;
                () = &mut stop.forced => return Ended::ByForce,
                () = &mut stop.graceful => return Ended::Gracefully,
                deliveries = self.source.next(free) => match deliveries {
                    Ok(deliveries) => deliveries.into_iter().for_each(|d| self.start(d)),
                    Err(error) => return Ended::Broken(error),
                },
                Some(ended) = self.running.join_next() => self.account(ended),
            }
        }
    }

    fn start(&mut self, delivery: Delivery<Src::Settle>) {
        let Delivery { content, settle } = delivery;
        let policy = self.policy;
        match content {
            Ok(mut message) => {
                message.parts_mut().delivered = true;
                let bytes = message.payload().len();
                self.bytes += bytes;
                let mut app = self.app.clone();
                // Takes what the layers have to give before the loop asks them again; where they
                // have nothing, the delivery waits in its task.
                let _ = app.ready().now_or_never();
                self.running.spawn(async move {
                    handle(app, message, settle, policy).await;
                    bytes
                });
            }
            Err(undecodable) => {
                self.running.spawn(async move {
                    bury(undecodable, settle).await;
                    0
                });
            }
        }
    }

    fn account(&mut self, ended: Result<usize, JoinError>) {
        match ended {
            Ok(bytes) => self.bytes -= bytes,
            // Handlers' panics are caught inside the task, so this one is a settlement's.
            Err(error) => tracing::error!(%error, "the task of a delivery failed"),
        }
    }

    /// Gives back what was not started, and waits for what was.
    async fn finish(&mut self, deadline: Duration) -> Result<(), Error> {
        self.source.stop().await;
        let running = &mut self.running;
        let all = async { while running.join_next().await.is_some() {} };
        tokio::time::timeout(deadline, all).await.map_err(|_| {
            Error::new(
                ErrorKind::Timeout,
                format!("handlers were still running {deadline:?} after the shutdown's signal"),
            )
        })
    }

    /// Unsettled deliveries stay with the lease.
    async fn drop_running(&mut self) {
        let dropped = self.running.len();
        self.running.shutdown().await;
        if dropped > 0 {
            tracing::warn!(
                dropped,
                "running handlers were dropped; their messages come back"
            );
        }
    }
}

/// One delivery, from its start to its settlement.
async fn handle<S>(app: S, message: Message, settle: impl SettleDelivery, policy: Policy)
where
    S: Service<Message, Response = Reply, Error: Into<BoxError>>,
{
    let (kind, name, id) = (
        message.kind(),
        message.name().clone(),
        message.parts().id.clone(),
    );
    let attempt = message.parts().attempt.0;
    if message.parts().deadline.is_some_and(|d| d.has_passed()) {
        tracing::warn!(%kind, %name, id = id.as_deref(), "expired before it was started");
        return confirm(settle, policy.expired(kind)).await;
    }
    // The service is not used again after a panic, so nothing broken can be seen.
    let handled = async { app.oneshot(message).await.map_err(Into::into) };
    let outcome = match AssertUnwindSafe(handled).catch_unwind().await {
        Ok(returned) => Outcome::Returned(returned),
        Err(panic) => Outcome::panicked(&*panic),
    };
    let verdict = policy.verdict(kind, &name, outcome);
    match &verdict {
        Verdict::Done(Ok(_)) => {}
        Verdict::Done(Err(answer)) => {
            tracing::debug!(%kind, %name, id = id.as_deref(), %answer, "answered with an error");
        }
        verdict => {
            tracing::warn!(%kind, %name, id = id.as_deref(), attempt, ?verdict, "failed");
        }
    }
    confirm(settle, verdict).await;
}

/// An entry that can never be understood: nobody needs to be asked.
async fn bury(undecodable: Undecodable, settle: impl SettleDelivery) {
    tracing::warn!(reason = undecodable.reason, "an entry that is no message");
    let verdict = Verdict::Dead {
        reason: undecodable.reason,
        answer: None,
    };
    confirm(settle, verdict).await;
}

async fn confirm(settle: impl SettleDelivery, verdict: Verdict) {
    if let Err(error) = settle.settle(verdict).await {
        tracing::error!(error = error.chain(), "a delivery could not be settled");
    }
}
