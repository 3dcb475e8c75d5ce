//! One worker: the loop, and the task of each delivery.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
    time::Duration,
};

use futures_util::FutureExt;
use tokio::time::Instant;
use tower::{Service, ServiceExt};

use super::{
    Stop,
    crew::{Crew, Ending, Job},
    policy::{Outcome, Policy},
};
use crate::{
    error::{BoxError, Error, ErrorKind},
    message::{Kind, Message, MessageId, Name, Shown},
    reply::Reply,
    sync::Clock,
    transport::{Delivery, SettleDelivery, Source, Undecodable, Verdict},
};

/// The most bytes of an error, a verdict or a reason in one log line.
const MAX_LOGGED: usize = 2048;
/// A worker with all slots taken, in which no handler has ended for this long, is reported.
const STALLED: Duration = Duration::from_secs(5);

/// What the loop owns.
pub(super) struct Worker<Src: Source, S> {
    source: Src,
    app: S,
    policy: Policy,
    crew: Crew<Task<S, Src::Settle>>,
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
            crew: Crew::new(),
        }
    }

    pub(super) async fn run(self, stop: Stop, deadline: Duration) -> Result<(), Error> {
        let relief = self.crew.relief();
        tokio::select! {
            biased;
            ended = self.serve_to_the_end(stop, deadline) => ended,
            never = relief => match never {},
        }
    }

    async fn serve_to_the_end(mut self, mut stop: Stop, deadline: Duration) -> Result<(), Error> {
        let broken = match self.serve(&mut stop).await {
            Ended::ByForce => return self.end_by_force().await,
            Ended::Gracefully => None,
            Ended::Broken(error) => Some(error),
        };
        // The second signal counts in every step of what the first one began.
        let finished = tokio::select! {
            biased;
            () = &mut stop.forced => {
                let forced = self.end_by_force().await;
                return broken.map_or(forced, Err);
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
        // Since when all slots are taken, and the timer that reports it once.
        let mut full_since = None;
        let mut clock = Clock::new(STALLED);
        loop {
            self.collect(most).await;
            let free = most - self.crew.busy();
            if free > 0 {
                full_since = None;
            }
            if free == 0 || self.crew.bytes() >= most_bytes {
                let (since, reported) = *full_since.get_or_insert((Instant::now(), false));
                let report = free == 0 && !reported;
                tokio::select! {
                    biased;
                    () = &mut stop.forced => return Ended::ByForce,
                    () = &mut stop.graceful => return Ended::Gracefully,
                    () = self.crew.ended() => {}
                    () = poll_fn(|cx| clock.poll_until(cx, since + STALLED)), if report => {
                        full_since = Some((since, true));
                        self.report_stall(most);
                    }
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
            let roomy = free >= most.div_ceil(2) && self.crew.bytes() < most_bytes / 2;
            tokio::select! {
                biased;
                () = &mut stop.forced => return Ended::ByForce,
                () = &mut stop.graceful => return Ended::Gracefully,
                deliveries = self.source.next(free.min(batch)) => match deliveries {
                    Ok(deliveries) => {
                        let jobs = deliveries.into_iter();
                        self.crew.start(jobs.map(|it| job(&self.app, self.policy, it)));
                    }
                    Err(error) => return Ended::Broken(error),
                },
                () = self.crew.ended(), if !roomy => {}
            }
        }
    }

    /// Lets what is about to end do so. What was settled together ends together, so while few slots are
    /// free the tasks that are about to end go first: a read of many costs little more than a read
    /// of one. Nothing is waited for where there are none.
    async fn collect(&mut self, most: usize) {
        const TURNS: usize = 4;
        for turn in 0.. {
            // Handlers' panics are caught inside the task, so this one is a settlement's.
            while let Some(error) = self.crew.broken() {
                tracing::error!(%error, "the task of a delivery failed");
            }
            let few = most - self.crew.busy() < most / 4;
            if !few || turn == TURNS {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Says that all slots are taken by handlers that do not end. A handler that waits for the reply
    /// of a request that only this worker could handle waits for a slot that it takes itself: then
    /// all of them wait until their requests time out, and so again at each redelivery.
    fn report_stall(&self, slots: usize) {
        let settings = self.source.settings();
        let stream = Shown::new(&settings.stream);
        let group = Shown::new(&settings.group);
        match self.source.requests_waiting() {
            0 => tracing::info!(
                %stream, %group,
                "all {slots} slots of this worker have been taken for {STALLED:?} by handlers that \
                 have not finished; no message is fetched meanwhile"
            ),
            requests => tracing::warn!(
                %stream, %group,
                "all {slots} slots of this worker have been taken for {STALLED:?} by handlers that \
                 have not finished, while {requests} requests of this process wait for replies; if \
                 the handlers wait for replies of this same worker, none of them can go on: serve \
                 the requests with another worker, or raise `max_in_flight`"
            ),
        }
    }

    /// Gives back what was not started, and waits for what was.
    async fn finish(&mut self, deadline: Duration) -> Result<(), Error> {
        self.source.stop().await;
        let all = self.crew.finish();
        tokio::time::timeout(deadline, all).await.map_err(|_| {
            Error::new(
                ErrorKind::Timeout,
                format!("handlers were still running {deadline:?} after the shutdown's signal"),
            )
        })
    }

    /// Drops what runs, and says in the error how much that was.
    async fn end_by_force(&mut self) -> Result<(), Error> {
        match self.drop_running().await {
            0 => Ok(()),
            dropped => Err(Error::new(
                ErrorKind::Forced,
                format!(
                    "the shutdown was forced and dropped running handlers ({dropped}); their \
                     messages are delivered again when their leases end"
                ),
            )),
        }
    }

    /// Unsettled deliveries stay with the lease. Returns how many handlers were dropped.
    async fn drop_running(&mut self) -> usize {
        let dropped = self.crew.shut_down().await;
        if dropped > 0 {
            tracing::warn!(
                dropped,
                "running handlers were dropped; their messages come back"
            );
        }
        dropped
    }
}

/// What is to be done for a delivery.
fn job<S, H>(app: &S, policy: Policy, delivery: Delivery<H>) -> Task<S, H>
where
    S: Service<Message> + Clone,
{
    let Delivery { content, settle } = delivery;
    match content {
        Ok(mut message) => {
            message.parts_mut().delivered = true;
            let mut app = app.clone();
            // Takes what the layers have to give before the loop asks them again; where they have
            // nothing, the delivery waits in its task. A layer that keeps an order draws its number
            // here: from now on threads decide who is first.
            let _ = app.ready().now_or_never();
            Task::Handle {
                app,
                message,
                settle,
                policy,
            }
        }
        Err(undecodable) => Task::Bury {
            undecodable,
            settle,
        },
    }
}

/// One delivery, from its start to its settlement.
enum Task<S, H> {
    Handle {
        app: S,
        message: Message,
        settle: H,
        policy: Policy,
    },
    Bury {
        undecodable: Undecodable,
        settle: H,
    },
}

impl<S, H> Job for Task<S, H>
where
    S: Service<Message, Response = Reply, Error: Into<BoxError>, Future: Send> + Send + 'static,
    H: SettleDelivery,
{
    fn bytes(&self) -> usize {
        match self {
            Task::Handle { message, .. } => message.payload().len(),
            Task::Bury { .. } => 0,
        }
    }

    /// It is in every delivery's task, so its size counts: the verdict goes straight into the
    /// settlement, and only its future is waited for.
    async fn run(self, ending: Ending<Self>) {
        match self {
            Task::Handle {
                app,
                message,
                settle,
                policy,
            } => {
                let verdict = decide(app, message, policy, &ending).await;
                settle.settle_then(verdict, confirmed(ending)).await;
            }
            Task::Bury {
                undecodable,
                settle,
            } => bury(undecodable, settle, ending).await,
        }
    }
}

/// Runs the service and says what becomes of the delivery. One that still waits for the service to
/// be ready when the worker stops was not started, and neither is one that expires in that time.
async fn decide<S, J>(mut app: S, message: Message, policy: Policy, ending: &Ending<J>) -> Verdict
where
    S: Service<Message, Response = Reply, Error: Into<BoxError>>,
{
    let about = About::new(&message);
    let deadline = message.parts().deadline;
    let is_late = || deadline.is_some_and(|deadline| deadline.has_passed());
    let expired = || {
        about.log_expired();
        policy.expired(about.kind)
    };
    if is_late() {
        return expired();
    }
    let mut handling = pin!(async {
        match poll_fn(|cx| Poll::Ready(app.poll_ready(cx).map_err(Into::into))).await {
            Poll::Ready(ready) => ready?,
            // Seldom, and large.
            Poll::Pending => {
                if !Box::pin(starts(&mut app, about.kind, ending)).await? {
                    return Ok(Err(Verdict::GiveBack));
                }
                if is_late() {
                    return Ok(Err(expired()));
                }
            }
        }
        app.call(message).await.map_err(Into::into).map(Ok)
    });
    // The service is not used again after a panic, so nothing broken can be seen. What is polled
    // stays where it is: to move it, as `catch_unwind` of futures would, costs as much as routing.
    let handled = poll_fn(|cx| {
        let poll = AssertUnwindSafe(|| handling.as_mut().poll(cx));
        catch_unwind(poll).map_or_else(|panic| Poll::Ready(Err(panic)), |polled| polled.map(Ok))
    });
    let outcome = match handled.await {
        Ok(Ok(Err(not_started))) => return not_started,
        Ok(Ok(Ok(reply))) => Outcome::Returned(Ok(reply)),
        Ok(Err(error)) => Outcome::Returned(Err(error)),
        Err(panic) => Outcome::panicked(&*panic),
    };
    let verdict = policy.verdict(about.kind, &about.name, outcome);
    about.log(&verdict);
    verdict
}

/// Waits for the service to be ready, and says whether it is: not when the worker stops before.
async fn starts<S, J>(app: &mut S, kind: Kind, ending: &Ending<J>) -> Result<bool, BoxError>
where
    S: Service<Message, Error: Into<BoxError>>,
{
    tokio::select! {
        biased;
        ready = app.ready() => ready.map(|_| true).map_err(Into::into),
        // Nobody else could be given an event.
        () = ending.stopping(), if kind != Kind::Event => Ok(false),
    }
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
        let (kind, name, id) = (self.kind, Shown::new(&self.name), self.id.as_deref());
        tracing::warn!(%kind, %name, id, "expired before it was started");
    }

    fn log(&self, verdict: &Verdict) {
        let (kind, name) = (self.kind, Shown::new(&self.name));
        let (id, attempt) = (self.id.as_deref(), self.attempt);
        // Handlers quote in their errors what senders wrote.
        let bounded = |text: &str| Shown::new(text).at_most(MAX_LOGGED).to_string();
        match verdict {
            Verdict::Done(Ok(_)) => {}
            Verdict::Done(Err(answer)) => {
                tracing::debug!(
                    %kind, %name, id, attempt, answer = bounded(&answer.to_string()),
                    "answered with an error"
                );
            }
            verdict => tracing::warn!(
                %kind, %name, id, attempt, verdict = bounded(&format!("{verdict:?}")), "failed"
            ),
        }
    }
}

/// An entry that can never be understood: nobody needs to be asked.
async fn bury<J>(undecodable: Undecodable, settle: impl SettleDelivery, ending: Ending<J>)
where
    J: Send + 'static,
{
    let reason = Shown::new(&undecodable.reason).at_most(MAX_LOGGED);
    tracing::warn!(%reason, "an entry that is no message");
    let verdict = Verdict::Dead {
        reason: undecodable.reason,
        answer: None,
    };
    settle.settle_then(verdict, confirmed(ending)).await;
}

/// What is done when a verdict is confirmed: only then is there room for another delivery.
fn confirmed<J: Send + 'static>(ending: Ending<J>) -> impl FnOnce(Result<(), Error>) + Send {
    move |settled| {
        drop(ending);
        if let Err(error) = settled {
            tracing::error!(error = error.chain(), "a delivery could not be settled");
        }
    }
}
