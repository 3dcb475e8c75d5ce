//! The progress and the checkpoint that a handler records for its running task.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tokio::{runtime::Handle, time::sleep};

use crate::{error::Error, sync::lock};

/// The minimum time between two writes of the progress of a task.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);

/// The future of a [`TaskRecord`].
pub type RecordFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// The record of a running task. Implemented by transports, for [`Progress`](crate::Progress) and
/// [`Checkpoint`](crate::Checkpoint). The writes have no effect, and return `false`, once the
/// worker no longer holds the delivery.
pub trait TaskRecord: Send + Sync + 'static {
    /// Stores the progress.
    fn set_progress(&self, progress: Bytes) -> RecordFuture<'_, bool>;

    /// Stores the checkpoint. Completes once the write is confirmed.
    fn set_checkpoint(&self, checkpoint: Bytes) -> RecordFuture<'_, bool>;

    /// Returns the checkpoint. `None` if there is none.
    fn checkpoint(&self) -> RecordFuture<'_, Option<Bytes>>;
}

/// The record of a task in its [`Lease`](super::Lease), with the progress that is not written yet.
pub(crate) struct RunningRecord {
    pub(crate) record: Box<dyn TaskRecord>,
    progress: Mutex<UnwrittenProgress>,
}

/// The progress that is not written yet.
#[derive(Default)]
struct UnwrittenProgress {
    /// The last report, until its write is confirmed. If the task ends first, this report is stored
    /// together with the end of the task, because a separate write may come too late.
    last: Option<Bytes>,
    /// Set while a tokio task writes, or waits until it may write again.
    is_writing: bool,
    /// Set once no more progress may be written.
    is_closed: bool,
}

impl RunningRecord {
    pub(crate) fn new(record: impl TaskRecord) -> Self {
        Self {
            record: Box::new(record),
            progress: Mutex::default(),
        }
    }

    /// Replaces the progress that is not written yet. A tokio task writes the newest progress, at
    /// most once a second.
    pub(crate) fn report(self: &Arc<Self>, progress: Bytes, runtime: &Handle) {
        let mut unwritten = lock(&self.progress);
        if unwritten.is_closed {
            return;
        }
        unwritten.last = Some(progress);
        if !std::mem::replace(&mut unwritten.is_writing, true) {
            runtime.spawn(self.clone().write_progress());
        }
    }

    /// Ends the writes. Returns the progress that is not written yet.
    pub(crate) fn close(&self) -> Option<Bytes> {
        let mut unwritten = lock(&self.progress);
        unwritten.is_closed = true;
        unwritten.last.take()
    }

    /// Writes the newest progress, once a second, until none is unwritten or the record is closed.
    async fn write_progress(self: Arc<Self>) {
        while let Some(progress) = self.next_progress() {
            match self.record.set_progress(progress.clone()).await {
                Ok(true) => {
                    let mut unwritten = lock(&self.progress);
                    // A newer progress may have been reported meanwhile.
                    unwritten.last.take_if(|last| *last == progress);
                }
                Ok(false) => drop(self.close()),
                Err(error) => {
                    tracing::debug!(error = error.chain(), "a progress could not be recorded");
                }
            }
            sleep(WRITE_INTERVAL).await;
        }
    }

    fn next_progress(&self) -> Option<Bytes> {
        let mut unwritten = lock(&self.progress);
        let next = unwritten.last.clone().filter(|_| !unwritten.is_closed);
        unwritten.is_writing = next.is_some();
        next
    }
}

impl fmt::Debug for RunningRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningRecord").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records the progress that is written. The first write fails if it has the progress `fails`.
    /// The progress `lost` is refused, and `hangs` is never confirmed.
    #[derive(Default)]
    struct Writes(Arc<Mutex<Vec<Bytes>>>);

    impl TaskRecord for Writes {
        fn set_progress(&self, progress: Bytes) -> RecordFuture<'_, bool> {
            let mut writes = lock(&self.0);
            let is_first = writes.is_empty();
            writes.push(progress.clone());
            Box::pin(async move {
                match &progress[..] {
                    b"fails" if is_first => Err(Error::disconnected("")),
                    b"hangs" => std::future::pending().await,
                    progress => Ok(progress != b"lost"),
                }
            })
        }

        fn set_checkpoint(&self, _: Bytes) -> RecordFuture<'_, bool> {
            Box::pin(async { Ok(true) })
        }

        fn checkpoint(&self) -> RecordFuture<'_, Option<Bytes>> {
            Box::pin(async { Ok(None) })
        }
    }

    fn start() -> (Arc<RunningRecord>, Arc<Mutex<Vec<Bytes>>>) {
        let writes = Writes::default();
        let written = writes.0.clone();
        (Arc::new(RunningRecord::new(writes)), written)
    }

    #[tokio::test(start_paused = true)]
    async fn of_very_many_reports_the_first_and_the_last_of_each_second_are_written() {
        let (record, written) = start();
        let runtime = Handle::current();
        for second in 0..3 {
            for report in 0..100_000 {
                record.report(format!("{second}.{report}").into(), &runtime);
                if report == 0 {
                    tokio::task::yield_now().await;
                }
            }
            sleep(WRITE_INTERVAL).await;
        }
        sleep(2 * WRITE_INTERVAL).await;
        let written = lock(&written).clone();
        assert_eq!(written.first().unwrap(), "0.0");
        assert_eq!(written.last().unwrap(), "2.99999");
        assert!((4..=5).contains(&written.len()), "{written:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_fails_is_repeated_and_a_lost_task_writes_nothing_more() {
        let (record, written) = start();
        let runtime = Handle::current();
        record.report("fails".into(), &runtime);
        sleep(2 * WRITE_INTERVAL).await;
        record.report("lost".into(), &runtime);
        sleep(2 * WRITE_INTERVAL).await;
        record.report("late".into(), &runtime);
        sleep(2 * WRITE_INTERVAL).await;
        assert_eq!(*lock(&written), ["fails", "fails", "lost"]);
        assert_eq!(record.close(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_has_the_report_whose_write_is_not_confirmed() {
        let (record, written) = start();
        record.report("hangs".into(), &Handle::current());
        sleep(WRITE_INTERVAL).await;
        assert_eq!(*lock(&written), ["hangs"]);
        assert_eq!(record.close().as_deref(), Some(&b"hangs"[..]));
        let (record, _) = start();
        record.report("written".into(), &Handle::current());
        sleep(WRITE_INTERVAL / 2).await;
        assert_eq!(record.close(), None);
    }
}
