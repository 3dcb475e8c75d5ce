#![doc = include_str!("../docs/routing.md")]

mod build;
mod fan_out;
mod index;
mod names;
pub(crate) mod router;
mod tree;

pub(crate) use self::index::FromSubscription;
pub use self::{
    fan_out::FanOutError,
    index::RouteInfo,
    names::{EventRoute, RpcRoute, TaskRoute},
};
pub use crate::service::{Route, RouteFuture};
