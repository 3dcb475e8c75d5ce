//! Pauses of a stream, a group or a name, and the purge of waiting messages.

use std::{fmt, sync::Arc, time::SystemTime};

use super::StoreFuture;
use crate::{
    error::{Error, ErrorKind},
    message::Name,
};

/// The maximum size of the reason of a pause, in bytes.
const MAX_REASON: usize = 1024;

/// Pauses and empties the queues of a stream, from any process. Returned by the `control` method of
/// a transport's handle.
///
/// All workers follow a pause within about a second, without a restart. Running handlers end as
/// usual, and their leases are renewed. Senders can still send, so messages accumulate. A pause is
/// stored, so it outlives all processes and lasts until it is ended.
///
/// ```
/// use campanile::{Client, transport::{PauseTarget, memory::Memory}};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), campanile::Error> {
/// let memory = Memory::new();
/// let control = memory.control();
/// control.pause(PauseTarget::Name("mail.send".into()), "the mail server is down").await?;
/// assert_eq!(control.pauses().await?[0].reason, "the mail server is down");
/// assert!(control.resume(PauseTarget::Name("mail.send".into())).await?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Control(Arc<dyn ControlStore>);

impl Control {
    /// Creates a handle of a store. For transports.
    pub fn new(store: impl ControlStore + 'static) -> Self {
        Self(Arc::new(store))
    }

    /// Pauses a stream, a group or a name. If the target was paused already, replaces the reason
    /// and the time of the pause, and returns `false`.
    ///
    /// # Errors
    /// If a name cannot be used, the reason is longer than 1,024 bytes, or the store cannot be
    /// reached.
    pub async fn pause(&self, target: PauseTarget, reason: &str) -> Result<bool, Error> {
        if let PauseTarget::Name(name) = &target
            && let Some(fault) = name.fault()
        {
            let text = format!("the name cannot be used: {fault}");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        if reason.len() > MAX_REASON {
            let text = format!("the reason of a pause has at most {MAX_REASON} bytes");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        self.0.pause(&target, reason).await
    }

    /// Ends a pause. Returns `false` if there was none.
    ///
    /// # Errors
    /// If the store cannot be reached.
    pub async fn resume(&self, target: PauseTarget) -> Result<bool, Error> {
        self.0.resume(&target).await
    }

    /// Returns the pauses that concern the handle's group, sorted by target.
    ///
    /// # Errors
    /// If the store cannot be reached.
    pub async fn pauses(&self) -> Result<Vec<Pause>, Error> {
        let mut pauses = self.0.pauses().await?;
        pauses.sort_by(|a, b| a.target.cmp(&b.target));
        pauses.dedup_by(|a, b| a.target == b.target);
        Ok(pauses)
    }

    /// Removes the messages that wait for the handle's group: those that no worker has fetched,
    /// that wait for their next attempt, or that are parked. Returns their number. Running
    /// messages, tasks that their senders have delayed, and other groups are not affected. Messages
    /// that arrive meanwhile may be removed or not.
    ///
    /// Tracked tasks end as discarded, with the reason `purged`.
    ///
    /// # Errors
    /// If the store cannot be reached. Some messages may have been removed.
    ///
    /// # Cancel safety
    /// If the future is dropped, some messages may have been removed.
    pub async fn purge_waiting(&self) -> Result<u64, Error> {
        let (mut steps, mut removed) = (self.purge_steps(), 0);
        while let Some(messages) = steps.next().await? {
            removed += messages;
        }
        Ok(removed)
    }

    /// Removes the same messages as [`purge_waiting`](Self::purge_waiting), step by step, so that
    /// the caller can show the progress or stop between two steps.
    pub fn purge_steps(&self) -> PurgeSteps {
        PurgeSteps {
            store: Arc::clone(&self.0),
            rest: Some(None),
        }
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

/// Removes waiting messages step by step. Created by [`Control::purge_steps`].
#[must_use = "nothing is done until `next` is called"]
pub struct PurgeSteps {
    store: Arc<dyn ControlStore>,
    /// The position of the next step: `Some(None)` for the first step, `Some(Some(position))` for a
    /// later step. `None` after the last step.
    rest: Option<Option<String>>,
}

impl PurgeSteps {
    /// Does the next step. Returns the number of messages that were removed, or `None` after the
    /// last step.
    ///
    /// # Errors
    /// If the store cannot be reached or refuses. The next call repeats the step.
    ///
    /// # Cancel safety
    /// If the future is dropped, its step may have been done. The next call continues with the
    /// messages that are left.
    pub async fn next(&mut self) -> Result<Option<u64>, Error> {
        let Some(position) = &self.rest else {
            return Ok(None);
        };
        let step = self.store.purge_step(position.as_deref()).await?;
        self.rest = step.next.map(Some);
        Ok(Some(step.removed))
    }
}

impl fmt::Debug for PurgeSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PurgeSteps")
            .field("rest", &self.rest)
            .finish_non_exhaustive()
    }
}

/// The result of a step of a purge. For transports.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PurgeStep {
    /// The number of messages that were removed.
    pub removed: u64,
    /// The position of the next step, in a format of the transport. `None` after the last step.
    pub next: Option<String>,
}

impl PurgeStep {
    /// Creates the result of a step.
    pub fn new(removed: u64, next: Option<String>) -> Self {
        Self { removed, next }
    }
}

/// The subject of a pause.
///
/// ```
/// use campanile::transport::{PauseTarget, memory::Memory};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), campanile::Error> {
/// let control = Memory::new().control();
/// let mails = PauseTarget::Name("mails.send".into());
/// control.pause(mails.clone(), "the mail server moves").await?;
/// assert!(control.resume(mails).await?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum PauseTarget {
    /// The stream, for all its groups.
    Stream,
    /// The stream, for the handle's group.
    Group,
    /// The tasks and requests with this full name, for the handle's group. They are parked in their
    /// order, and other messages are still delivered. A name cannot be paused if workers
    /// [own](crate::transport::Streams::owned) the partitions of the stream.
    Name(Name),
}

/// A pause.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pause {
    /// The subject.
    pub target: PauseTarget,
    /// The reason that was given.
    pub reason: String,
    /// The time of the pause, on the server's clock.
    pub since: SystemTime,
}

impl Pause {
    /// Creates a pause. For transports.
    pub fn new(target: PauseTarget, reason: impl Into<String>, since: SystemTime) -> Self {
        let reason = reason.into();
        Self {
            target,
            reason,
            since,
        }
    }
}

/// The pauses and the waiting messages of a group. Implemented by transports, for [`Control`].
pub trait ControlStore: Send + Sync {
    /// See [`Control::pause`].
    fn pause<'a>(&'a self, target: &'a PauseTarget, reason: &'a str) -> StoreFuture<'a, bool>;

    /// See [`Control::resume`].
    fn resume<'a>(&'a self, target: &'a PauseTarget) -> StoreFuture<'a, bool>;

    /// See [`Control::pauses`].
    fn pauses(&self) -> StoreFuture<'_, Vec<Pause>>;

    /// Removes some of the waiting messages, starting at `position`. The previous step has returned
    /// this position. It is `None` for the first step. See [`Control::purge_steps`].
    fn purge_step<'a>(&'a self, position: Option<&'a str>) -> StoreFuture<'a, PurgeStep>;
}
