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
    message::{Kind, Message, MessageId, Name},
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
        // Not all at once: while one half is handled and acknowledged, the other is fetched.
        let batch = most.div_ceil(2).max(16);
        loop {
            self.collect(most).await;
            let free = most - self.running.len();
            if free == 0 || self.bytes >= most_bytes {
                tokio::select! {
                    biased;
                    () = &mut stop.forced => return Ended::ByForce,
                    () = &mut stop.graceful => return Ended::Gracefully,
                    Some(ended) = self.running.join_next() => self.account(ended),
                }
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
            // While there is room enough, what ends need not wake the loop: it is accounted for with
            // the next delivery.
            let roomy = free >= most.div_ceil(2) && self.bytes < most_bytes / 2;
            tokio::select! {
                biased;
                () = &mut stop.forced => return Ended::ByForce,
                () = &mut stop.graceful => return Ended::Gracefully,
                deliveries = self.source.next(free.min(batch)) => match deliveries {
                    Ok(deliveries) => deliveries.into_iter().for_each(|d| self.start(d)),
                    Err(error) => return Ended::Broken(error),
                },
                Some(ended) = self.running.join_next(), if !roomy => self.account(ended),
            }
        }
    }

    /// Accounts for what has ended. What was settled together ends together, so while few slots are
    /// free the tasks that are about to end go first: a read of many costs little more than a read
    /// of one. Nothing is waited for where there are none.
    async fn collect(&mut self, most: usize) {
        const TURNS: usize = 4;
        for turn in 0.. {
            while let Some(ended) = self.running.try_join_next() {
                self.account(ended);
            }
            let few = most - self.running.len() < most / 4;
            if !few || turn == TURNS {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    fn start(&mut self, delivery: Delivery<Src::Settle>) {
        let Delivery { content, settle } = delivery;
        let policy = self.policy;
        match content {
            Ok(mut message) => {
                message.parts_mut().delivered = true;
                self.bytes += message.payload().len();
                let mut app = self.app.clone();
                // Takes what the layers have to give before the loop asks them again; where they
                // have nothing, the delivery waits in its task.
                let _ = app.ready().now_or_never();
                self.running.spawn(handle(app, message, settle, policy));
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

/// One delivery, from its start to its settlement. Returns the bytes that it held.
///
/// It is every delivery's task, so its size counts: the verdict goes straight into the settlement,
/// and only its future is waited for.
async fn handle<S>(app: S, message: Message, settle: impl SettleDelivery, policy: Policy) -> usize
where
    S: Service<Message, Response = Reply, Error: Into<BoxError>>,
{
    let bytes = message.payload().len();
    let verdict = decide(app, message, policy).await;
    confirm(settle.settle(verdict)).await;
    bytes
}

/// Runs the service and says what becomes of the delivery.
async fn decide<S>(app: S, message: Message, policy: Policy) -> Verdict
where
    S: Service<Message, Response = Reply, Error: Into<BoxError>>,
{
    let about = About::new(&message);
    if message.parts().deadline.is_some_and(|d| d.has_passed()) {
        about.log_expired();
        return policy.expired(about.kind);
    }
    // The service is not used again after a panic, so nothing broken can be seen.
    let outcome = match AssertUnwindSafe(app.oneshot(message)).catch_unwind().await {
        Ok(returned) => Outcome::Returned(returned.map_err(Into::into)),
        Err(panic) => Outcome::panicked(&*panic),
    };
    let verdict = policy.verdict(about.kind, &about.name, outcome);
    about.log(&verdict);
    verdict
}

/// What is said of a message when it is gone.
struct About {
    kind: Kind,
    name: Name,
    id: Option<MessageId>,
    attempt: u32,
}

impl About {
    fn new(message: &Message) -> Self {
        let parts = message.parts();
        Self {
            kind: parts.kind,
            name: parts.name.clone(),
            id: parts.id.clone(),
            attempt: parts.attempt.0,
        }
    }

    fn log_expired(&self) {
        let (kind, name, id) = (self.kind, &self.name, self.id.as_deref());
        tracing::warn!(%kind, %name, id, "expired before it was started");
    }

    fn log(&self, verdict: &Verdict) {
        let (kind, name, id, attempt) = (self.kind, &self.name, self.id.as_deref(), self.attempt);
        match verdict {
            Verdict::Done(Ok(_)) => {}
            Verdict::Done(Err(answer)) => {
                tracing::debug!(%kind, %name, id, attempt, %answer, "answered with an error");
            }
            verdict => tracing::warn!(%kind, %name, id, attempt, ?verdict, "failed"),
        }
    }
}

/// An entry that can never be understood: nobody needs to be asked.
async fn bury(undecodable: Undecodable, settle: impl SettleDelivery) {
    tracing::warn!(reason = undecodable.reason, "an entry that is no message");
    let verdict = Verdict::Dead {
        reason: undecodable.reason,
        answer: None,
    };
    confirm(settle.settle(verdict)).await;
}

async fn confirm(settled: impl Future<Output = Result<(), Error>>) {
    if let Err(error) = settled.await {
        tracing::error!(error = error.chain(), "a delivery could not be settled");
    }
}
