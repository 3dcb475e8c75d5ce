//! Orders of operators to single workers.

use std::fmt;

use crate::{
    error::{Error, ErrorKind},
    message::Name,
};

/// The maximum length of an operator's name, in bytes.
const MAX_BY: usize = 200;

/// An order to one worker, for [`Workers::order`](super::Workers::order).
///
/// ```
/// use campanile::transport::{WorkerOrder, memory::Memory};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), campanile::Error> {
/// let workers = Memory::new().workers();
/// for worker in workers.list().await? {
///     workers.order(&worker.worker, WorkerOrder::Limit(Some(4)), "ann").await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerOrder {
    /// Ends the worker like a signal for a graceful shutdown: the worker fetches nothing more,
    /// waits for its running handlers, and `serve` returns. The program decides what follows: a
    /// supervisor may start the process again.
    Drain,
    /// Sets the maximum number of deliveries in flight. A number above the configured maximum has
    /// no effect. `None` restores the configured maximum.
    Limit(Option<usize>),
    /// Pauses the worker: it fetches nothing, and its running handlers end as usual.
    Pause,
    /// Ends a [`Pause`](Self::Pause). Does not end a [`PauseName`](Self::PauseName).
    Resume,
    /// Pauses the tasks and requests of a name on this worker alone. If this worker gets a message
    /// with this name, the message is delivered again after a back-off, so that another worker of
    /// the group can get it. This does not count as an attempt. To pause a name for the whole
    /// group, use [`Control::pause`](crate::transport::Control::pause), which parks the messages.
    PauseName(Name),
    /// Ends a [`PauseName`](Self::PauseName).
    ResumeName(Name),
}

impl WorkerOrder {
    /// Encodes an order as its word and its argument.
    pub(crate) fn word_and_argument(&self) -> (&'static str, String) {
        match self {
            Self::Drain => ("drain", String::new()),
            Self::Limit(None) => ("limit", String::new()),
            Self::Limit(Some(max)) => ("limit", max.to_string()),
            Self::Pause => ("pause", String::new()),
            Self::Resume => ("resume", String::new()),
            Self::PauseName(name) => ("pause-name", name.to_string()),
            Self::ResumeName(name) => ("resume-name", name.to_string()),
        }
    }

    /// Decodes an order. `None` if this version does not know it.
    #[cfg(any(feature = "redis", feature = "dashboard"))]
    pub(crate) fn parse(word: &str, argument: &str) -> Option<Self> {
        let name = || (!argument.is_empty()).then(|| Name::from(argument));
        Some(match word {
            "drain" => Self::Drain,
            "limit" if argument.is_empty() => Self::Limit(None),
            "limit" => Self::Limit(Some(argument.parse().ok().filter(|max| *max > 0)?)),
            "pause" => Self::Pause,
            "resume" => Self::Resume,
            "pause-name" => Self::PauseName(name()?),
            "resume-name" => Self::ResumeName(name()?),
            _ => return None,
        })
    }

    /// Checks an order and the name of its operator before they are stored.
    pub(super) fn check(&self, by: &str) -> Result<(), Error> {
        let invalid = |text: String| Err(Error::new(ErrorKind::Invalid, text));
        if by.is_empty() || by.len() > MAX_BY {
            return invalid(format!(
                "the name of an operator must have 1 to {MAX_BY} bytes"
            ));
        }
        match self {
            Self::Limit(Some(0)) => {
                invalid("the limit of a worker must be at least 1; to stop it, pause it".to_owned())
            }
            Self::PauseName(name) | Self::ResumeName(name) => match name.fault() {
                Some(fault) => invalid(format!("the name cannot be used: {fault}")),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

impl fmt::Display for WorkerOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.word_and_argument() {
            (word, argument) if argument.is_empty() => f.write_str(word),
            (word, argument) => write!(f, "{word} {argument}"),
        }
    }
}
