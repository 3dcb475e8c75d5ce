//! The error replies to failed requests.

use tower::{
    buffer::error::{Closed, ServiceError},
    timeout::error::Elapsed,
};

use super::{NotFound, Rejection, RpcError, chain, find, is_overload};

/// Returns the error reply to a request that failed with this error. Looks for the types below in
/// the error's chain, one after the other, and takes the first that it finds. `None` if it finds
/// none, because the text of such an error is for logs, not for callers.
pub(crate) fn error_reply(
    name: &str,
    error: &(dyn std::error::Error + 'static),
) -> Option<RpcError> {
    if let Some(reply) = find::<RpcError>(error) {
        Some(reply.clone())
    } else if let Some(rejection) = find::<Rejection>(error).filter(|r| r.is_permanent()) {
        Some(RpcError::invalid(chain(rejection)))
    } else if find::<NotFound>(error).is_some() {
        Some(RpcError::not_found(format!("no handler for `{name}`")))
    } else if find::<Elapsed>(error).is_some() {
        Some(RpcError::deadline("the handler took too long"))
    } else if is_overload(error) {
        Some(RpcError::unavailable("overloaded"))
    } else if find::<ServiceError>(error).is_some() || find::<Closed>(error).is_some() {
        // No handler got the request, so another worker may be able to handle it.
        Some(RpcError::unavailable("the worker is broken"))
    } else {
        None
    }
}
