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
/// closed. What comes while one batch is on its way is the next, so a batch is as large as the load
/// asks for, and an idle worker's handler is not delayed.
pub(super) async fn gather<T>(
    queue: &mut mpsc::UnboundedReceiver<T>,
    batch: &mut Vec<T>,
    most: usize,
    closed: &CancellationToken,
) -> bool {
    tokio::select! {
        biased;
        _ = queue.recv_many(batch, most) => true,
        () = closed.cancelled() => false,
    }
}
