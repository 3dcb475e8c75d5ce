//! What can go wrong, in a few types.
//!
//! - Inside a stack of services an error is a [`BoxError`], as everywhere in tower.
//! - [`RpcError`] is what a handler answers and its caller gets; [`Failure`] says how a failed
//!   delivery is to be settled. A handler returns either, or any other error.
//! - [`Rejection`] is what an extractor fails with, [`NotFound`] a router without a route.
//! - [`Error`] is what this crate's own operations return.
//!
//! ```
//! use campanile::{Failure, RpcError};
//! use std::time::Duration;
//!
//! async fn get_user() -> Result<String, RpcError> {
//!     Err(RpcError::not_found("no such user"))
//! }
//!
//! async fn charge() -> Result<(), Failure> {
//!     Err(Failure::redeliver_after(Duration::from_secs(60)))
//! }
//! ```

mod answer;
mod failure;
mod operation;
mod rejection;
mod rpc;

#[cfg(feature = "http")]
pub(crate) use self::operation::shown_chain;
pub(crate) use self::{
    answer::answer,
    operation::{Kind as ErrorKind, chain},
};
pub use self::{
    failure::{Failure, Settle},
    operation::Error,
    rejection::Rejection,
    rpc::{RpcCode, RpcError},
};

/// Any error, boxed: what services of this crate fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The error of a router that has no route for a message.
///
/// For a task it is a failed delivery, for RPC a `not_found` reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotFound {
    pub(crate) kind: crate::Kind,
    pub(crate) name: crate::Name,
}

impl NotFound {
    /// The error for a message of this kind and name.
    pub fn new(kind: crate::Kind, name: crate::Name) -> Self {
        Self { kind, name }
    }
}

impl std::fmt::Display for NotFound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // An event that came by a pattern may have any text as its name.
        let name = crate::message::Shown::new(&self.name).at_most(crate::Name::MAX_LEN);
        write!(f, "no route for {} `{name}`", self.kind)
    }
}

impl std::error::Error for NotFound {}

/// The nearest error of type `E` in `error`'s chain of sources, itself included.
///
/// `source()` has blind spots. An error behind thiserror's `#[error(transparent)]` forwards past
/// itself, so the wrapped error is not seen, only *its* sources; and so it is with an `anyhow` or
/// `eyre` error that was made of `E` without any context added. Return the wrapped type itself, or
/// map it in a layer.
pub fn find<'a, E: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a E> {
    // A chain that loops would otherwise hang the worker.
    const DEEPEST: usize = 64;
    std::iter::successors(Some(error), |error| error.source())
        .take(DEEPEST)
        .find_map(|error| error.downcast_ref())
}
