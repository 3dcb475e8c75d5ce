//! Checks at compile time that the arguments and the replies of a handler have the types of the
//! contract constant (such as a `Task`) that names its route.

use std::future::Future;

use super::{
    batch::{Batched, service::Batch},
    function::Function,
    traits::{Layered, WithinLayer},
};
use crate::{
    extract::{Carries, State, via},
    reply::Replies,
};

/// Implemented by the arguments of a handler (the `T` of [`Handler<T, S>`](crate::Handler)) if they
/// take no payload, or a payload of the type `P`.
pub trait Accepts<P> {}

/// Implemented by the markers in `via`. A marker says through which trait a handler's last argument
/// `A` is extracted. `WholeMessage` requires that `A` implements `Carries<P>`. `PartsOnly` requires
/// nothing, because an argument from the parts does not take the payload. The marker is the `Self`
/// type, so that the compiler does not infer the marker from this bound.
pub trait TakesPayload<A, P> {}

impl<P, A> TakesPayload<A, P> for via::PartsOnly {}
impl<P, A: Carries<P>> TakesPayload<A, P> for via::WholeMessage {}

/// Implemented by a handler that takes the arguments `T` and replies with an `R`.
pub trait RepliesAs<R, T> {}

impl<R, M, A, F> RepliesAs<R, (M, A)> for F where F: Function<A, Output: Future<Output: Replies<R>>> {}

impl<R, T, H: RepliesAs<R, T>, L, S> RepliesAs<R, WithinLayer<T>> for Layered<L, H, T, S> {}

impl<R, T, H: BatchRepliesAs<R, T>> RepliesAs<R, Batched<T>> for Batch<H> {}

/// Implemented by the function of a [`Batch`] if it takes the arguments `T` and replies to each
/// request with an `R`.
pub trait BatchRepliesAs<R, T> {}

/// Implemented by the return values of a [`Batch`]'s function if each reply is an `R`.
#[diagnostic::on_unimplemented(
    message = "the batch's handler returns `{Self}`, and the reply of this name is `{R}`",
    note = "return a `Vec<Json<{R}>>`, or a `Result` of one"
)]
pub trait RepliesOfBatch<R> {}

impl RepliesOfBatch<()> for () {}
impl<R, T: Replies<R>> RepliesOfBatch<R> for Vec<T> {}
impl<R, T: RepliesOfBatch<R>, E> RepliesOfBatch<R> for Result<T, E> {}

impl<P> Accepts<P> for ((), ()) {}
impl<P, T: Accepts<P>> Accepts<P> for WithinLayer<T> {}

/// Implements [`Accepts`] for the arguments of a function. Only the last argument can take the
/// payload.
macro_rules! arguments {
    ($($part:ident)*) => {
        impl<P, M, $($part,)* Last> Accepts<P> for (M, ($($part,)* Last,))
        where
            M: TakesPayload<Last, P>
        {
        }
    };
}

arguments!();
arguments!(T1);
arguments!(T1 T2);
arguments!(T1 T2 T3);
arguments!(T1 T2 T3 T4);
arguments!(T1 T2 T3 T4 T5);
arguments!(T1 T2 T3 T4 T5 T6);
arguments!(T1 T2 T3 T4 T5 T6 T7);
arguments!(T1 T2 T3 T4 T5 T6 T7 T8);
arguments!(T1 T2 T3 T4 T5 T6 T7 T8 T9);
arguments!(T1 T2 T3 T4 T5 T6 T7 T8 T9 T10);
arguments!(T1 T2 T3 T4 T5 T6 T7 T8 T9 T10 T11);
arguments!(T1 T2 T3 T4 T5 T6 T7 T8 T9 T10 T11 T12);
arguments!(T1 T2 T3 T4 T5 T6 T7 T8 T9 T10 T11 T12 T13);
arguments!(T1 T2 T3 T4 T5 T6 T7 T8 T9 T10 T11 T12 T13 T14);
arguments!(T1 T2 T3 T4 T5 T6 T7 T8 T9 T10 T11 T12 T13 T14 T15);

/// Implements [`Accepts`] for the arguments of a batch's function, and [`BatchRepliesAs`] for the
/// function.
macro_rules! batch {
    ($($part:ident)*) => {
        impl<P, M, $($part,)* Item> Accepts<P> for Batched<(M, $($part,)* Item)>
        where
            M: TakesPayload<Item, P>
        {
        }

        impl<R, M, $($part,)* Item, F, Fut> BatchRepliesAs<R, (M, $($part,)* Item)> for F
        where
            F: FnOnce($(State<$part>,)* Vec<Item>) -> Fut,
            Fut: Future<Output: RepliesOfBatch<R>>,
        {
        }
    };
}

batch!();
batch!(P1);
batch!(P1 P2);
batch!(P1 P2 P3);
batch!(P1 P2 P3 P4);
