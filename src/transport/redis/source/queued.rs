//! Verdicts that are carried out many at a time.

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::worker::{Flight, Grip};
use crate::error::{Error, ErrorKind};

/// Resolves when the server has confirmed a verdict.
pub(super) type Confirmed = oneshot::Receiver<Result<(), Error>>;

/// A delivery whose verdict waits for its batch.
#[derive(Debug)]
pub(super) struct Queued {
    /// Kept until the server has confirmed it, so that the lease lasts that long.
    pub(super) grip: Grip,
    done: oneshot::Sender<Result<(), Error>>,
    flight: Flight,
}

impl Queued {
    pub(super) fn new(grip: Grip) -> (Self, Confirmed) {
        let (done, confirmed) = oneshot::channel();
        let flight = Flight::new(&grip.worker);
        let queued = Self { grip, done, flight };
        (queued, confirmed)
    }

    /// Lets go of the delivery, and says so.
    pub(super) fn confirm(self, outcome: Result<(), &Error>) {
        drop((self.grip, self.flight));
        let _ = self.done.send(outcome.map_err(|error| {
            if error.is_closed() {
                Error::closed()
            } else {
                Error::new(ErrorKind::Refused, error.chain())
            }
        }));
    }
}

/// Waits for a batch of at most `most`, and says whether there is one: not when the source is
/// closed. What comes while others are on their way is the next, and what is about to come gets a
/// turn to do so: a batch is as large as the load asks for, and an idle worker's handler is not
/// delayed.
///
/// # Cancel safety
/// What it has gathered when it is dropped is in `batch`, and the next call goes on from there.
pub(super) async fn gather<T>(
    queue: &mut mpsc::UnboundedReceiver<T>,
    batch: &mut Vec<T>,
    most: usize,
    closed: &CancellationToken,
) -> bool {
    if batch.is_empty() {
        tokio::select! {
            biased;
            _ = queue.recv_many(batch, most) => {}
            () = closed.cancelled() => return false,
        }
    }
    tokio::task::yield_now().await;
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
        let gathering = gather(&mut queue, &mut batch, 8, &closed);
        assert_eq!(gathering.now_or_never(), None, "it gives a turn to others");
        assert!(gather(&mut queue, &mut batch, 8, &closed).await);
        assert_eq!(batch, [1]);
    }
}
