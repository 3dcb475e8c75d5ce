//! The names of routes: texts, and constants whose types fit the handler.

use crate::{
    contract::{Event, EventName, LiftedConstant, Rpc, RpcName, Task, TaskName},
    handler::{Accepts, RepliesAs},
    message::Name,
};

/// A name for a route of tasks: a text, or a [`Task`] whose payload the handler takes. `T` stands
/// for the arguments of the handler.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot name a route of tasks",
    label = "neither a text nor a `contract::Task`",
    note = "a constant of another kind belongs to another method: an `Event` to `event`, an `Rpc` to `rpc`"
)]
pub trait TaskRoute<T>: TaskName {}

/// A name for a route of events: a text, or an [`Event`] whose payload the handler takes. `T`
/// stands for the arguments of the handler.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot name a route of events",
    label = "neither a text nor a `contract::Event`",
    note = "a constant of another kind belongs to another method: a `Task` to `task`, an `Rpc` to `rpc`"
)]
pub trait EventRoute<T>: EventName {}

/// A name for a route of requests: a text, or an [`Rpc`] whose payload the handler takes and whose
/// reply the handler returns. `H` is the handler, and `T` stands for its arguments.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot name a route of requests",
    label = "neither a text nor a `contract::Rpc`",
    note = "a constant of another kind belongs to another method: a `Task` to `task`, an `Event` to `event`"
)]
pub trait RpcRoute<H, T>: RpcName {}

#[diagnostic::do_not_recommend]
impl<N: Into<Name>, T> TaskRoute<T> for N {}
impl<P, T: Accepts<P>> TaskRoute<T> for Task<P> {}
impl<P, T: Accepts<P>> TaskRoute<T> for LiftedConstant<Task<P>> {}

#[diagnostic::do_not_recommend]
impl<N: Into<Name>, T> EventRoute<T> for N {}
impl<P, T: Accepts<P>> EventRoute<T> for Event<P> {}
impl<P, T: Accepts<P>> EventRoute<T> for LiftedConstant<Event<P>> {}

#[diagnostic::do_not_recommend]
impl<N: Into<Name>, H, T> RpcRoute<H, T> for N {}
impl<Q, R, T: Accepts<Q>, H: RepliesAs<R, T>> RpcRoute<H, T> for Rpc<Q, R> {}
impl<Q, R, T: Accepts<Q>, H: RepliesAs<R, T>> RpcRoute<H, T> for LiftedConstant<Rpc<Q, R>> {}
