//! How a failed delivery is to be settled.

use std::{fmt, time::Duration};

use super::BoxError;

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
