//! Batches as handlers, and their service.

use std::{marker::PhantomData, sync::Arc, time::Duration};

use tower::Service;

use super::{BatchHandler, gather::Gatherer};
use crate::handler::{Handler, HandlerFuture};
use crate::{error::BoxError, message::Message, reply::Reply, service::Route};

/// A handler that calls its function with a batch of messages. See the [module](super).
///
/// ```
/// use std::time::Duration;
/// use campanile::{Batch, Router};
///
/// async fn insert(rows: Vec<String>) {
///     println!("{} rows in one statement", rows.len());
/// }
///
/// let insert = Batch::new(insert).size(100).linger(Duration::from_millis(50));
/// let app: Router = Router::new().task("rows.insert", insert);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Batch<H> {
    handler: H,
    size: usize,
    linger: Duration,
}

impl<H> Batch<H> {
    /// Creates a handler from an `async fn` whose last argument is a `Vec` of an extractor, such as
    /// `Vec<Json<T>>` or `Vec<Message>`. Up to four `State<_>` arguments may come before the `Vec`.
    ///
    /// The function may return one outcome for all messages: `()` or a `Result<(), E>`. Or it
    /// returns a `Vec` with one reply or result for each message, in the order of the messages.
    pub const fn new(handler: H) -> Self {
        Self {
            handler,
            size: 32,
            linger: Duration::from_millis(10),
        }
    }

    /// Sets the maximum number of messages in a batch. A full batch runs immediately. 32 unless
    /// set.
    ///
    /// # Panics
    /// When `messages` is zero.
    #[must_use]
    #[track_caller]
    pub const fn size(mut self, messages: usize) -> Self {
        assert!(messages > 0, "a batch must hold at least 1 message");
        self.size = messages;
        self
    }

    /// Sets the maximum time that the first message of a batch waits for others. If the time is
    /// zero, a batch has only messages that arrive at the same time. 10 ms unless set.
    #[must_use]
    pub const fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }
}

/// Marks the arguments of a batch's function, so that the implementation of [`Handler`] for
/// [`Batch`] does not overlap with the implementation for functions.
#[derive(Debug)]
pub struct Batched<T>(PhantomData<fn() -> T>);

// Without this attribute, the compiler would suggest this implementation for each function that is
// not a handler.
#[diagnostic::do_not_recommend]
impl<H, T, S> Handler<Batched<T>, S> for Batch<H>
where
    H: BatchHandler<T, S>,
    T: 'static,
    S: Clone + Send + Sync + 'static,
{
    type Service = BatchService<H, T, S>;

    fn with_state(self, state: S) -> Self::Service {
        BatchService {
            gatherer: Arc::new(Gatherer::new(self.handler, state, self.size, self.linger)),
        }
    }

    fn batch_size(&self) -> usize {
        self.size
    }

    fn into_route(self, state: S) -> Route {
        let gatherer = self.with_state(state).gatherer;
        Route::from_fn(move |message| gatherer.clone().handle(message))
    }
}

/// The service of a [`Batch`] with its state. Each call is for one message, and clones share their
/// batches.
pub struct BatchService<H: BatchHandler<T, S>, T, S> {
    gatherer: Arc<Gatherer<H, T, S>>,
}

impl<H: BatchHandler<T, S>, T, S> Clone for BatchService<H, T, S> {
    fn clone(&self) -> Self {
        Self {
            gatherer: self.gatherer.clone(),
        }
    }
}

impl<H: BatchHandler<T, S>, T, S> std::fmt::Debug for BatchService<H, T, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("BatchService")
            .field(&std::any::type_name::<H>())
            .finish()
    }
}

impl<H, T, S> Service<Message> for BatchService<H, T, S>
where
    H: BatchHandler<T, S>,
    T: 'static,
    S: Send + Sync + 'static,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = HandlerFuture;

    /// Always ready, because a message that does not fit into the open batch begins another batch.
    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), BoxError>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, message: Message) -> HandlerFuture {
        HandlerFuture::new(self.gatherer.clone().handle(message))
    }
}
