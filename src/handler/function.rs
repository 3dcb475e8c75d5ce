//! Extracts the arguments of functions, and calls the functions.

use std::future::Future;

use crate::{
    error::BoxError,
    extract::{FromMessage, FromMessageParts},
    message::Message,
    reply::{IntoReply, Reply},
};

/// A function that can be called with `A`, the tuple of its arguments.
pub trait Function<A>: Clone + Send + Sync + 'static {
    /// The value that the function returns.
    type Output;

    /// Calls the function.
    fn call(self, arguments: A) -> Self::Output;
}

/// The future that a handler returns. This trait only improves the compiler's message for a
/// function that is not async.
#[diagnostic::on_unimplemented(
    message = "a handler must be async, and this function returns `{Self}`",
    label = "this function is not async",
    note = "write `async fn`, `async ||` or `async move ||`, or return a future"
)]
pub trait HandlerOutput: Future {}

#[diagnostic::do_not_recommend]
impl<F: Future> HandlerOutput for F {}

/// The arguments of a handler, extracted from left to right. `M` marks the trait through which the
/// last argument is extracted, [`FromMessage`] or [`FromMessageParts`].
pub trait HandlerArguments<M, S>: Send + Sized + 'static {
    /// Extracts the arguments. Fails with the first rejection.
    fn extract(message: Message, state: &S) -> impl Future<Output = Result<Self, BoxError>> + Send;
}

/// Extracts the arguments, calls the function, and turns its return value into a reply.
pub(super) async fn handle<F, M, A, S>(
    function: F,
    message: Message,
    state: S,
) -> Result<Reply, BoxError>
where
    F: Function<A, Output: Future<Output: IntoReply>>,
    A: HandlerArguments<M, S>,
{
    let arguments = A::extract(message, &state).await?;
    function.call(arguments).await.into_reply()
}

impl<F, R> Function<()> for F
where
    F: FnOnce() -> R + Clone + Send + Sync + 'static,
{
    type Output = R;

    fn call(self, (): ()) -> R {
        self()
    }
}

impl<S: Sync> HandlerArguments<(), S> for () {
    async fn extract(_: Message, _: &S) -> Result<(), BoxError> {
        Ok(())
    }
}

/// Implements [`Function`] and [`HandlerArguments`] for functions with these arguments. The last
/// argument may take the payload.
macro_rules! arguments {
    ([$($part:ident),*], $last:ident) => {
        #[allow(non_snake_case)]
        impl<F, R, $($part,)* $last> Function<($($part,)* $last,)> for F
        where
            F: FnOnce($($part,)* $last,) -> R + Clone + Send + Sync + 'static,
        {
            type Output = R;

            fn call(self, ($($part,)* $last,): ($($part,)* $last,)) -> R {
                self($($part,)* $last)
            }
        }

        #[allow(non_snake_case, unused_mut)]
        impl<S, M, $($part,)* $last> HandlerArguments<M, S> for ($($part,)* $last,)
        where
            S: Sync,
            $($part: FromMessageParts<S> + Send + 'static,)*
            $last: FromMessage<S, M> + Send + 'static,
        {
            async fn extract(mut message: Message, state: &S) -> Result<Self, BoxError> {
                $(
                    let $part = $part::from_message_parts(message.parts_mut(), state)
                        .await
                        .map_err(Into::into)?;
                )*
                let $last = $last::from_message(message, state).await.map_err(Into::into)?;
                Ok(($($part,)* $last,))
            }
        }
    };
}

arguments!([], T1);
arguments!([T1], T2);
arguments!([T1, T2], T3);
arguments!([T1, T2, T3], T4);
arguments!([T1, T2, T3, T4], T5);
arguments!([T1, T2, T3, T4, T5], T6);
arguments!([T1, T2, T3, T4, T5, T6], T7);
arguments!([T1, T2, T3, T4, T5, T6, T7], T8);
arguments!([T1, T2, T3, T4, T5, T6, T7, T8], T9);
arguments!([T1, T2, T3, T4, T5, T6, T7, T8, T9], T10);
arguments!([T1, T2, T3, T4, T5, T6, T7, T8, T9, T10], T11);
arguments!([T1, T2, T3, T4, T5, T6, T7, T8, T9, T10, T11], T12);
arguments!([T1, T2, T3, T4, T5, T6, T7, T8, T9, T10, T11, T12], T13);
arguments!(
    [T1, T2, T3, T4, T5, T6, T7, T8, T9, T10, T11, T12, T13],
    T14
);
arguments!(
    [T1, T2, T3, T4, T5, T6, T7, T8, T9, T10, T11, T12, T13, T14],
    T15
);
arguments!(
    [
        T1, T2, T3, T4, T5, T6, T7, T8, T9, T10, T11, T12, T13, T14, T15
    ],
    T16
);
