//! What was submitted and is not sent yet: callers pack their commands into the batch that is sent
//! next, so that none is copied, or allocated for, once more.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, Mutex},
    task::Poll,
};

use futures_util::task::AtomicWaker;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::batch::{Batch, Buffers};
use crate::{error::Error, sync::lock, transport::redis::error};

/// How many commands may wait to be sent.
pub(super) const ROOM: usize = 1024;
/// How many buffers are kept to be used again, as many as there are batches on their way and one,
/// and of how many bytes each at most.
const SPARE: usize = 5;
const KEPT: usize = 256 << 10;

/// An outbox: what is put in comes out in the same order, in batches.
pub(super) fn outbox() -> (Sender, Receiver) {
    let outbox = Arc::new(Outbox {
        state: Mutex::default(),
        room: Semaphore::new(ROOM),
        receiver: AtomicWaker::new(),
    });
    (Sender(Arc::new(Open(outbox.clone()))), Receiver(outbox))
}

struct Outbox {
    state: Mutex<State>,
    /// A permit for each command for which there is room.
    room: Semaphore,
    /// Woken when there is a batch, or there will be none any more.
    receiver: AtomicWaker,
}

#[derive(Default)]
struct State {
    /// The last of them takes more, until it is full.
    batches: VecDeque<Batch>,
    spare: Vec<Buffers>,
    /// Whether there is no sender any more.
    closed: bool,
    /// Whether there is no receiver any more.
    abandoned: bool,
}

/// Where commands are put in. Cheap to clone.
#[derive(Clone)]
pub(super) struct Sender(Arc<Open>);

/// Closes the outbox with the last sender.
struct Open(Arc<Outbox>);

impl Drop for Open {
    fn drop(&mut self) {
        lock(&self.0.state).closed = true;
        self.0.receiver.wake();
    }
}

/// Room for one command. It is given back where it is not used.
pub(super) struct Room<'a> {
    outbox: &'a Outbox,
    permit: SemaphorePermit<'a>,
}

impl Sender {
    /// Room for one command, if there is some.
    pub(super) fn room(&self) -> Option<Room<'_>> {
        let outbox = &*self.0.0;
        let permit = outbox.room.try_acquire().ok()?;
        Some(Room { outbox, permit })
    }

    /// Waits for room; those who wait get it in their order.
    pub(super) async fn wait(&self) -> Result<Room<'_>, Error> {
        let outbox = &*self.0.0;
        let permit = outbox
            .room
            .acquire()
            .await
            .map_err(|_| error::runtime_ended())?;
        Ok(Room { outbox, permit })
    }
}

impl Room<'_> {
    /// Uses it for the one command that `add` adds to a batch.
    pub(super) fn fill<T>(self, add: impl FnOnce(&mut Batch) -> T) -> Result<T, Error> {
        let mut state = lock(&self.outbox.state);
        if state.abandoned {
            return Err(error::runtime_ended());
        }
        // One that is empty is what a panic has left.
        let first = state.batches.front().is_none_or(|it| it.len() == 0);
        if state.batches.back().is_none_or(Batch::is_full) {
            let buffers = state.spare.pop().unwrap_or_default();
            state.batches.push_back(Batch::new(buffers));
        }
        let added = add(state.batches.back_mut().expect("there is one"));
        drop(state);
        self.permit.forget();
        if first {
            self.outbox.receiver.wake();
        }
        Ok(added)
    }
}

/// Where batches come out. What is in the outbox fails with it.
pub(super) struct Receiver(Arc<Outbox>);

impl Receiver {
    /// The next batch, if there is one.
    pub(super) fn take(&self) -> Option<Batch> {
        let batch = lock(&self.0.state).batches.pop_front()?;
        self.0.room.add_permits(batch.len());
        Some(batch)
    }

    /// Takes back what a batch was made of.
    pub(super) fn reuse(&self, buffers: Buffers) {
        let mut state = lock(&self.0.state);
        if state.spare.len() < SPARE && buffers.capacity() <= KEPT {
            state.spare.push(buffers);
        }
    }

    /// Whether nothing is there, and nothing will be.
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
        self.0.room.close();
        drop(left);
    }
}
