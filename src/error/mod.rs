//! The errors of this crate.
//!
//! - Inside a stack of services an error is a [`BoxError`], as everywhere in tower.
//! - [`RpcError`] is an error reply, from a handler to its caller; [`Failure`] decides how a failed
//!   delivery is settled. A handler returns either, or any other error.
//! - [`Rejection`] is the error of extractors, [`NotFound`] of a router without a matching route.
//! - [`Error`] is the error of this crate's operations.
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
pub(crate) mod boxed;
pub(crate) mod failure;
pub(crate) mod not_found;
pub(crate) mod operation;
mod panic;
pub(crate) mod rejection;
pub(crate) mod rpc;

pub use self::failure::Settle;
#[cfg(feature = "http")]
pub(crate) use self::operation::shown_chain;
pub(crate) use self::{
    answer::answer,
    boxed::IntoBoxError,
    operation::{ErrorKind, chain},
    panic::panic_text,
};
pub(crate) use self::{
    boxed::BoxError, failure::Failure, not_found::NotFound, operation::Error, rejection::Rejection,
    rpc::RpcError,
};

/// Finds the nearest error of type `E` in `error`'s chain of sources, itself included.
///
/// Two kinds of wrapped errors are not found. An error with thiserror's `#[error(transparent)]`
/// returns the source of the wrapped error, so the wrapped error itself is not found. The same
/// applies to an `anyhow` or `eyre` error made from an `E` without any context. Return the wrapped
/// error itself, or map the error in a layer.
pub fn find<'a, E: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a E> {
    // Without a limit, a chain with a cycle would hang the worker.
    const DEEPEST: usize = 64;
    std::iter::successors(Some(error), |error| error.source())
        .take(DEEPEST)
        .find_map(|error| error.downcast_ref())
}
