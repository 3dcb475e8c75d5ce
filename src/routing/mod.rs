#![doc = include_str!("../docs/routing.md")]

mod fan_out;
mod glob;
mod index;
mod router;
mod service;
mod tree;

pub use self::{fan_out::FanOutError, index::RouteInfo, router::Router, service::RouterService};
pub use crate::handler::Route;
