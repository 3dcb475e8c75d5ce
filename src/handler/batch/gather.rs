//! How calls that come one by one become one.

use std::{
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::sync::{Notify, oneshot};

use super::{BatchError, BatchHandler, Why};
use crate::{error::BoxError, message::Message, reply::Reply, sync::lock};

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
    /// One for each place of its batch.
    items: Vec<I>,
    batch: Arc<Batch>,
    /// Given the items when there are enough.
    full: oneshot::Sender<Vec<I>>,
}

/// Where those wait who want to know what becomes of a message of a batch.
struct Batch {
    places: Mutex<Places>,
    /// Woken when nobody waits any more.
    none: Notify,
}

struct Places {
    all: Vec<Place>,
    waiting: usize,
}

enum Place {
    Waiting(Option<Waker>),
    Told(Outcome),
    Left,
}

impl Batch {
    fn new(size: usize) -> Self {
        Self {
            places: Mutex::new(Places {
                all: Vec::with_capacity(size.min(ROOM)),
                waiting: 0,
            }),
            none: Notify::new(),
        }
    }

    fn enter(self: &Arc<Self>) -> Waiter {
        let mut places = lock(&self.places);
        places.all.push(Place::Waiting(None));
        places.waiting += 1;
        Waiter {
            batch: self.clone(),
            place: places.all.len() - 1,
            told: false,
        }
    }

    /// The places of those who wait.
    fn taken(&self) -> Vec<bool> {
        let places = lock(&self.places);
        let taken = places.all.iter();
        taken
            .map(|place| matches!(place, Place::Waiting(_)))
            .collect()
    }

    /// Tells each of those who still wait, and were not told, what `outcome` has for its place.
    fn tell(&self, mut outcome: impl FnMut(usize) -> Outcome) {
        let mut wakers = Vec::new();
        let mut places = lock(&self.places);
        for (number, place) in places.all.iter_mut().enumerate() {
            if let Place::Waiting(waker) = place {
                wakers.extend(waker.take());
                *place = Place::Told(outcome(number));
            }
        }
        drop(places);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Waits until nobody waits.
    async fn none(&self) {
        while lock(&self.places).waiting > 0 {
            self.none.notified().await;
        }
    }
}

/// The future of what becomes of one message.
struct Waiter {
    batch: Arc<Batch>,
    place: usize,
    told: bool,
}

impl Future for Waiter {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let Self { batch, place, told } = &mut *self;
        let mut places = lock(&batch.places);
        let place = &mut places.all[*place];
        match std::mem::replace(place, Place::Left) {
            Place::Told(outcome) => {
                *told = true;
                Poll::Ready(outcome)
            }
            before => {
                *place = Place::Waiting(Some(cx.waker().clone()));
                drop(places);
                // A waker may be the last that keeps a task, and that another waiter of this batch.
                drop(before);
                Poll::Pending
            }
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.told {
            return;
        }
        let mut places = lock(&self.batch.places);
        let left = std::mem::replace(&mut places.all[self.place], Place::Left);
        places.waiting -= 1;
        let none = places.waiting == 0;
        drop(places);
        drop(left);
        if none {
            self.batch.none.notify_one();
        }
    }
}

/// Tells those who still wait when a batch ends without having told them: its function panicked.
struct Ended(Arc<Batch>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.tell(|_| Err(BatchError(Why::Panicked).into()));
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
        let waiter = self.add(item);
        drop(self);
        waiter.await
    }

    fn add(self: &Arc<Self>, item: H::Item) -> Waiter {
        let mut open = lock(&self.open);
        let now = open.get_or_insert_with(|| {
            let (full, items) = oneshot::channel();
            let batch = Arc::new(Batch::new(self.size));
            tokio::spawn(self.clone().run(items, batch.clone()));
            Open {
                items: Vec::with_capacity(self.size.min(ROOM)),
                batch,
                full,
            }
        });
        now.items.push(item);
        let waiter = now.batch.enter();
        if now.items.len() >= self.size
            && let Some(batch) = open.take()
        {
            // Its task waits for it, and is only gone with the runtime.
            let _ = batch.full.send(batch.items);
        }
        waiter
    }

    /// One batch, from its first message to its end.
    async fn run(self: Arc<Self>, mut full: oneshot::Receiver<Vec<H::Item>>, batch: Arc<Batch>) {
        let _ended = Ended(batch.clone());
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
        let taken = batch.taken();
        let mut places = taken.iter();
        items.retain(|_| *places.next().expect("each has a place"));
        if items.is_empty() {
            return;
        }
        let outcomes = tokio::select! {
            biased;
            outcomes = self.handler.clone().handle(items, &self.state) => outcomes,
            () = batch.none() => return,
        };
        match outcomes {
            Ok(outcomes) => {
                let mut outcomes = outcomes.into_iter();
                let mut outcomes: Vec<_> = taken
                    .into_iter()
                    .map(|taken| if taken { outcomes.next() } else { None })
                    .collect();
                batch.tell(|place| outcomes[place].take().expect("whoever waits was there"));
            }
            Err(error) => batch.tell(|_| Err(error.clone().into())),
        }
    }
}
