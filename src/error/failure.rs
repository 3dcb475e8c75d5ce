//! An error that decides how a failed delivery is settled.

use std::{fmt, time::Duration};

use tower::buffer::error::ServiceError;

use super::{BoxError, Rejection, find, is_overload};
use crate::message::{Kind, PermitRequest};

/// An error that decides how its delivery is settled.
///
/// A `Failure` is found anywhere in the chain of sources, so layers and handlers may wrap it. The
/// transport settles and acknowledges the delivery in one atomic step. Without a `Failure` in the
/// chain, a task is usually delivered again after the transport's back-off, and a request is
/// answered: see [`FailureVerdict::of`].
///
/// ```
/// use campanile::Failure;
///
/// async fn import(line: String) -> Result<(), Failure> {
///     let row: u32 = line.parse().map_err(|e| Failure::dead_letter().because(e))?;
///     # let _ = row;
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Failure {
    verdict: FailureVerdict,
    cause: Option<BoxError>,
    /// Set by [`Failure::park`].
    permit_request: Option<PermitRequest>,
}

/// The verdict that a [`Failure`] requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureVerdict {
    /// Delivers the message again.
    Redeliver {
        /// The delay before the redelivery. `None` stands for the transport's back-off for this
        /// attempt.
        after: Option<Duration>,
        /// `false` if this delivery does not count as an attempt.
        counted: bool,
    },
    /// Parks the message until it gets a permit, or until a worker starts that knows the version of
    /// its payload: see [`Failure::park`].
    Park,
    /// Turns the message into a dead letter, without further attempts.
    DeadLetter,
    /// Deletes the message. It does not become a dead letter. The deletion is counted and logged.
    Discard,
}

impl FailureVerdict {
    /// Returns how [`serve`](crate::serve()) settles a delivery of this kind that failed with
    /// `error`. `None` means that the delivery is a request and is answered with the error. A layer
    /// can call this function to find out if the message is delivered again.
    ///
    /// The nearest [`Failure`] in the chain decides. If there is none:
    /// - A request is answered with the error.
    /// - A permanent [`Rejection`] makes the message a dead letter.
    /// - After tower's [`Overloaded`](tower::load_shed::error::Overloaded), an
    ///   [overloaded](super::Error::is_overloaded) error, or the [`ServiceError`] of a `Buffer`,
    ///   the message is delivered again, and the attempt does not count.
    /// - After any other error the message is delivered again, and the attempt counts.
    ///
    /// Two results depend on the worker's settings. After `max_deliveries` a counted redelivery
    /// becomes a dead letter. A worker that ignores unknown names drops a message that failed with
    /// [`NotFound`](super::NotFound).
    ///
    /// ```
    /// use campanile::{BoxError, Kind, Rejection, error::FailureVerdict};
    ///
    /// let error: BoxError = Rejection::permanent("no such field").into();
    /// assert_eq!(FailureVerdict::of(Kind::Task, &*error), Some(FailureVerdict::DeadLetter));
    /// assert_eq!(FailureVerdict::of(Kind::Rpc, &*error), None);
    /// ```
    pub fn of(kind: Kind, error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        if let Some(failure) = find::<Failure>(error) {
            return Some(failure.verdict);
        }
        if kind == Kind::Rpc {
            return None;
        }
        if find::<Rejection>(error).is_some_and(Rejection::is_permanent) {
            return Some(FailureVerdict::DeadLetter);
        }
        Some(FailureVerdict::Redeliver {
            after: None,
            // With these errors, either no handler received the message, or the stream to which the
            // handler sends is full. The message caused neither, so the attempt does not count.
            counted: !is_overload(error) && find::<ServiceError>(error).is_none(),
        })
    }
}

impl Failure {
    fn new(verdict: FailureVerdict) -> Self {
        Self {
            verdict,
            cause: None,
            permit_request: None,
        }
    }

    /// Creates a failure that delivers the message again, after the transport's back-off for this
    /// attempt.
    pub fn redeliver() -> Self {
        Self::new(FailureVerdict::Redeliver {
            after: None,
            counted: true,
        })
    }

    /// Creates a failure that delivers the message again after this delay. The transport stores the
    /// message until then, so the delay does not occupy a worker and survives the end of this
    /// process.
    pub fn redeliver_after(after: Duration) -> Self {
        Self::new(FailureVerdict::Redeliver {
            after: Some(after),
            counted: true,
        })
    }

    /// Creates a failure that parks the message, without counting an attempt. The message waits
    /// until it gets what `request` asks for, such as a permit of a
    /// [`Limit`](crate::transport::Limit).
    pub fn park(request: PermitRequest) -> Self {
        Self {
            permit_request: Some(request),
            ..Self::new(FailureVerdict::Park)
        }
    }

    /// Creates a failure that turns the message into a dead letter now, without further attempts.
    pub fn dead_letter() -> Self {
        Self::new(FailureVerdict::DeadLetter)
    }

    /// Creates a failure that deletes the message, without making it a dead letter. The deletion is
    /// counted and logged.
    pub fn discard() -> Self {
        Self::new(FailureVerdict::Discard)
    }

    /// Does not count this delivery as an attempt. Use it for failures that the message did not
    /// cause, such as overload or a dependency that is down. The method affects only redeliveries.
    /// An uncounted redelivery may repeat forever.
    pub fn uncounted(mut self) -> Self {
        if let FailureVerdict::Redeliver { counted, .. } = &mut self.verdict {
            *counted = false;
        }
        self
    }

    /// Adds the cause.
    pub fn because(mut self, cause: impl Into<BoxError>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Returns the permit request of a failure that was created by [`park`](Self::park). `None` for
    /// any other failure.
    pub fn permit_request(&self) -> Option<&PermitRequest> {
        self.permit_request.as_ref()
    }

    /// Returns the requested verdict.
    pub fn verdict(&self) -> FailureVerdict {
        self.verdict
    }
}

impl From<FailureVerdict> for Failure {
    /// Creates a failure that requests this verdict, without a cause. With [`FailureVerdict::Park`] the
    /// failure has no permit request, so the message is redelivered without counting the attempt.
    fn from(verdict: FailureVerdict) -> Self {
        Self::new(verdict)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.verdict {
            FailureVerdict::Redeliver { .. } => "the delivery failed and is to be redelivered",
            FailureVerdict::Park => "the message waits outside of the workers",
            FailureVerdict::DeadLetter => "the delivery failed for good",
            FailureVerdict::Discard => "the delivery is to be discarded",
        })
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

#[cfg(test)]
mod tests {
    use tower::load_shed::error::Overloaded;

    use super::*;
    use crate::error::{Error, NotFound, RpcError};

    #[test]
    fn the_nearest_failure_and_the_kind_decide_the_settlement() {
        let redelivered = |counted| {
            let after = None;
            Some(FailureVerdict::Redeliver { after, counted })
        };
        let cases: [(BoxError, [Option<FailureVerdict>; 2]); 7] = [
            ("disk full".into(), [redelivered(true), None]),
            (
                NotFound::new(Kind::Task, "a".into()).into(),
                [redelivered(true), None],
            ),
            (Overloaded::new().into(), [redelivered(false), None]),
            (
                Error::overloaded("full", Duration::from_secs(1)).into(),
                [redelivered(false), None],
            ),
            (RpcError::invalid("no").into(), [redelivered(true), None]),
            (
                Rejection::permanent("no JSON").into(),
                [Some(FailureVerdict::DeadLetter), None],
            ),
            (
                Failure::discard()
                    .because(Failure::dead_letter().because("no JSON"))
                    .into(),
                [Some(FailureVerdict::Discard); 2],
            ),
        ];
        for (error, [task, request]) in cases {
            assert_eq!(FailureVerdict::of(Kind::Task, &*error), task, "{error}");
            assert_eq!(FailureVerdict::of(Kind::Event, &*error), task, "{error}");
            assert_eq!(FailureVerdict::of(Kind::Rpc, &*error), request, "{error}");
        }
    }
}
