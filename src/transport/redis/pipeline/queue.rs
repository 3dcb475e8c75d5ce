//! The submit queue: commands that are not sent yet, in batches.
//!
//! Callers encode their commands into the batch that is sent next, so that no command is copied or
//! allocated for once more. A permit bounds what is queued and what is in flight, in commands and in
//! bytes: a batch holds the permits of its commands until they are answered.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, Mutex},
    task::Poll,
};

use futures_util::task::AtomicWaker;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::batch::{Batch, Buffers};
use crate::{error::Error, sync::lock, transport::redis::error};

/// How many commands may be queued and in flight.
pub(super) const MAX_COMMANDS: usize = 4096;
/// How many bytes they may have. A larger command passes alone.
pub(super) const MAX_BYTES: usize = 32 << 20;
/// How many bytes one permit stands for. Every command needs at least one permit, so one semaphore
/// bounds both numbers.
const BYTES_PER_PERMIT: usize = MAX_BYTES / MAX_COMMANDS;
/// How many buffers are kept to be used again: as many as there are batches in flight, and one.
const MAX_SPARE: usize = 5;
/// How many bytes a buffer that is kept may have allocated.
const MAX_KEPT: usize = 256 << 10;

/// Both ends of a queue.
pub(super) fn submit_queue() -> (Submitter, Receiver) {
    let queue = Arc::new(Queue {
        state: Mutex::default(),
        permits: Arc::new(Semaphore::new(MAX_COMMANDS)),
        receiver: AtomicWaker::new(),
    });
    (Submitter(Arc::new(Open(queue.clone()))), Receiver(queue))
}

struct Queue {
    state: Mutex<State>,
    /// Fair: who waits for permits gets them in the order in which they began to wait, and is woken
    /// once, when all of them are there.
    permits: Arc<Semaphore>,
    /// Woken when there is a batch, or there will be none any more.
    receiver: AtomicWaker,
}

#[derive(Default)]
struct State {
    /// The last batch takes more commands until it is full.
    batches: VecDeque<Batch>,
    spare: Vec<Buffers>,
    /// There is no submitter any more.
    closed: bool,
    /// There is no receiver any more.
    abandoned: bool,
}

/// The end that takes commands. Cheap to clone.
#[derive(Clone)]
pub(super) struct Submitter(Arc<Open>);

/// Closes the queue with the last submitter.
struct Open(Arc<Queue>);

impl Drop for Open {
    fn drop(&mut self) {
        lock(&self.0.state).closed = true;
        self.0.receiver.wake();
    }
}

/// The right to queue one command. Dropping it gives it back.
pub(super) struct Permit<'a> {
    queue: &'a Queue,
    permit: OwnedSemaphorePermit,
    submitted: Instant,
}

/// What a batch records about a command that has a permit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Admission {
    /// How many of the batch's permits are the command's.
    pub(super) permits: usize,
    /// The time from which the command's limits count.
    pub(super) submitted: Instant,
}

/// How many permits a command of about this many bytes needs.
fn permits(bytes: usize) -> u32 {
    bytes.div_ceil(BYTES_PER_PERMIT).clamp(1, MAX_COMMANDS) as u32
}

impl Submitter {
    /// A permit for a command of about this many bytes, unless it would have to wait.
    pub(super) fn try_reserve(&self, bytes: usize) -> Option<Permit<'_>> {
        let queue = &*self.0.0;
        let permit = queue.permits.clone().try_acquire_many_owned(permits(bytes));
        Some(Permit {
            queue,
            permit: permit.ok()?,
            submitted: Instant::now(),
        })
    }

    /// Waits for the permit of a command that was submitted at this time.
    pub(super) async fn reserve(
        &self,
        bytes: usize,
        submitted: Instant,
    ) -> Result<Permit<'_>, Error> {
        let queue = &*self.0.0;
        let permit = queue.permits.clone().acquire_many_owned(permits(bytes));
        Ok(Permit {
            queue,
            permit: permit.await.map_err(|_| error::runtime_ended())?,
            submitted,
        })
    }
}

impl Permit<'_> {
    /// Queues the one command that `add` adds to a batch.
    pub(super) fn push<T>(self, add: impl FnOnce(&mut Batch, Admission) -> T) -> Result<T, Error> {
        let mut state = lock(&self.queue.state);
        if state.abandoned {
            return Err(error::runtime_ended());
        }
        // A batch without a command is what a panic of an encoder has left.
        let first = state.batches.front().is_none_or(|it| it.len() == 0);
        if state.batches.back().is_none_or(Batch::is_full) {
            let buffers = state.spare.pop().unwrap_or_default();
            state.batches.push_back(Batch::new(buffers));
        }
        let batch = state.batches.back_mut().expect("there is one");
        let admission = Admission {
            permits: self.permit.num_permits(),
            submitted: self.submitted,
        };
        let added = add(batch, admission);
        batch.hold(self.permit);
        drop(state);
        if first {
            self.queue.receiver.wake();
        }
        Ok(added)
    }
}

/// The end that takes batches out. What is queued fails with it.
pub(super) struct Receiver(Arc<Queue>);

impl Receiver {
    /// The next batch, if there is one.
    pub(super) fn take(&self) -> Option<Batch> {
        lock(&self.0.state).batches.pop_front()
    }

    /// Keeps the buffers of a batch for another one.
    pub(super) fn reuse(&self, buffers: Buffers) {
        let mut state = lock(&self.0.state);
        if state.spare.len() < MAX_SPARE && buffers.capacity() <= MAX_KEPT {
            state.spare.push(buffers);
        }
    }

    /// Returns `true` if nothing is queued, and nothing will be.
    pub(super) fn is_closed(&self) -> bool {
        let state = lock(&self.0.state);
        state.closed && state.batches.is_empty()
    }

    /// Waits until there is a batch, or there will be none any more.
    pub(super) async fn filled(&self) {
        let is_filled = || {
            let state = lock(&self.0.state);
            state.closed || !state.batches.is_empty()
        };
        poll_fn(|cx| {
            self.0.receiver.register(cx.waker());
            match is_filled() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.abandoned = true;
        let left = std::mem::take(&mut state.batches);
        drop(state);
        self.0.permits.close();
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::transport::redis::pipeline::Retry;

    fn push(permit: Permit<'_>) {
        let added = permit.push(|batch, admission| {
            let ping = redis::cmd("PING");
            drop(batch.ask(&ping, Retry::UntilAnswered, None, admission));
        });
        added.expect("there is a receiver");
    }

    #[tokio::test]
    async fn queued_bytes_are_bounded_until_they_are_answered() {
        let (submitter, receiver) = submit_queue();
        for _ in 0..3 {
            push(submitter.try_reserve(MAX_BYTES / 4).expect("there is room"));
        }
        assert!(submitter.try_reserve(MAX_BYTES / 2).is_none());
        push(submitter.try_reserve(MAX_BYTES / 4).expect("there is room"));
        assert!(submitter.try_reserve(1).is_none());
        let in_flight = receiver.take().expect("it was queued");
        assert!(submitter.try_reserve(1).is_none());
        drop(in_flight);
        assert!(submitter.try_reserve(MAX_BYTES).is_some());
    }

    #[tokio::test]
    async fn a_command_larger_than_the_bound_passes_alone_and_before_those_behind_it() {
        let (submitter, receiver) = submit_queue();
        push(submitter.try_reserve(1).expect("it is empty"));
        let now = Instant::now();
        let mut large = Box::pin(submitter.reserve(2 * MAX_BYTES, now));
        let mut small = Box::pin(submitter.reserve(1, now));
        assert!((&mut large).now_or_never().is_none());
        assert!((&mut small).now_or_never().is_none());
        drop(receiver.take());
        push(
            (&mut large)
                .now_or_never()
                .expect("it is its turn")
                .expect("there is a receiver"),
        );
        assert!((&mut small).now_or_never().is_none());
        drop(receiver.take());
        assert!(small.now_or_never().is_some());
    }
}
