//! The tasks in which deliveries are handled.
//!
//! A task of its own for each delivery would be simpler, but to make one costs more than most of
//! what is done for a message, and so does to wake one. Here a task does one job after the other as
//! long as none has to wait. Where one does, the task is its own until it ends, and another goes on
//! with the rest.
//!
//! One task is called at first, for what is done in a moment is done before another thread is awake.
//! While jobs are left after that moment another is called, until each thread of the runtime has
//! one. And where none has begun for some milliseconds although some wait, a clock calls others: a job
//! may keep its thread for as long as it likes, or have given it away.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::Notify,
    task::{JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::sync::{Clock, lock};

/// After how many jobs a task lets others have its thread.
const TURN: usize = 16;
/// For how long a task goes through the queue alone; what another thread costs.
const ALONE: Duration = Duration::from_micros(20);
/// How long jobs may wait while none begins. A clock that rings in every moment would be felt.
const PATIENCE: Duration = Duration::from_millis(5);

/// What a task does next.
pub(super) trait Job: Send + Sized + 'static {
    /// How many bytes it holds until it is done.
    fn bytes(&self) -> usize;

    /// Does it. The task is free for the next when this returns, the room that the job takes when
    /// the ending is dropped.
    fn run(self, ending: Ending<Self>) -> impl Future<Output = ()> + Send;
}

/// Tasks that do jobs. Dropping it ends them, wherever they are.
pub(super) struct Crew<J>(Arc<Shared<J>>);

struct Shared<J> {
    queue: Mutex<Queue<J>>,
    /// All of them, idle or not.
    tasks: Mutex<JoinSet<()>>,
    /// Of the runtime.
    threads: usize,
    /// How many jobs were given and have not ended, and how many bytes these hold.
    busy: AtomicUsize,
    bytes: AtomicUsize,
    /// Woken when a job has ended.
    ended: Notify,
    /// Whether no job shall begin that has not.
    stopping: CancellationToken,
}

/// The jobs that have not begun, and who begins them.
struct Queue<J> {
    jobs: VecDeque<(J, Ending<J>)>,
    /// The tasks that wait to be called.
    idle: Vec<(Arc<AtomicBool>, Waker)>,
    /// How many tasks go through the queue: whatever they do, they do not wait.
    active: usize,
    /// How many of these were called and have not come yet.
    called: usize,
    /// When the first of them was.
    since: Instant,
    /// How many jobs have begun.
    begun: u64,
}

impl<J: Job> Crew<J> {
    /// Of the runtime that this is called in.
    pub(super) fn new() -> Self {
        Self(Arc::new(Shared {
            queue: Mutex::new(Queue {
                jobs: VecDeque::new(),
                idle: Vec::new(),
                active: 0,
                called: 0,
                since: Instant::now(),
                begun: 0,
            }),
            tasks: Mutex::default(),
            threads: Handle::current().metrics().num_workers(),
            busy: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            ended: Notify::new(),
            stopping: CancellationToken::new(),
        }))
    }

    /// How many jobs were given and have not ended.
    pub(super) fn busy(&self) -> usize {
        self.0.busy.load(Ordering::Acquire)
    }

    /// How many bytes these hold.
    pub(super) fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Acquire)
    }

    /// Does jobs, beside all others. They begin in their order.
    pub(super) fn start(&self, jobs: impl IntoIterator<Item = J>) {
        let shared = &self.0;
        let jobs = jobs.into_iter().map(|job| {
            let bytes = job.bytes();
            shared.busy.fetch_add(1, Ordering::AcqRel);
            shared.bytes.fetch_add(bytes, Ordering::AcqRel);
            let shared = shared.clone();
            (job, Ending { bytes, shared })
        });
        // What makes them is not done under the lock.
        let jobs: Vec<_> = jobs.collect();
        lock(&shared.queue).jobs.extend(jobs);
        shared.call(1);
    }

    /// Runs beside everything else that waits for jobs, and does not end: it sees to it that none
    /// waits for long because others keep their threads. To be polled whenever jobs were given.
    pub(super) fn relief(&self) -> impl Future<Output = Infallible> + use<J> {
        let shared = self.0.clone();
        // On its only thread nobody else could help.
        let others = Handle::current().runtime_flavor() != RuntimeFlavor::CurrentThread;
        let mut clock = Clock::new(Duration::ZERO);
        // Until when those that wait do so, and how many had begun before.
        let mut watch = None;
        poll_fn(move |cx| {
            while others && let Some(begun) = shared.waiting() {
                let (until, before) =
                    *watch.get_or_insert_with(|| (Instant::now() + PATIENCE, begun));
                ready!(clock.poll_until(cx, until));
                watch = None;
                if begun == before {
                    // More than there are threads, too: some may wait in their threads, and have
                    // given away what the runtime runs on.
                    let active = lock(&shared.queue).active;
                    shared.call((2 * active).max(1));
                }
            }
            watch = None;
            Poll::Pending
        })
    }

    /// Waits until a job has ended since this was last called, or perhaps not.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(super) async fn ended(&self) {
        self.0.ended.notified().await;
    }

    /// What became of a task that a job has ended with it, if there is one: jobs do not panic.
    pub(super) fn broken(&self) -> Option<JoinError> {
        lock(&self.0.tasks).try_join_next().and_then(Result::err)
    }

    /// Waits until all jobs have ended. Those that wait to begin are told not to.
    pub(super) async fn finish(&self) {
        self.0.stopping.cancel();
        while self.busy() > 0 {
            self.ended().await;
        }
    }

    /// Ends all jobs where they are, and says how many there were.
    pub(super) async fn shut_down(&self) -> usize {
        let busy = self.busy();
        self.0.clear();
        let mut tasks = std::mem::take(&mut *lock(&self.0.tasks));
        tasks.shutdown().await;
        busy
    }
}

impl<J> Drop for Crew<J> {
    fn drop(&mut self) {
        self.0.clear();
        lock(&self.0.tasks).abort_all();
    }
}

impl<J> Shared<J> {
    /// Drops the jobs that have not begun.
    fn clear(&self) {
        let jobs = std::mem::take(&mut lock(&self.queue).jobs);
        drop(jobs);
    }
}

impl<J: Job> Shared<J> {
    /// How many jobs have begun so far, where some wait to and nobody was called for them.
    fn waiting(&self) -> Option<u64> {
        let queue = lock(&self.queue);
        (queue.called < queue.jobs.len()).then_some(queue.begun)
    }

    /// Calls tasks until so many are active, or one has been called for each job.
    fn call(self: &Arc<Self>, enough: usize) {
        loop {
            let mut queue = lock(&self.queue);
            if queue.active >= enough || queue.called >= queue.jobs.len() {
                return;
            }
            if queue.active == 0 {
                queue.since = Instant::now();
            }
            queue.active += 1;
            queue.called += 1;
            let idle = queue.idle.pop();
            drop(queue);
            match idle {
                Some((called, waker)) => {
                    called.store(true, Ordering::Release);
                    waker.wake();
                }
                None => {
                    lock(&self.tasks).spawn(work(self.clone()));
                }
            }
        }
    }
}

/// Goes through the queue, and comes back to it after each job.
async fn work<J: Job>(shared: Arc<Shared<J>>) {
    let mut place = Place {
        called: Arc::new(AtomicBool::new(true)),
        active: true,
        alone: false,
        shared,
    };
    let mut turn = 0;
    loop {
        let Some((job, ending)) = place.take() else {
            place.idle().await;
            turn = 0;
            continue;
        };
        let mut running = pin!(job.run(ending));
        poll_fn(|cx| {
            let polled = running.as_mut().poll(cx);
            if polled.is_pending() {
                place.leave();
                turn = 0;
            }
            polled
        })
        .await;
        turn += 1;
        if turn == TURN || place.alone {
            turn = 0;
            place.share();
            rest().await;
        }
    }
}

/// Goes to the end of the line of what its thread is to do, from where other threads take work.
/// Unlike what tokio's `yield_now` puts off: that waits for all that its thread finds to do.
async fn rest() {
    let mut rested = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut rested, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Where a task stands.
struct Place<J: Job> {
    shared: Arc<Shared<J>>,
    /// Whether it was called and has not come yet.
    called: Arc<AtomicBool>,
    /// Whether it is one of the active ones.
    active: bool,
    /// Whether it has gone through the queue without enough others, for as long as that makes sense.
    alone: bool,
}

impl<J: Job> Place<J> {
    /// The next job, if there is one.
    fn take(&mut self) -> Option<(J, Ending<J>)> {
        let mut queue = lock(&self.shared.queue);
        queue.active += usize::from(!std::mem::replace(&mut self.active, true));
        queue.called -= usize::from(self.called.swap(false, Ordering::AcqRel));
        let job = queue.jobs.pop_front();
        queue.begun += u64::from(job.is_some());
        self.alone = !queue.jobs.is_empty()
            && queue.active < self.shared.threads
            && queue.since.elapsed() >= ALONE;
        job
    }

    /// Calls another task for what is left. That one has the thread as soon as this one rests; in
    /// the midst of it, another job that keeps the thread would keep it from coming.
    fn share(&mut self) {
        if std::mem::take(&mut self.alone) {
            let active = lock(&self.shared.queue).active;
            self.shared.call(self.shared.threads.min(active + 1));
        }
    }

    /// Waits to be called.
    async fn idle(&mut self) {
        poll_fn(|cx| self.poll_called(cx)).await;
    }

    fn poll_called(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.active {
            let mut queue = lock(&self.shared.queue);
            if !queue.jobs.is_empty() {
                return Poll::Ready(());
            }
            queue.active -= 1;
            queue.idle.push((self.called.clone(), cx.waker().clone()));
            self.active = false;
            return Poll::Pending;
        }
        // What has woken it may be left of a job.
        self.active = self.called.load(Ordering::Acquire);
        match self.active {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Others are to go on with the queue: this one waits.
    fn leave(&mut self) {
        if std::mem::take(&mut self.active) {
            lock(&self.shared.queue).active -= 1;
            self.shared.call(1);
        }
    }
}

impl<J: Job> Drop for Place<J> {
    fn drop(&mut self) {
        if self.called.load(Ordering::Acquire) {
            lock(&self.shared.queue).called -= 1;
            self.active = true;
        }
        self.leave();
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
    use tokio::{
        sync::{mpsc::UnboundedSender, oneshot},
        time::sleep,
    };

    use super::*;

    enum Test {
        /// Ends with the other end of this.
        Wait(oneshot::Receiver<()>),
        /// Ends its task's work at once, and takes up its room for longer.
        Leave(oneshot::Sender<Ending<Test>>),
        /// Says its number, after a while or at once.
        Count(u64, UnboundedSender<u64>),
        Yield(u64, UnboundedSender<u64>),
        Sleep(u64, UnboundedSender<u64>),
        /// Keeps its thread until it is told to end.
        Block(std::sync::mpsc::Receiver<()>),
        /// The same for so long, and gives away what the runtime runs on.
        BlockInPlace(Duration),
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
                Test::Count(number, done) => done.send(number).unwrap(),
                Test::Yield(number, done) => {
                    tokio::task::yield_now().await;
                    done.send(number).unwrap();
                }
                Test::Sleep(number, done) => {
                    tokio::time::sleep(Duration::from_micros(number)).await;
                    done.send(number).unwrap();
                }
                Test::Block(end) => end.recv().unwrap(),
                Test::BlockInPlace(time) => {
                    tokio::task::block_in_place(|| std::thread::sleep(time));
                }
                Test::Panic => panic!("a job that panics"),
            }
        }
    }

    fn waiting() -> (oneshot::Sender<()>, Test) {
        let (end, ended) = oneshot::channel();
        (end, Test::Wait(ended))
    }

    fn tasks(crew: &Crew<Test>) -> usize {
        lock(&crew.0.tasks).len()
    }

    #[tokio::test]
    async fn jobs_that_wait_run_beside_each_other_and_their_tasks_are_used_again() {
        let crew = Crew::new();
        for _ in 0..100 {
            let (first, one) = waiting();
            let (second, other) = waiting();
            crew.start([one, other]);
            assert_eq!((crew.busy(), crew.bytes()), (2, 16));
            drop(second);
            while crew.busy() > 1 {
                crew.ended().await;
            }
            drop(first);
            crew.finish().await;
            assert_eq!((crew.busy(), crew.bytes()), (0, 0));
        }
        assert!(tasks(&crew) <= 3, "{}", tasks(&crew));
    }

    #[tokio::test]
    async fn one_task_does_all_jobs_that_do_not_wait_in_their_order() {
        let crew = Crew::new();
        let (sender, mut done) = tokio::sync::mpsc::unbounded_channel();
        let jobs = (0..1000).map(|number| Test::Count(number, sender.clone()));
        crew.start(jobs);
        for number in 0..1000 {
            assert_eq!(done.recv().await, Some(number));
        }
        crew.finish().await;
        assert_eq!(tasks(&crew), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_job_that_keeps_its_thread_keeps_no_other_from_beginning() {
        let crew = Crew::new();
        let (free, freed) = std::sync::mpsc::channel();
        let (sender, mut done) = tokio::sync::mpsc::unbounded_channel();
        let count = |number| Test::Count(number, sender.clone());
        let block = Test::Block(freed);
        crew.start([block, count(1), count(2), count(3)]);
        let others = async {
            for number in 1..=3 {
                assert_eq!(done.recv().await, Some(number));
            }
        };
        tokio::select! {
            () = others => {}
            never = crew.relief() => match never {},
            () = sleep(Duration::from_secs(10)) => panic!("no other thread does them"),
        }
        free.send(()).unwrap();
        crew.finish().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_job_begins_after_others_have_left_beside_one_that_keeps_its_thread() {
        let crew = Crew::new();
        let (free, freed) = std::sync::mpsc::channel();
        let (sender, mut done) = tokio::sync::mpsc::unbounded_channel();
        // Longer than the clock needs to call the other thread, which then has a job that leaves.
        let busy = Test::BlockInPlace(3 * PATIENCE / 2);
        let (end, leaves) = waiting();
        crew.start([busy, leaves, Test::Block(freed), Test::Count(7, sender)]);
        tokio::select! {
            number = done.recv() => assert_eq!(number, Some(7)),
            never = crew.relief() => match never {},
            () = sleep(Duration::from_secs(10)) => panic!("nobody begins it"),
        }
        free.send(()).unwrap();
        drop(end);
        crew.finish().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn jobs_that_give_their_thread_away_run_beside_each_other() {
        let crew = Crew::new();
        let began = Instant::now();
        crew.start((0..64).map(|_| Test::BlockInPlace(Duration::from_millis(100))));
        tokio::select! {
            () = crew.finish() => {}
            never = crew.relief() => match never {},
        }
        let took = began.elapsed();
        assert!(
            took < Duration::from_secs(3),
            "{took:?}, one after the other 6.4 s"
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn all_jobs_end_however_they_are_mixed() {
        let crew = Arc::new(Crew::new());
        let (sender, mut done) = tokio::sync::mpsc::unbounded_channel();
        let mut expected = 0;
        for round in 0..200_u64 {
            let jobs = (0..round % 40).map(|number| match number % 3 {
                0 => Test::Count(number, sender.clone()),
                1 => Test::Yield(number, sender.clone()),
                _ => Test::Sleep(number, sender.clone()),
            });
            crew.start(jobs);
            expected += round % 40;
            if round % 7 == 0 {
                tokio::task::yield_now().await;
            }
        }
        let finished = tokio::time::timeout(Duration::from_secs(30), crew.finish());
        finished.await.expect("all end");
        let mut ended = 0;
        while done.try_recv().is_ok() {
            ended += 1;
        }
        assert_eq!(ended, expected);
    }

    #[tokio::test]
    async fn a_task_is_free_before_the_room_of_its_job_is() {
        let crew = Crew::new();
        let (keep, kept) = oneshot::channel();
        crew.start([Test::Leave(keep)]);
        let ending = kept.await.unwrap();
        tokio::task::yield_now().await;
        assert_eq!((crew.busy(), crew.bytes()), (1, 8));
        let (end, job) = waiting();
        crew.start([job]);
        assert_eq!((crew.busy(), tasks(&crew)), (2, 1));
        drop((end, ending));
        crew.finish().await;
        assert_eq!((crew.busy(), crew.bytes()), (0, 0));
    }

    #[tokio::test]
    async fn a_job_that_panics_frees_its_place_and_is_told_of_and_others_go_on() {
        let crew = Crew::new();
        let (sender, mut done) = tokio::sync::mpsc::unbounded_channel();
        crew.start([Test::Panic, Test::Count(7, sender)]);
        crew.finish().await;
        assert_eq!(done.recv().await, Some(7));
        assert_eq!((crew.busy(), crew.bytes()), (0, 0));
        tokio::task::yield_now().await;
        assert!(crew.broken().expect("its task has ended").is_panic());
        let (end, job) = waiting();
        crew.start([job]);
        drop(end);
        crew.finish().await;
        assert!(crew.broken().is_none());
    }

    #[tokio::test]
    async fn jobs_end_where_they_are_with_the_crew() {
        let crew = Crew::new();
        let (end, job) = waiting();
        crew.start([job]);
        tokio::task::yield_now().await;
        let (never_begun, job) = waiting();
        crew.start([job]);
        assert_eq!(crew.shut_down().await, 2);
        assert!(end.is_closed() && never_begun.is_closed());
        assert_eq!(crew.busy(), 0);

        let crew = Crew::new();
        let (mut end, job) = waiting();
        let (mut never_begun, other) = waiting();
        crew.start([job]);
        tokio::task::yield_now().await;
        crew.start([other]);
        drop(crew);
        let dropped = async {
            end.closed().await;
            never_begun.closed().await;
        };
        let dropped = tokio::time::timeout(Duration::from_secs(5), dropped);
        dropped.await.expect("their futures are dropped");
    }
}
