//! How calls that come one by one become one.

use std::{
    marker::PhantomData,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, oneshot};

use super::{BatchError, BatchHandler, Why};
use crate::{error::BoxError, message::Message, reply::Reply, sync::lock};

type Outcome = Result<Reply, BoxError>;

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
    elements: Vec<Element<I>>,
    waiters: Arc<Waiters>,
    /// Given the elements when there are enough.
    full: oneshot::Sender<Vec<Element<I>>>,
}

struct Element<I> {
    item: I,
    answer: oneshot::Sender<Outcome>,
}

/// Those who wait for what becomes of a message of a batch.
#[derive(Default)]
struct Waiters {
    count: AtomicUsize,
    none: Notify,
}

struct Waiter(Arc<Waiters>);

impl Waiter {
    fn new(waiters: &Arc<Waiters>) -> Self {
        waiters.count.fetch_add(1, Ordering::SeqCst);
        Self(waiters.clone())
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.none.notify_one();
        }
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
        let (answered, _waiter) = self.add(item);
        drop(self);
        match answered.await {
            Ok(outcome) => outcome,
            Err(_) => Err(BatchError(Why::Panicked).into()),
        }
    }

    fn add(self: &Arc<Self>, item: H::Item) -> (oneshot::Receiver<Outcome>, Waiter) {
        let (answer, answered) = oneshot::channel();
        let mut open = lock(&self.open);
        let batch = open.get_or_insert_with(|| {
            let (full, elements) = oneshot::channel();
            let waiters = Arc::default();
            tokio::spawn(self.clone().run(elements, Arc::clone(&waiters)));
            Open {
                elements: Vec::new(),
                waiters,
                full,
            }
        });
        batch.elements.push(Element { item, answer });
        let waiter = Waiter::new(&batch.waiters);
        if batch.elements.len() >= self.size
            && let Some(batch) = open.take()
        {
            // Its task waits for it, and is only gone with the runtime.
            let _ = batch.full.send(batch.elements);
        }
        (answered, waiter)
    }

    /// One batch, from its first message to its end.
    async fn run(
        self: Arc<Self>,
        mut full: oneshot::Receiver<Vec<Element<H::Item>>>,
        waiters: Arc<Waiters>,
    ) {
        let waited = tokio::time::timeout(self.linger, &mut full).await;
        let mut elements = match waited {
            Ok(elements) => elements.unwrap_or_default(),
            Err(_) => {
                let mut open = lock(&self.open);
                // As long as it is not full, the open one is this one.
                full.try_recv()
                    .ok()
                    .or_else(|| Some(open.take()?.elements))
                    .unwrap_or_default()
            }
        };
        // Nobody waits for them any more.
        elements.retain(|element| !element.answer.is_closed());
        if elements.is_empty() {
            return;
        }
        let (items, answers): (Vec<_>, Vec<_>) = elements
            .into_iter()
            .map(|element| (element.item, element.answer))
            .unzip();
        let outcomes = tokio::select! {
            biased;
            outcomes = self.handler.clone().handle(items, &self.state) => outcomes,
            () = waiters.none() => return,
        };
        match outcomes {
            Ok(outcomes) => {
                for (answer, outcome) in answers.into_iter().zip(outcomes) {
                    let _ = answer.send(outcome);
                }
            }
            Err(error) => {
                for answer in answers {
                    let _ = answer.send(Err(error.clone().into()));
                }
            }
        }
    }
}

impl Waiters {
    /// Waits until nobody waits.
    async fn none(&self) {
        while self.count.load(Ordering::SeqCst) > 0 {
            self.none.notified().await;
        }
    }
}
