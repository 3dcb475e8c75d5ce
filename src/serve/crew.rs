//! The tasks in which deliveries are handled: made when all others are busy, and used again.
//!
//! A task of its own for each delivery would be simpler, but the allocation of one costs more than
//! most of what is done for a message: it is large, aligned to cache lines, and freed by another
//! thread.

use std::{
    future::{Future, poll_fn},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Poll, Waker},
};

use tokio::{
    sync::Notify,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::sync::lock;

/// What a task does next.
pub(super) trait Job: Send + Sized + 'static {
    /// How many bytes it holds until it is done.
    fn bytes(&self) -> usize;

    /// Does it. The task is free for the next when this returns, the room that the job takes when
    /// the ending is dropped.
    fn run(self, ending: Ending<Self>) -> impl Future<Output = ()> + Send;
}

/// Tasks that do jobs, one at a time each. Dropping it ends them, wherever they are.
pub(super) struct Crew<J> {
    shared: Arc<Shared<J>>,
    tasks: JoinSet<()>,
}

struct Shared<J> {
    idle: Mutex<Vec<Arc<Seat<J>>>>,
    /// How many jobs have begun and not ended, and how many bytes these hold.
    busy: AtomicUsize,
    bytes: AtomicUsize,
    /// Woken when a job has ended.
    ended: Notify,
    /// Whether no job shall begin that has not.
    stopping: CancellationToken,
}

/// Where a task waits for its next job.
struct Seat<J>(Mutex<Place<J>>);

struct Place<J> {
    job: Option<J>,
    waker: Option<Waker>,
}

impl<J: Job> Crew<J> {
    pub(super) fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                idle: Mutex::new(Vec::new()),
                busy: AtomicUsize::new(0),
                bytes: AtomicUsize::new(0),
                ended: Notify::new(),
                stopping: CancellationToken::new(),
            }),
            tasks: JoinSet::new(),
        }
    }

    /// How many jobs have begun and not ended.
    pub(super) fn busy(&self) -> usize {
        self.shared.busy.load(Ordering::Acquire)
    }

    /// How many bytes these hold.
    pub(super) fn bytes(&self) -> usize {
        self.shared.bytes.load(Ordering::Acquire)
    }

    /// Does a job, beside all others.
    pub(super) fn start(&mut self, job: J) {
        self.shared.busy.fetch_add(1, Ordering::AcqRel);
        self.shared.bytes.fetch_add(job.bytes(), Ordering::AcqRel);
        let idle = lock(&self.shared.idle).pop();
        if let Some(seat) = idle {
            seat.give(job);
            return;
        }
        let place = Place {
            job: Some(job),
            waker: None,
        };
        let seat = Arc::new(Seat(Mutex::new(place)));
        self.tasks.spawn(work(seat, self.shared.clone()));
    }

    /// Waits until a job has ended since this was last called, or perhaps not.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(super) async fn ended(&self) {
        self.shared.ended.notified().await;
    }

    /// What became of a task that a job has ended with it, if there is one: jobs do not panic.
    pub(super) fn broken(&mut self) -> Option<JoinError> {
        self.tasks.try_join_next().and_then(Result::err)
    }

    /// Waits until all jobs have ended. Those that wait to begin are told not to.
    pub(super) async fn finish(&self) {
        self.shared.stopping.cancel();
        while self.busy() > 0 {
            self.ended().await;
        }
    }

    /// Ends all jobs where they are, and says how many there were.
    pub(super) async fn shut_down(&mut self) -> usize {
        let busy = self.busy();
        self.tasks.shutdown().await;
        busy
    }
}

async fn work<J: Job>(seat: Arc<Seat<J>>, shared: Arc<Shared<J>>) {
    loop {
        let job = seat.next().await;
        let ending = Ending {
            bytes: job.bytes(),
            shared: shared.clone(),
        };
        job.run(ending).await;
        lock(&shared.idle).push(seat.clone());
    }
}

impl<J> Seat<J> {
    fn give(&self, job: J) {
        let mut place = lock(&self.0);
        place.job = Some(job);
        let waker = place.waker.take();
        drop(place);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    async fn next(&self) -> J {
        poll_fn(|cx| {
            let mut place = lock(&self.0);
            match place.job.take() {
                Some(job) => Poll::Ready(job),
                None => {
                    place.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// Says that a job has ended, in whatever way, when it is dropped.
pub(super) struct Ending<J> {
    bytes: usize,
    shared: Arc<Shared<J>>,
}

impl<J> Ending<J> {
    /// Waits until no job shall begin that has not.
    pub(super) async fn stopping(&self) {
        self.shared.stopping.cancelled().await;
    }
}

impl<J> Drop for Ending<J> {
    fn drop(&mut self) {
        self.shared.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.shared.busy.fetch_sub(1, Ordering::AcqRel);
        self.shared.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    enum Test {
        /// Ends with the other end of this.
        Wait(oneshot::Receiver<()>),
        /// Ends its task's work at once, and takes up its room for longer.
        Leave(oneshot::Sender<Ending<Test>>),
        Panic,
    }

    impl Job for Test {
        fn bytes(&self) -> usize {
            8
        }

        async fn run(self, ending: Ending<Self>) {
            match self {
                Test::Wait(end) => drop(end.await),
                Test::Leave(kept) => {
                    let _ = kept.send(ending);
                }
                Test::Panic => panic!("a job that panics"),
            }
        }
    }

    fn waiting() -> (oneshot::Sender<()>, Test) {
        let (end, ended) = oneshot::channel();
        (end, Test::Wait(ended))
    }

    #[tokio::test]
    async fn jobs_run_beside_each_other_and_a_task_does_one_after_the_other() {
        let mut crew = Crew::new();
        for _ in 0..100 {
            let (first, job) = waiting();
            crew.start(job);
            let (second, job) = waiting();
            crew.start(job);
            assert_eq!((crew.busy(), crew.bytes()), (2, 16));
            drop(second);
            while crew.busy() > 1 {
                crew.ended().await;
            }
            drop(first);
            crew.finish().await;
            assert_eq!((crew.busy(), crew.bytes()), (0, 0));
        }
        assert_eq!(crew.tasks.len(), 2);
    }

    #[tokio::test]
    async fn a_task_is_free_before_the_room_of_its_job_is() {
        let mut crew = Crew::new();
        let (keep, kept) = oneshot::channel();
        crew.start(Test::Leave(keep));
        let ending = kept.await.unwrap();
        tokio::task::yield_now().await;
        assert_eq!((crew.busy(), crew.bytes()), (1, 8));
        let (end, job) = waiting();
        crew.start(job);
        assert_eq!((crew.busy(), crew.tasks.len()), (2, 1));
        drop((end, ending));
        crew.finish().await;
        assert_eq!((crew.busy(), crew.bytes()), (0, 0));
    }

    #[tokio::test]
    async fn a_job_that_panics_frees_its_place_and_is_told_of() {
        let mut crew = Crew::new();
        crew.start(Test::Panic);
        crew.finish().await;
        assert_eq!((crew.busy(), crew.bytes()), (0, 0));
        tokio::task::yield_now().await;
        assert!(crew.broken().expect("its task has ended").is_panic());
        let (end, job) = waiting();
        crew.start(job);
        drop(end);
        crew.finish().await;
        assert!(crew.broken().is_none());
    }

    #[tokio::test]
    async fn jobs_end_where_they_are_with_the_crew() {
        let mut crew = Crew::new();
        let (end, job) = waiting();
        crew.start(job);
        tokio::task::yield_now().await;
        assert_eq!(crew.shut_down().await, 1);
        assert!(end.is_closed());
        assert_eq!(crew.busy(), 0);

        let (mut end, job) = waiting();
        crew.start(job);
        drop(crew);
        let dropped = tokio::time::timeout(Duration::from_secs(5), end.closed());
        dropped.await.expect("its future is dropped");
    }
}
