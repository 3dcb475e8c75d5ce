//! The errors of this crate.
//!
//! - Inside a stack of services an error is a [`BoxError`], as everywhere in tower.
//! - [`RpcError`] is an error reply from a handler to its caller. [`Failure`] decides how a failed
//!   delivery is settled. A handler may return either, or any other error.
//! - [`Rejection`] is the error of extractors. [`NotFound`] is the error of a router without a
//!   route for the message.
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

pub use self::failure::FailureVerdict;
#[cfg(feature = "http")]
pub(crate) use self::operation::shown_chain;
pub(crate) use self::{
    answer::error_reply,
    boxed::IntoBoxError,
    operation::{ErrorKind, chain},
    panic::panic_text,
};
pub(crate) use self::{
    boxed::BoxError, failure::Failure, not_found::NotFound, operation::Error, rejection::Rejection,
    rpc::RpcError,
};

/// Returns `true` if the chain of sources has tower's `Overloaded`, or an [`Error`] that [is
/// overloaded](Error::is_overloaded).
pub(crate) fn is_overload(error: &(dyn std::error::Error + 'static)) -> bool {
    find::<tower::load_shed::error::Overloaded>(error).is_some()
        || find::<Error>(error).is_some_and(Error::is_overloaded)
}

/// Finds the first error of type `E` in a chain: `error` itself, then its source, and so on.
///
/// Two kinds of wrappers hide the error that they wrap: an error with thiserror's
/// `#[error(transparent)]`, and an `anyhow` or `eyre` error made from an `E` without any context.
/// The `source` of such a wrapper is the source of the wrapped error, so the chain leaves out the
/// wrapped error itself. Return the error without its wrapper, or unwrap it in a layer.
pub fn find<'a, E: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a E> {
    // Without a limit, a chain with a cycle would hang the worker.
    const MAX_DEPTH: usize = 64;
    std::iter::successors(Some(error), |error| error.source())
        .take(MAX_DEPTH)
        .find_map(|error| error.downcast_ref())
}
