//! A process: what runs in it runs on a clock of its own, stops when the process is frozen, and is
//! gone when it is killed.

use std::time::Duration;

use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::JoinHandle,
    time::{Instant, advance, sleep_until},
};

/// Two runtimes, one for the application and one for its upkeep, whose clocks stand still
/// unless the world lets them go on.
#[derive(Debug)]
pub(super) struct Host {
    threads: [Thread; 2],
    main: JoinHandle<()>,
}

#[derive(Debug)]
struct Thread {
    runtime: Runtime,
    /// What its clock showed at the world's time `born`.
    origin: Instant,
    born: u64,
    /// Until when it stands still.
    frozen: u64,
    /// Whether it has missed something.
    behind: bool,
}

/// Which of a process's threads.
pub(super) const APPLICATION: usize = 0;
pub(super) const UPKEEP: usize = 1;

impl Host {
    /// Starts a process, which is told where its upkeep runs.
    pub(super) fn start<F>(now: u64, main: impl FnOnce(Handle) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let threads = loop {
            let threads = [Thread::new(now), Thread::new(now)];
            // The two share points in time. Whole milliseconds compare the same in each run only if
            // the clocks are less than one apart.
            if threads[UPKEEP].origin - threads[APPLICATION].origin < Duration::from_micros(300) {
                break threads;
            }
        };
        let main = main(threads[UPKEEP].runtime.handle().clone());
        let main = threads[APPLICATION].runtime.spawn(main);
        Self { threads, main }
    }

    /// Lets it run until the world's clock shows `now`.
    pub(super) fn run(&mut self, now: u64) {
        self.threads.iter_mut().for_each(|thread| thread.run(now));
    }

    /// Stops a thread for a while.
    pub(super) fn freeze(&mut self, thread: usize, until: u64) {
        let thread = &mut self.threads[thread];
        thread.frozen = thread.frozen.max(until);
    }

    /// Whether it has come to its end by itself.
    pub(super) fn is_finished(&self) -> bool {
        self.main.is_finished()
    }
}

impl Thread {
    fn new(now: u64) -> Self {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        let runtime = runtime.expect("a runtime without I/O needs nothing");
        let origin = runtime.block_on(async { Instant::now() });
        Self {
            runtime,
            origin,
            born: now,
            frozen: 0,
            behind: false,
        }
    }

    fn run(&mut self, now: u64) {
        if self.frozen > now {
            self.behind = true;
            return;
        }
        let target = self.origin + Duration::from_millis(now - self.born);
        let missed = std::mem::take(&mut self.behind);
        self.runtime.block_on(async {
            if missed {
                // All at once, as for a process that is continued.
                advance(target - Instant::now()).await;
            }
            sleep_until(target).await;
        });
    }
}
