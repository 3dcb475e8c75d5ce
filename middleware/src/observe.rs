//! Observes a call from its start to its end, which is a reply, an error, a panic or a drop.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use campanile::{BoxError, Reply};
use pin_project::pin_project;
use tokio::time::Instant;

use crate::conventions::Fault;

/// Receives the events of one call.
pub(crate) trait Observer {
    /// Runs a part of the work, for example within a span.
    fn scope<T>(&mut self, part: impl FnOnce() -> T) -> T {
        part()
    }

    /// Receives the outcome and the duration of the call. Called once.
    fn ended(&mut self, outcome: Result<&Reply, Fault<'_>>, after: Duration);
}

/// A call that has started. If this value is dropped before the call ends, it reports
/// [`Fault::Dropped`] or [`Fault::Panicked`] to its observer.
pub(crate) struct Watch<O: Observer> {
    observer: O,
    started: Instant,
    /// Set while a part of the work runs. If the `Watch` is dropped during that time, the part has
    /// panicked.
    is_running: bool,
    has_ended: bool,
}

impl<O: Observer> Watch<O> {
    pub(crate) fn start(observer: O) -> Self {
        Self {
            observer,
            started: Instant::now(),
            is_running: false,
            has_ended: false,
        }
    }

    fn run<T>(&mut self, part: impl FnOnce() -> T) -> T {
        self.is_running = true;
        let result = self.observer.scope(part);
        self.is_running = false;
        result
    }

    fn end(&mut self, outcome: Result<&Reply, Fault<'_>>) {
        if !std::mem::replace(&mut self.has_ended, true) {
            self.observer.ended(outcome, self.started.elapsed());
        }
    }

    /// Creates the work, and returns a future that runs and observes this work.
    pub(crate) fn observe<W>(mut self, make: impl FnOnce() -> W) -> Observed<W, O> {
        Observed {
            work: self.run(make),
            watch: self,
        }
    }
}

impl<O: Observer> Drop for Watch<O> {
    fn drop(&mut self) {
        let fault = match self.is_running {
            true => Fault::Panicked,
            false => Fault::Dropped,
        };
        self.end(Err(fault));
    }
}

/// A future that reports its outcome to an observer.
#[pin_project]
pub(crate) struct Observed<W, O: Observer> {
    #[pin]
    work: W,
    watch: Watch<O>,
}

impl<W, E, O> Future for Observed<W, O>
where
    W: Future<Output = Result<Reply, E>>,
    E: Into<BoxError>,
    O: Observer,
{
    type Output = Result<Reply, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let work = this.work;
        let result = ready!(this.watch.run(|| work.poll(cx))).map_err(Into::into);
        this.watch.end(result.as_ref().map_err(Fault::Error));
        Poll::Ready(result)
    }
}

/// Assertions for every layer that only observes.
#[cfg(test)]
pub(crate) mod assertions {
    use campanile::Message;
    use tower::{Layer, Service, limit::ConcurrencyLimit};
    use tower_test::mock::{self, Mock, Spawn};

    use super::*;

    type Inner = Mock<Message, Reply>;

    pub(crate) async fn readiness_and_its_error_pass<L>(layer: L)
    where
        L: Layer<Inner, Service: Service<Message, Response = Reply, Error = BoxError>>,
    {
        let (inner, mut handle) = mock::pair();
        let mut service = Spawn::new(layer.layer(inner));
        handle.allow(0);
        assert!(service.poll_ready().is_pending());
        handle.send_error("gone");
        match service.poll_ready() {
            Poll::Ready(Err(error)) => assert_eq!(error.to_string(), "gone"),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn a_clone_has_no_reservation_and_a_drop_releases_one<L>(layer: L)
    where
        L: Layer<ConcurrencyLimit<Inner>>,
        L::Service: Service<Message, Response = Reply, Error = BoxError> + Clone,
    {
        let (inner, mut handle) = mock::pair();
        handle.allow(10);
        let mut service = Spawn::new(layer.layer(ConcurrencyLimit::new(inner, 1)));
        assert!(service.poll_ready().is_ready());
        let mut clone = service.clone();
        assert!(clone.poll_ready().is_pending(), "a clone has a reservation");
        drop(service);
        assert!(clone.is_woken(), "a dropped service keeps its reservation");
        assert!(clone.poll_ready().is_ready());
        let call = clone.call(Message::task("a", ""));
        assert!(clone.poll_ready().is_pending());
        drop(call);
        assert!(clone.is_woken(), "a dropped future keeps its reservation");
        assert!(clone.poll_ready().is_ready());
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::{Arc, Mutex},
    };

    use tokio_test::{assert_pending, assert_ready, task};

    use super::*;

    /// The reported outcomes and durations.
    type Reports = Arc<Mutex<Vec<(&'static str, Duration)>>>;

    struct Recorder(Reports);

    impl Observer for Recorder {
        fn ended(&mut self, outcome: Result<&Reply, Fault<'_>>, after: Duration) {
            let outcome = outcome.map_or_else(|fault| fault.error_type(), |_| "reply");
            self.0.lock().unwrap().push((outcome, after));
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn observed<W>(work: W) -> (Reports, Observed<W, Recorder>) {
        let reports = Reports::default();
        let watch = Watch::start(Recorder(reports.clone()));
        (reports, watch.observe(|| work))
    }

    #[tokio::test(start_paused = true)]
    async fn an_outcome_is_reported_once_with_its_duration() {
        for (result, word) in [(Ok(Reply::default()), "reply"), (Err("no"), "_OTHER")] {
            let (reports, work) = observed(async {
                tokio::time::sleep(SECOND).await;
                result.map_err(BoxError::from)
            });
            let _ = work.await;
            assert_eq!(*reports.lock().unwrap(), [(word, SECOND)]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_work_is_reported() {
        let (reports, work) = observed(std::future::pending::<Result<Reply, BoxError>>());
        let mut work = task::spawn(work);
        assert_pending!(work.poll());
        tokio::time::advance(SECOND).await;
        assert!(reports.lock().unwrap().is_empty());
        drop(work);
        assert_eq!(*reports.lock().unwrap(), [("dropped", SECOND)]);
        // A future that was never polled is reported too.
        let (reports, work) = observed(std::future::pending::<Result<Reply, BoxError>>());
        drop(work);
        assert_eq!(reports.lock().unwrap()[0].0, "dropped");
    }

    #[tokio::test]
    async fn a_panic_is_reported_and_passes() {
        let (reports, work) = observed(async {
            if true {
                panic!("on purpose");
            }
            Ok::<_, BoxError>(Reply::default())
        });
        let mut work = task::spawn(work);
        catch_unwind(AssertUnwindSafe(|| work.poll().is_ready())).unwrap_err();
        drop(work);
        assert_eq!(reports.lock().unwrap()[..].len(), 1);
        assert_eq!(reports.lock().unwrap()[0].0, "panic");

        // A panic of the call itself, before there is a future, is reported too.
        let reports = Reports::default();
        let watch = Watch::start(Recorder(reports.clone()));
        let call = || watch.observe(|| -> () { panic!("on purpose") });
        assert!(catch_unwind(AssertUnwindSafe(|| drop(call()))).is_err());
        assert_eq!(reports.lock().unwrap()[0].0, "panic");
    }

    #[tokio::test]
    async fn a_reply_passes_unchanged() {
        let (reports, work) = observed(async { Ok::<_, BoxError>(Reply::new("a")) });
        let mut work = task::spawn(work);
        let reply = assert_ready!(work.poll()).unwrap();
        assert_eq!(reply.payload, "a");
        assert_eq!(reports.lock().unwrap().len(), 1);
    }
}
