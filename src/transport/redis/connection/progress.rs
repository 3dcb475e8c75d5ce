//! Time limits that restart whenever a connection makes progress. A large response over a slow
//! network takes long, although the connection is not lost.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{error::Elapsed, timeout};

/// The number of checks for progress within a time limit. The wait may exceed the limit by the time
/// between two checks.
const CHECKS: u32 = 5;

/// Counts the bytes that show progress on a connection: bytes that were read, and bytes that were
/// written after a write had to wait for the server. Clones share the count.
#[derive(Debug, Clone, Default)]
pub(in crate::transport::redis) struct ByteProgress(Arc<AtomicU64>);

impl ByteProgress {
    pub(super) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(in crate::transport::redis) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns a function that returns `true` once there was progress after this call.
    pub(in crate::transport::redis) fn watched(&self) -> impl Fn() -> bool + use<> {
        let (progress, before) = (self.clone(), self.bytes());
        move || progress.bytes() != before
    }

    /// Waits for `work` on the connection. Fails if there is no progress for `max_first_silence` at
    /// the start, or for `max_silence` later.
    pub(in crate::transport::redis) async fn watch<T>(
        &self,
        max_first_silence: Duration,
        max_silence: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, Elapsed> {
        let mut work = pin!(work);
        let mut last_bytes = self.bytes();
        // Starts at the limit, so the first check fails if there was no progress.
        let mut checks_without_progress = CHECKS;
        let mut wait = max_first_silence;
        loop {
            let elapsed = match timeout(wait, &mut work).await {
                Ok(done) => return Ok(done),
                Err(elapsed) => elapsed,
            };
            let bytes = self.bytes();
            if std::mem::replace(&mut last_bytes, bytes) != bytes {
                checks_without_progress = 0;
            } else {
                checks_without_progress += 1;
            }
            if checks_without_progress >= CHECKS {
                return Err(elapsed);
            }
            wait = max_silence / CHECKS;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::{Instant, sleep};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn work_may_take_any_time_while_bytes_come_and_ends_soon_after_they_stop() {
        let progress = ByteProgress::default();
        let started = Instant::now();
        let receiving = async {
            for _ in 0..20 {
                sleep(4 * SECOND).await;
                progress.add(1);
            }
            pending::<()>().await;
        };
        let ended = progress.watch(7 * SECOND, 5 * SECOND, receiving).await;
        ended.expect_err("no byte comes any more");
        let silent = started.elapsed() - 80 * SECOND;
        assert!(silent >= 5 * SECOND && silent <= 6 * SECOND, "{silent:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn work_on_a_silent_connection_ends_after_the_first_limit() {
        let started = Instant::now();
        let progress = ByteProgress::default();
        let ended = progress.watch(7 * SECOND, 5 * SECOND, pending::<()>());
        ended.await.expect_err("no byte comes");
        assert_eq!(started.elapsed(), 7 * SECOND);
        let done = progress.watch(SECOND, SECOND, async { 1 }).await;
        assert_eq!(done.expect("it is done"), 1);
    }
}
