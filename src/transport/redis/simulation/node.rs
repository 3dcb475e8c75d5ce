//! A node: one simulated process, which can be frozen and killed.

use std::time::Duration;

use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::JoinHandle,
    time::{Instant, advance, sleep_until},
};

/// Two runtimes with paused clocks, one for the application and one for its upkeep. The clocks
/// advance only in [`run`](Self::run).
#[derive(Debug)]
pub(super) struct Node {
    threads: [Thread; 2],
    main: JoinHandle<()>,
}

#[derive(Debug)]
struct Thread {
    runtime: Runtime,
    /// The runtime's clock at the simulation's time `started_at`.
    origin: Instant,
    started_at: u64,
    /// The thread is frozen until this time.
    frozen_until: u64,
    /// Set if the thread was frozen during the last call of [`run`](Self::run).
    missed_a_turn: bool,
}

/// The index of the application's thread.
pub(super) const APPLICATION: usize = 0;
/// The index of the upkeep's thread.
pub(super) const UPKEEP: usize = 1;

impl Node {
    /// Starts a process. `main` gets the runtime of the upkeep.
    pub(super) fn start<F>(now: u64, main: impl FnOnce(Handle) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let threads = loop {
            let threads = [Thread::new(now), Thread::new(now)];
            // The two runtimes exchange instants. Comparisons of such instants give the same result
            // in each run only if the clocks are less than a millisecond apart.
            if threads[UPKEEP].origin - threads[APPLICATION].origin < Duration::from_micros(300) {
                break threads;
            }
        };
        let main = main(threads[UPKEEP].runtime.handle().clone());
        let main = threads[APPLICATION].runtime.spawn(main);
        Self { threads, main }
    }

    /// Runs the process until its clocks show the simulation's time `now`.
    pub(super) fn run(&mut self, now: u64) {
        self.threads.iter_mut().for_each(|thread| thread.run(now));
    }

    /// Freezes a thread until this time.
    pub(super) fn freeze(&mut self, thread: usize, until: u64) {
        let thread = &mut self.threads[thread];
        thread.frozen_until = thread.frozen_until.max(until);
    }

    /// Returns `true` if the process has ended by itself.
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
            started_at: now,
            frozen_until: 0,
            missed_a_turn: false,
        }
    }

    fn run(&mut self, now: u64) {
        if self.frozen_until > now {
            self.missed_a_turn = true;
            return;
        }
        let target = self.origin + Duration::from_millis(now - self.started_at);
        let missed = std::mem::take(&mut self.missed_a_turn);
        self.runtime.block_on(async {
            if missed {
                // The clock advances in one step, like the clock of a process that was frozen.
                advance(target - Instant::now()).await;
            }
            sleep_until(target).await;
        });
    }
}
