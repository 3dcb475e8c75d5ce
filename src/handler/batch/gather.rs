//! Gathers single messages into batches.

use std::{
    marker::PhantomData,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    BatchHandler,
    error::{BatchError, BatchFault},
};
use crate::{
    error::BoxError,
    message::Message,
    reply::Reply,
    sync::{Completion, CompletionSlab, lock},
};

type Outcome = Result<Reply, BoxError>;

/// The maximum number of messages for which a batch allocates memory in advance.
const MAX_CAPACITY: usize = 1024;

/// Gathers the messages of a handler into batches. All clones of a
/// [`BatchService`](super::BatchService) share one `Gatherer`.
pub(super) struct Gatherer<H: BatchHandler<T, S>, T, S> {
    handler: H,
    state: S,
    size: usize,
    linger: Duration,
    /// The batch that takes further messages, if there is one.
    open_batch: Mutex<Option<OpenBatch<H::Item>>>,
    marker: PhantomData<fn() -> T>,
}

/// A batch that takes further messages.
struct OpenBatch<I> {
    /// The items, in the order of their completions.
    items: Vec<I>,
    completions: Arc<CompletionSlab<Outcome>>,
    /// Sends the items to the batch's task when the batch is full.
    full_batch_sender: oneshot::Sender<Vec<I>>,
}

/// When dropped, fails all completions that have no outcome yet. Only a panic of the function
/// leaves such completions.
struct FailOnPanic(Arc<CompletionSlab<Outcome>>);

impl Drop for FailOnPanic {
    fn drop(&mut self) {
        self.0
            .complete_all(|| Err(BatchError(BatchFault::Panicked).into()));
    }
}

impl<H, T, S> Gatherer<H, T, S>
where
    H: BatchHandler<T, S>,
{
    pub(super) fn new(handler: H, state: S, size: usize, linger: Duration) -> Self {
        Self {
            handler,
            state,
            size,
            linger,
            open_batch: Mutex::new(None),
            marker: PhantomData,
        }
    }
}

impl<H, T, S> Gatherer<H, T, S>
where
    H: BatchHandler<T, S>,
    T: 'static,
    S: Send + Sync + 'static,
{
    /// Adds a message to a batch, and waits for the outcome of the message.
    pub(super) async fn handle(self: Arc<Self>, message: Message) -> Outcome {
        let item = H::extract(message, &self.state).await?;
        let completion = self.add(item);
        drop(self);
        completion.await
    }

    /// Adds an item to the open batch, or to a new one.
    fn add(self: &Arc<Self>, item: H::Item) -> Completion<Outcome> {
        let mut open_batch = lock(&self.open_batch);
        let current = open_batch.get_or_insert_with(|| {
            let (full_batch_sender, full_batch_receiver) = oneshot::channel();
            let capacity = self.size.min(MAX_CAPACITY);
            let completions = Arc::new(CompletionSlab::with_capacity(capacity));
            tokio::spawn(self.clone().run(full_batch_receiver, completions.clone()));
            OpenBatch {
                items: Vec::with_capacity(capacity),
                completions,
                full_batch_sender,
            }
        });
        current.items.push(item);
        let completion = current.completions.insert();
        if current.items.len() >= self.size
            && let Some(batch) = open_batch.take()
        {
            // The task of the batch waits for the items, so sending fails only if the runtime has
            // shut down.
            let _ = batch.full_batch_sender.send(batch.items);
        }
        completion
    }

    /// Runs one batch, from its first message to its end.
    async fn run(
        self: Arc<Self>,
        mut full_batch_receiver: oneshot::Receiver<Vec<H::Item>>,
        completions: Arc<CompletionSlab<Outcome>>,
    ) {
        let _guard = FailOnPanic(completions.clone());
        let received = tokio::time::timeout(self.linger, &mut full_batch_receiver).await;
        let mut items = match received {
            Ok(items) => items.unwrap_or_default(),
            Err(_) => {
                let mut open_batch = lock(&self.open_batch);
                // If the channel has the items, this batch became full just before the lock was
                // taken. If the channel is empty, the open batch is this one.
                full_batch_receiver
                    .try_recv()
                    .ok()
                    .or_else(|| Some(open_batch.take()?.items))
                    .unwrap_or_default()
            }
        };
        // Drops the items of deliveries that no longer wait for an outcome.
        let pending = completions.pending_flags();
        let mut is_pending = pending.iter();
        items.retain(|_| *is_pending.next().expect("each has a completion"));
        if items.is_empty() {
            return;
        }
        let outcomes = tokio::select! {
            biased;
            outcomes = self.handler.clone().handle(items, &self.state) => outcomes,
            () = completions.all_dropped() => return,
        };
        match outcomes {
            Ok(outcomes) => {
                // The outcomes are those of the items that were kept, in their order.
                let kept = pending.into_iter().enumerate().filter(|(_, it)| *it);
                completions.complete(kept.map(|(index, _)| index).zip(outcomes));
            }
            Err(error) => completions.complete_all(|| Err(error.clone().into())),
        }
    }
}
