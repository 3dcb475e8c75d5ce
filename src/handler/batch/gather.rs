//! How calls that come one by one become one.

use std::{
    marker::PhantomData,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    BatchHandler,
    service::{BatchError, Why},
};
use crate::{
    error::BoxError,
    message::Message,
    reply::Reply,
    sync::{Completion, CompletionSlab, lock},
};

type Outcome = Result<Reply, BoxError>;

/// For how many messages there is room from the start, however many a batch may have.
const ROOM: usize = 1024;

/// What all clones of a service share.
pub(super) struct Gather<H: BatchHandler<T, S>, T, S> {
    handler: H,
    state: S,
    size: usize,
    linger: Duration,
    /// The batch that still takes messages.
    open: Mutex<Option<Open<H::Item>>>,
    marker: PhantomData<fn() -> T>,
}

struct Open<I> {
    /// One for each completion of its batch.
    items: Vec<I>,
    completions: Arc<CompletionSlab<Outcome>>,
    /// Given the items when there are enough.
    full: oneshot::Sender<Vec<I>>,
}

/// Fails the completions that are left when a batch ends without outcomes: its function panicked.
struct Ended(Arc<CompletionSlab<Outcome>>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0
            .complete_all(|| Err(BatchError(Why::Panicked).into()));
    }
}

impl<H, T, S> Gather<H, T, S>
where
    H: BatchHandler<T, S>,
{
    pub(super) fn new(handler: H, state: S, size: usize, linger: Duration) -> Self {
        Self {
            handler,
            state,
            size,
            linger,
            open: Mutex::new(None),
            marker: PhantomData,
        }
    }
}

impl<H, T, S> Gather<H, T, S>
where
    H: BatchHandler<T, S>,
    T: 'static,
    S: Send + Sync + 'static,
{
    /// What becomes of one message.
    pub(super) async fn handle(self: Arc<Self>, message: Message) -> Outcome {
        let item = H::extract(message, &self.state).await?;
        let completion = self.add(item);
        drop(self);
        completion.await
    }

    fn add(self: &Arc<Self>, item: H::Item) -> Completion<Outcome> {
        let mut open = lock(&self.open);
        let now = open.get_or_insert_with(|| {
            let (full, items) = oneshot::channel();
            let room = self.size.min(ROOM);
            let completions = Arc::new(CompletionSlab::with_capacity(room));
            tokio::spawn(self.clone().run(items, completions.clone()));
            Open {
                items: Vec::with_capacity(room),
                completions,
                full,
            }
        });
        now.items.push(item);
        let completion = now.completions.insert();
        if now.items.len() >= self.size
            && let Some(batch) = open.take()
        {
            // Its task waits for it, and is only gone with the runtime.
            let _ = batch.full.send(batch.items);
        }
        completion
    }

    /// One batch, from its first message to its end.
    async fn run(
        self: Arc<Self>,
        mut full: oneshot::Receiver<Vec<H::Item>>,
        completions: Arc<CompletionSlab<Outcome>>,
    ) {
        let _ended = Ended(completions.clone());
        let waited = tokio::time::timeout(self.linger, &mut full).await;
        let mut items = match waited {
            Ok(items) => items.unwrap_or_default(),
            Err(_) => {
                let mut open = lock(&self.open);
                // As long as it is not full, the open one is this one.
                full.try_recv()
                    .ok()
                    .or_else(|| Some(open.take()?.items))
                    .unwrap_or_default()
            }
        };
        // Nobody waits for the others any more.
        let pending = completions.pending();
        let mut present = pending.iter();
        items.retain(|_| *present.next().expect("each has a completion"));
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
                let present = pending.into_iter().enumerate().filter(|(_, it)| *it);
                completions.complete(present.map(|(index, _)| index).zip(outcomes));
            }
            Err(error) => completions.complete_all(|| Err(error.clone().into())),
        }
    }
}
