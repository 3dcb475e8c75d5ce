//! Calls several handlers for one event.

use std::{any::Any, fmt, panic::AssertUnwindSafe};

use futures_util::{FutureExt, future::join_all};

use crate::{
    error::{BoxError, panic_text},
    reply::Reply,
    service::RouteFuture,
};

/// The error of an event if at least one of its handlers failed. All handlers ran to their end.
///
/// The [`source`](std::error::Error::source) is the first error, in the order in which the handlers
/// were added.
#[derive(Debug)]
pub struct FanOutError {
    // Never empty.
    errors: Vec<BoxError>,
}

impl FanOutError {
    /// Returns the number of handlers that failed.
    pub fn failed_count(&self) -> usize {
        self.errors.len()
    }

    /// Returns the errors of the handlers that failed.
    pub fn errors(&self) -> impl ExactSizeIterator<Item = &(dyn std::error::Error + 'static)> {
        self.errors.iter().map(|error| &**error as _)
    }
}

impl fmt::Display for FanOutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errors.len() {
            1 => f.write_str("one of the event's handlers failed"),
            failed => write!(f, "{failed} of the event's handlers failed"),
        }
    }
}

impl std::error::Error for FanOutError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.errors.first().map(|error| &**error as _)
    }
}

/// The error of a handler that panicked. The panic is caught so that the other handlers continue.
#[derive(Debug)]
struct PanicError(String);

impl PanicError {
    fn new(payload: &(dyn Any + Send)) -> Self {
        Self(panic_text(payload).to_owned())
    }
}

impl fmt::Display for PanicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a handler panicked: {}", self.0)
    }
}

impl std::error::Error for PanicError {}

/// Runs all calls concurrently in one future, each to its end. Succeeds if all of them succeed.
pub(super) fn join(calls: Vec<RouteFuture>) -> RouteFuture {
    RouteFuture::new(async {
        let guarded = calls
            .into_iter()
            .map(|call| AssertUnwindSafe(call).catch_unwind());
        let mut errors: Vec<BoxError> = Vec::new();
        for outcome in join_all(guarded).await {
            match outcome {
                Ok(Ok(_)) => {}
                // If the call was a fan-out itself, adds each of its errors separately.
                Ok(Err(error)) => match error.downcast::<FanOutError>() {
                    Ok(inner) => errors.extend(inner.errors),
                    Err(error) => errors.push(error),
                },
                Err(payload) => errors.push(PanicError::new(&*payload).into()),
            }
        }
        if errors.is_empty() {
            Ok(Reply::default())
        } else {
            Err(FanOutError { errors }.into())
        }
    })
}
