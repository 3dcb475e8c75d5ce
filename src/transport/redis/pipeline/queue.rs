//! The submit queue: batches of commands that are not sent yet.
//!
//! Callers encode their commands directly into the last batch, without a copy or an allocation for
//! each command. Permits bound the commands that are queued and in flight, in number and in bytes.
//! A batch holds the permits of its commands until they have responses.

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

use super::batch::{Buffers, CommandBatch};
use crate::{
    error::Error,
    sync::lock,
    transport::redis::{error, server::HashSlot},
};

/// The maximum number of commands that are queued or in flight.
pub(super) const MAX_COMMANDS: usize = 4096;
/// The maximum number of bytes of the commands that are queued or in flight. A larger command is
/// admitted only while there is no other command.
pub(super) const MAX_BYTES: usize = 32 << 20;
/// The number of bytes for one permit. Every command needs at least one permit, so one semaphore
/// bounds the commands and their bytes.
const BYTES_PER_PERMIT: usize = MAX_BYTES / MAX_COMMANDS;
/// The maximum number of buffers that are kept for reuse: the maximum number of pipelines in
/// flight, plus one.
const MAX_SPARE: usize = 5;
/// The largest buffer that is kept, in bytes.
const MAX_SPARE_BYTES: usize = 256 << 10;

/// Makes both ends of a queue.
pub(super) fn submit_queue() -> (Submitter, Receiver) {
    let queue = Arc::new(Queue {
        state: Mutex::default(),
        permits: Arc::new(Semaphore::new(MAX_COMMANDS)),
        receiver_waker: AtomicWaker::new(),
    });
    (
        Submitter(Arc::new(CloseOnDrop(queue.clone()))),
        Receiver(queue),
    )
}

struct Queue {
    state: Mutex<QueueState>,
    /// A fair semaphore: waiters get their permits in the order in which they came, and each is
    /// woken once, when it has all its permits.
    permits: Arc<Semaphore>,
    /// Woken when there is a batch, or when the last submitter is dropped.
    receiver_waker: AtomicWaker,
}

#[derive(Default)]
struct QueueState {
    /// The queued commands. The last batch takes commands until it is full.
    batches: VecDeque<CommandBatch>,
    /// Commands that the tasks of other nodes have forwarded, each a batch of one command. They are
    /// sent before `batches`.
    forwarded: VecDeque<CommandBatch>,
    /// Buffers for new batches.
    spare: Vec<Buffers>,
    /// Set when the last submitter is dropped.
    closed: bool,
    /// Set when the receiver is dropped.
    abandoned: bool,
}

impl QueueState {
    fn is_empty(&self) -> bool {
        self.batches.is_empty() && self.forwarded.is_empty()
    }
}

/// The sending end. Cheap to clone.
#[derive(Clone)]
pub(super) struct Submitter(Arc<CloseOnDrop>);

/// Closes the queue when the last submitter is dropped.
struct CloseOnDrop(Arc<Queue>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        lock(&self.0.state).closed = true;
        self.0.receiver_waker.wake();
    }
}

/// The permission to queue one command. Dropping it releases its permits.
pub(super) struct QueuePermit<'a> {
    queue: &'a Queue,
    permit: OwnedSemaphorePermit,
    submitted: Instant,
    slot: HashSlot,
}

/// The permits, the time of submission and the slot of a command in a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct CommandAdmission {
    /// The number of the batch's permits that belong to the command.
    pub(super) permits: usize,
    /// The time from which the command's time limits count.
    pub(super) submitted: Instant,
    /// The slot of the command's keys.
    pub(super) slot: HashSlot,
}

/// Returns the number of permits for a command of about this many bytes.
fn permits(bytes: usize) -> u32 {
    bytes.div_ceil(BYTES_PER_PERMIT).clamp(1, MAX_COMMANDS) as u32
}

impl Submitter {
    /// Reserves a permit for a command of about this many bytes; `None` if it would have to wait.
    pub(super) fn try_reserve(&self, bytes: usize, slot: HashSlot) -> Option<QueuePermit<'_>> {
        let queue = &*self.0.0;
        let permit = queue.permits.clone().try_acquire_many_owned(permits(bytes));
        Some(QueuePermit {
            queue,
            permit: permit.ok()?,
            submitted: Instant::now(),
            slot,
        })
    }

    /// Waits for the permit of a command that was submitted at this time.
    pub(super) async fn reserve(
        &self,
        bytes: usize,
        submitted: Instant,
        slot: HashSlot,
    ) -> Result<QueuePermit<'_>, Error> {
        let queue = &*self.0.0;
        let permit = queue.permits.clone().acquire_many_owned(permits(bytes));
        Ok(QueuePermit {
            queue,
            permit: permit.await.map_err(|_| error::runtime_ended())?,
            submitted,
            slot,
        })
    }

    /// Queues a command that another node's task forwards. The command keeps its permits, which
    /// belong to the queue of that other node.
    pub(super) fn forward(&self, one: CommandBatch) {
        let queue = &*self.0.0;
        let mut state = lock(&queue.state);
        if state.abandoned {
            drop(state);
            // Dropped without the lock, since dropping the batch completes the command.
            return drop(one);
        }
        state.forwarded.push_back(one);
        drop(state);
        queue.receiver_waker.wake();
    }
}

impl QueuePermit<'_> {
    /// Queues the command that `add` adds to a batch.
    pub(super) fn push<T>(
        self,
        add: impl FnOnce(&mut CommandBatch, CommandAdmission) -> T,
    ) -> Result<T, Error> {
        let mut state = lock(&self.queue.state);
        if state.abandoned {
            return Err(error::runtime_ended());
        }
        // The receiver is woken for the first command: there is no batch, or an encoder that has
        // panicked has left an empty one.
        let is_first = state.batches.front().is_none_or(|it| it.len() == 0);
        if state.batches.back().is_none_or(CommandBatch::is_full) {
            let buffers = state.spare.pop().unwrap_or_default();
            state.batches.push_back(CommandBatch::new(buffers));
        }
        let batch = state.batches.back_mut().expect("there is one");
        let admission = CommandAdmission {
            permits: self.permit.num_permits(),
            submitted: self.submitted,
            slot: self.slot,
        };
        let added = add(batch, admission);
        batch.hold_permit(self.permit);
        drop(state);
        if is_first {
            self.queue.receiver_waker.wake();
        }
        Ok(added)
    }
}

/// The receiving end. Dropping it fails all queued commands.
pub(super) struct Receiver(Arc<Queue>);

impl Receiver {
    /// Takes the next batch, if there is one.
    pub(super) fn take(&self) -> Option<CommandBatch> {
        let mut state = lock(&self.0.state);
        let forwarded = state.forwarded.pop_front();
        forwarded.or_else(|| state.batches.pop_front())
    }

    /// Keeps the buffers of a batch for reuse.
    pub(super) fn reuse(&self, buffers: Buffers) {
        let mut state = lock(&self.0.state);
        if state.spare.len() < MAX_SPARE && buffers.capacity() <= MAX_SPARE_BYTES {
            state.spare.push(buffers);
        }
    }

    /// Returns `true` if the queue is empty and its last submitter was dropped.
    pub(super) fn is_closed(&self) -> bool {
        let state = lock(&self.0.state);
        state.closed && state.is_empty()
    }

    /// Waits until there is a batch, or the last submitter was dropped.
    pub(super) async fn filled(&self) {
        let is_filled = || {
            let state = lock(&self.0.state);
            state.closed || !state.is_empty()
        };
        poll_fn(|cx| {
            self.0.receiver_waker.register(cx.waker());
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
        let unsent = [
            std::mem::take(&mut state.batches),
            std::mem::take(&mut state.forwarded),
        ];
        drop(state);
        self.0.permits.close();
        drop(unsent);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::transport::redis::pipeline::Resend;

    const SLOT: HashSlot = HashSlot::ANY;

    fn push(permit: QueuePermit<'_>) {
        let added = permit.push(|batch, admission| {
            let ping = redis::cmd("PING");
            drop(batch.push_awaited(&ping, Resend::UntilAnswered, None, admission));
        });
        added.expect("there is a receiver");
    }

    #[tokio::test]
    async fn queued_bytes_are_bounded_until_they_are_answered() {
        let (submitter, receiver) = submit_queue();
        for _ in 0..3 {
            push(
                submitter
                    .try_reserve(MAX_BYTES / 4, SLOT)
                    .expect("there is room"),
            );
        }
        assert!(submitter.try_reserve(MAX_BYTES / 2, SLOT).is_none());
        push(
            submitter
                .try_reserve(MAX_BYTES / 4, SLOT)
                .expect("there is room"),
        );
        assert!(submitter.try_reserve(1, SLOT).is_none());
        let in_flight = receiver.take().expect("it was queued");
        assert!(submitter.try_reserve(1, SLOT).is_none());
        drop(in_flight);
        assert!(submitter.try_reserve(MAX_BYTES, SLOT).is_some());
    }

    #[tokio::test]
    async fn a_command_larger_than_the_bound_passes_alone_and_before_those_behind_it() {
        let (submitter, receiver) = submit_queue();
        push(submitter.try_reserve(1, SLOT).expect("it is empty"));
        let now = Instant::now();
        let mut large = Box::pin(submitter.reserve(2 * MAX_BYTES, now, SLOT));
        let mut small = Box::pin(submitter.reserve(1, now, SLOT));
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
