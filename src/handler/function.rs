//! Functions as handlers.

use std::future::Future;

use super::{Handler, HandlerService};
use crate::{
    error::BoxError,
    extract::{FromMessage, FromMessageParts},
    message::Message,
    reply::{IntoReply, Reply},
    service::Route,
};

/// A function that can be called with a message: its arguments are extracted first.
pub trait Call<T, S>: Clone + Send + Sync + 'static {
    fn call(
        self,
        message: Message,
        state: S,
    ) -> impl Future<Output = Result<Reply, BoxError>> + Send + 'static;
}

impl<F, Fut, S> Call<((),), S> for F
where
    F: FnOnce() -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output: IntoReply> + Send + 'static,
    S: Send + 'static,
{
    async fn call(self, _: Message, _: S) -> Result<Reply, BoxError> {
        self().await.into_reply()
    }
}

impl<F, Fut, S> Handler<((),), S> for F
where
    F: FnOnce() -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output: IntoReply> + Send + 'static,
    S: Clone + Send + Sync + 'static,
{
    type Service = HandlerService<F, ((),), S>;

    fn with_state(self, state: S) -> Self::Service {
        HandlerService::new(self, state)
    }

    fn into_route(self, state: S) -> Route {
        Route::from_fn(move |message| self.clone().call(message, state.clone()))
    }
}

/// The implementations for one number of arguments: those that leave the payload alone, then the
/// last. `M` tells by which of the two traits the last is extracted.
macro_rules! function {
    ([$($part:ident),*], $last:ident) => {
        #[allow(non_snake_case, unused_mut)]
        impl<F, Fut, S, M, $($part,)* $last> Call<(M, $($part,)* $last,), S> for F
        where
            F: FnOnce($($part,)* $last,) -> Fut + Clone + Send + Sync + 'static,
            Fut: Future<Output: IntoReply> + Send + 'static,
            S: Send + Sync + 'static,
            M: 'static,
            $($part: FromMessageParts<S> + Send + 'static,)*
            $last: FromMessage<S, M> + Send + 'static,
        {
            async fn call(self, mut message: Message, state: S) -> Result<Reply, BoxError> {
                $(
                    let $part = $part::from_message_parts(message.parts_mut(), &state)
                        .await
                        .map_err(Into::into)?;
                )*
                let $last = $last::from_message(message, &state).await.map_err(Into::into)?;
                self($($part,)* $last).await.into_reply()
            }
        }

        impl<F, Fut, S, M, $($part,)* $last> Handler<(M, $($part,)* $last,), S> for F
        where
            F: FnOnce($($part,)* $last,) -> Fut + Clone + Send + Sync + 'static,
            Fut: Future<Output: IntoReply> + Send + 'static,
            S: Clone + Send + Sync + 'static,
            M: 'static,
            $($part: FromMessageParts<S> + Send + 'static,)*
            $last: FromMessage<S, M> + Send + 'static,
        {
            type Service = HandlerService<F, (M, $($part,)* $last,), S>;

            fn with_state(self, state: S) -> Self::Service {
                HandlerService::new(self, state)
            }

            fn into_route(self, state: S) -> Route {
                Route::from_fn(move |message| {
                    Call::<(M, $($part,)* $last,), S>::call(self.clone(), message, state.clone())
                })
            }
        }
    };
}

function!([], T1);
function!([T1], T2);
function!([T1, T2], T3);
function!([T1, T2, T3], T4);
function!([T1, T2, T3, T4], T5);
function!([T1, T2, T3, T4, T5], T6);
function!([T1, T2, T3, T4, T5, T6], T7);
function!([T1, T2, T3, T4, T5, T6, T7], T8);
function!([T1, T2, T3, T4, T5, T6, T7, T8], T9);
function!([T1, T2, T3, T4, T5, T6, T7, T8, T9], T10);
function!([T1, T2, T3, T4, T5, T6, T7, T8, T9, T10], T11);
function!([T1, T2, T3, T4, T5, T6, T7, T8, T9, T10, T11], T12);
function!([T1, T2, T3, T4, T5, T6, T7, T8, T9, T10, T11, T12], T13);
function!(
    [T1, T2, T3, T4, T5, T6, T7, T8, T9, T10, T11, T12, T13],
    T14
);
function!(
    [T1, T2, T3, T4, T5, T6, T7, T8, T9, T10, T11, T12, T13, T14],
    T15
);
function!(
    [
        T1, T2, T3, T4, T5, T6, T7, T8, T9, T10, T11, T12, T13, T14, T15
    ],
    T16
);
