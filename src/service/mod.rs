//! Services that handle messages, and the interest that `serve` asks a service for.

mod interest;
mod message;
mod route;

pub(crate) use self::route::{ErasedCall, ErasedService};
pub use self::{
    interest::{Servable, WithInterest},
    message::{MessageService, SharedService},
    route::{Route, RouteFuture},
};
