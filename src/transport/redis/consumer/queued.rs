//! Verdicts that are carried out many at a time.

use std::fmt;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::worker::{Grip, Worker};
use crate::error::{Error, ErrorKind};

/// What is told when the server has confirmed a verdict. Where that does not come to pass it is
/// dropped.
pub(super) type Then = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// A delivery whose verdict waits for its batch.
pub(super) struct Queued {
    /// Kept until the server has confirmed it, so that the lease lasts that long.
    pub(super) grip: Grip,
    then: Then,
}

impl Queued {
    pub(super) fn new(mut grip: Grip, then: Then) -> Self {
        grip.take_off();
        Self { grip, then }
    }

    /// The server has confirmed these.
    pub(super) fn confirm(worker: &Worker, mut batch: Vec<Self>) {
        // Counted first: whoever hears of it finds it counted.
        worker.counters.done.add(batch.len() as u64);
        Grip::release(worker, batch.iter_mut().map(|it| &mut it.grip));
        for Self { grip, then } in batch {
            drop(grip);
            then(Ok(()));
        }
    }

    /// Its verdict cannot be carried out.
    pub(super) fn fail(self, error: &Error) {
        drop(self.grip);
        (self.then)(Err(match error.is_closed() {
            true => Error::closed(),
            false => Error::new(ErrorKind::Refused, error.chain()),
        }));
    }
}

impl fmt::Debug for Queued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Queued").field(&self.grip.key).finish()
    }
}

/// Waits for a batch of at most `most`, and says whether there is one: not when the source is
/// closed. What comes while others are on their way is the next, and where `others` are still at
/// work they get a turn to finish: a batch is as large as the load asks for, and a lone delivery is not
/// delayed.
///
/// # Cancel safety
/// What it has gathered when it is dropped is in `batch`, and the next call goes on from there.
pub(super) async fn gather<T>(
    queue: &mut mpsc::UnboundedReceiver<T>,
    batch: &mut Vec<T>,
    most: usize,
    closed: &CancellationToken,
    others: impl Fn() -> bool,
) -> bool {
    if batch.is_empty() {
        tokio::select! {
            biased;
            _ = queue.recv_many(batch, most) => {}
            () = closed.cancelled() => return false,
        }
    }
    if others() {
        tokio::task::yield_now().await;
    }
    while batch.len() < most
        && let Ok(next) = queue.try_recv()
    {
        batch.push(next);
    }
    true
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn what_was_gathered_before_it_was_dropped_is_the_next_batch() {
        let (items, mut queue) = mpsc::unbounded_channel();
        let (mut batch, closed) = (Vec::new(), CancellationToken::new());
        items.send(1).unwrap();
        let gathering = gather(&mut queue, &mut batch, 8, &closed, || true);
        assert_eq!(gathering.now_or_never(), None, "it gives a turn to others");
        assert!(gather(&mut queue, &mut batch, 8, &closed, || true).await);
        assert_eq!(batch, [1]);
        batch.clear();
        items.send(2).unwrap();
        let gathering = gather(&mut queue, &mut batch, 8, &closed, || false);
        assert_eq!(
            gathering.now_or_never(),
            Some(true),
            "a lone one need not wait"
        );
    }
}
