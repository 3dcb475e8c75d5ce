//! Services that handle messages, and what `serve` wants to know of one.

mod interest;
mod message;
mod route;

pub(crate) use self::route::{Slot, Template};
pub use self::{
    interest::{Servable, WithInterest},
    message::{MessageService, SharedService},
    route::{Route, RouteFuture},
};
