//! How a failed delivery is to be settled.

use std::{fmt, time::Duration};

use tower::{buffer::error::ServiceError, load_shed::error::Overloaded};

use super::{BoxError, Rejection, find};
use crate::message::Kind;

/// An error that says how the delivery that failed with it is to be settled.
///
/// It works wherever it stands in the chain of an error's sources, so a layer or a handler can wrap
/// it. The transport does what it says, atomically with the acknowledgement. An error without a
/// `Failure` in its chain is redelivered with the transport's default back-off.
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
    settle: Settle,
    cause: Option<BoxError>,
}

/// What a [`Failure`] asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settle {
    /// Deliver it again.
    Redeliver {
        /// After this long; `None` is the transport's back-off for this attempt.
        after: Option<Duration>,
        /// Whether this delivery counts as an attempt.
        counted: bool,
    },
    /// Make it a dead letter now.
    DeadLetter,
    /// Drop it. It is counted, and nothing else remains.
    Discard,
}

impl Settle {
    /// How [`serve`](crate::serve()) settles a delivery of this kind that failed with `error`, for
    /// layers that must know whether the message comes back. `None` where a request is answered
    /// with the error, and so is done.
    ///
    /// The nearest [`Failure`] in the chain decides. Without one, a request is answered, a
    /// [`Rejection`] that is permanent makes a dead letter, tower's
    /// [`Overloaded`] and a `Buffer`'s [`ServiceError`] are redelivered uncounted, and everything
    /// else is redelivered. Two things depend on the source's settings: past its `max_deliveries` a
    /// redelivery becomes a dead letter, and a [`NotFound`](super::NotFound) is dropped by one that
    /// ignores unknown names.
    ///
    /// ```
    /// use campanile::{BoxError, Kind, Rejection, error::Settle};
    ///
    /// let error: BoxError = Rejection::permanent("no such field").into();
    /// assert_eq!(Settle::of(Kind::Task, &*error), Some(Settle::DeadLetter));
    /// assert_eq!(Settle::of(Kind::Rpc, &*error), None);
    /// ```
    pub fn of(kind: Kind, error: &(dyn std::error::Error + 'static)) -> Option<Self> {
        if let Some(failure) = find::<Failure>(error) {
            return Some(failure.settle);
        }
        if kind == Kind::Rpc {
            return None;
        }
        if find::<Rejection>(error).is_some_and(Rejection::is_permanent) {
            return Some(Settle::DeadLetter);
        }
        Some(Settle::Redeliver {
            after: None,
            // Neither overload nor a service that broke before it got the message is the message's
            // fault, so neither is an attempt.
            counted: find::<Overloaded>(error).is_none() && find::<ServiceError>(error).is_none(),
        })
    }
}

impl Failure {
    fn new(settle: Settle) -> Self {
        Self {
            settle,
            cause: None,
        }
    }

    /// Deliver it again, after the transport's back-off for this attempt.
    pub fn redeliver() -> Self {
        Self::new(Settle::Redeliver {
            after: None,
            counted: true,
        })
    }

    /// Deliver it again after this long. The wait is kept by the transport: it survives this
    /// process and holds no worker.
    pub fn redeliver_after(after: Duration) -> Self {
        Self::new(Settle::Redeliver {
            after: Some(after),
            counted: true,
        })
    }

    /// Make it a dead letter now, whatever attempt this is.
    pub fn dead_letter() -> Self {
        Self::new(Settle::DeadLetter)
    }

    /// Drop it. It is counted and logged, and nothing else remains.
    pub fn discard() -> Self {
        Self::new(Settle::Discard)
    }

    /// For a redelivery: this delivery was no attempt, since the message itself was not at fault
    /// (overload, a dependency that is down). Such a message can go round for ever.
    pub fn uncounted(mut self) -> Self {
        if let Settle::Redeliver { counted, .. } = &mut self.settle {
            *counted = false;
        }
        self
    }

    /// Adds the cause.
    pub fn because(mut self, cause: impl Into<BoxError>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// What it asks for.
    pub fn settle(&self) -> Settle {
        self.settle
    }
}

impl From<Settle> for Failure {
    /// A failure that asks for just this.
    fn from(settle: Settle) -> Self {
        Self::new(settle)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.settle {
            Settle::Redeliver { .. } => "the delivery failed and is to be redelivered",
            Settle::DeadLetter => "the delivery failed for good",
            Settle::Discard => "the delivery is to be discarded",
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
    use super::*;
    use crate::error::{NotFound, RpcError};

    #[test]
    fn what_becomes_of_an_error_depends_on_the_nearest_word_and_on_the_kind() {
        let redelivered = |counted| {
            let after = None;
            Some(Settle::Redeliver { after, counted })
        };
        let cases: [(BoxError, [Option<Settle>; 2]); 6] = [
            ("disk full".into(), [redelivered(true), None]),
            (
                NotFound::new(Kind::Task, "a".into()).into(),
                [redelivered(true), None],
            ),
            (Overloaded::new().into(), [redelivered(false), None]),
            (RpcError::invalid("no").into(), [redelivered(true), None]),
            (
                Rejection::permanent("no JSON").into(),
                [Some(Settle::DeadLetter), None],
            ),
            (
                Failure::discard()
                    .because(Failure::dead_letter().because("no JSON"))
                    .into(),
                [Some(Settle::Discard); 2],
            ),
        ];
        for (error, [task, request]) in cases {
            assert_eq!(Settle::of(Kind::Task, &*error), task, "{error}");
            assert_eq!(Settle::of(Kind::Event, &*error), task, "{error}");
            assert_eq!(Settle::of(Kind::Rpc, &*error), request, "{error}");
        }
    }
}
