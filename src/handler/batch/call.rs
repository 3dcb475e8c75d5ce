//! Functions that take a batch of messages.

use std::future::Future;

use super::{BatchError, IntoReplies};
use crate::{
    error::BoxError,
    extract::{FromMessage, FromRef, State},
    message::Message,
    reply::Reply,
};

/// A function that a [`Batch`](crate::Batch) can call: an `async fn` with up to four arguments
/// `State<_>`, and then a `Vec` of an extractor. `T` stands for these arguments, and the compiler
/// infers it. `S` is the type of the state.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot take a batch",
    label = "one of the four conditions below does not hold",
    note = "1. it is an `async fn` (or a closure that returns a future and is `Clone + Send + Sync`), and its future is `Send`",
    note = "2. its last argument is a `Vec` of what is extracted from each message: `Vec<Json<T>>`, `Vec<Bytes>`, `Vec<String>`, `Vec<Message>`",
    note = "3. each argument before is a `State<_>`: everything else belongs to one message",
    note = "4. it returns `()`, a `Result<(), E>`, or a `Vec` of replies or results, one for each message"
)]
pub trait BatchHandler<T, S>: Clone + Send + Sync + 'static {
    /// The value that is extracted from each message.
    type Item: Send + 'static;

    /// Extracts the item of a message.
    #[doc(hidden)]
    fn extract(
        message: Message,
        state: &S,
    ) -> impl Future<Output = Result<Self::Item, BoxError>> + Send;

    /// Calls the function. Returns one outcome for each item.
    #[doc(hidden)]
    fn handle(
        self,
        items: Vec<Self::Item>,
        state: &S,
    ) -> impl Future<Output = Result<Vec<Result<Reply, BoxError>>, BatchError>> + Send;
}

/// Implements [`BatchHandler`] for functions with these `State` arguments before the `Vec`.
macro_rules! function {
    ($($part:ident),*) => {
        #[allow(non_snake_case)]
        impl<F, Fut, S, M, $($part,)* T> BatchHandler<(M, $($part,)* T), S> for F
        where
            F: FnOnce($(State<$part>,)* Vec<T>) -> Fut + Clone + Send + Sync + 'static,
            Fut: Future<Output: IntoReplies> + Send,
            S: Sync,
            $($part: FromRef<S> + Send,)*
            T: FromMessage<S, M> + Send + 'static,
        {
            type Item = T;

            async fn extract(message: Message, state: &S) -> Result<T, BoxError> {
                T::from_message(message, state).await.map_err(Into::into)
            }

            async fn handle(
                self,
                items: Vec<T>,
                state: &S,
            ) -> Result<Vec<Result<Reply, BoxError>>, BatchError> {
                let message_count = items.len();
                $(let $part = State($part::from_ref(state));)*
                let _ = state;
                self($($part,)* items).await.into_replies(message_count)
            }
        }
    };
}

function!();
function!(P1);
function!(P1, P2);
function!(P1, P2, P3);
function!(P1, P2, P3, P4);
