//! The progress that the handler of a task reports, and the checkpoint that the task's next attempt
//! reads.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::runtime::Handle;

use crate::{
    error::{Error, ErrorKind, Rejection},
    extract::{FromMessageParts, OptionalFromMessageParts},
    message::{Parts, RunningRecord},
    payload::{IntoPayload, Json},
};

/// The maximum size of a progress as JSON, in bytes.
const MAX_PROGRESS_LEN: usize = 4 << 10;
/// The maximum size of a checkpoint as JSON, in bytes.
const MAX_CHECKPOINT_LEN: usize = 64 << 10;

/// Reports the progress of a task that is [tracked](crate::client::Call::tracked) or
/// [unique](crate::client::Call::unique). An extractor.
///
/// ```
/// use campanile::{Error, Json, Progress, Router};
///
/// async fn import(progress: Progress, Json(files): Json<Vec<String>>) -> Result<(), Error> {
///     for (done, file) in files.iter().enumerate() {
///         progress.set((done, files.len(), file))?;
///         // …
///     }
///     Ok(())
/// }
///
/// let app: Router = Router::new().task("files.import", import);
/// ```
///
/// The progress is in the [status](crate::transport::TaskStatus::progress) of the task. A report is
/// cheap: it only replaces the report before it. A background task writes the newest report at most
/// once a second, and the first one immediately. The last report before the handler returns is
/// stored together with the end of the task. If the attempt fails, the reports of its last second
/// may be lost. The next attempt starts with the last stored progress of the failed attempt.
///
/// For a task that is neither tracked nor unique, a report does nothing, and `Option<Progress>` is
/// `None`.
///
/// Clones report for the same task.
#[derive(Debug, Clone)]
pub struct Progress(Option<(Arc<RunningRecord>, Handle)>);

impl Progress {
    /// Reports a value: a number, a text, or anything else that can be serialized as JSON. After
    /// the handler has returned, and after the lease is lost, the call has no effect.
    ///
    /// # Errors
    /// If the value cannot be serialized, or has more than 4 KiB as JSON. The previous report then
    /// stays.
    pub fn set(&self, progress: impl Serialize) -> Result<(), Error> {
        let Some((record, runtime)) = &self.0 else {
            return Ok(());
        };
        record.report(encode("progress", progress, MAX_PROGRESS_LEN)?, runtime);
        Ok(())
    }

    /// Returns the progress of a delivery.
    pub(crate) fn of_delivery(parts: &Parts) -> Self {
        let record = parts.lease.as_ref().and_then(|lease| lease.record());
        // The handle of the runtime is kept, because a report may come from a thread without a
        // runtime.
        Self(record.map(|record| (record.clone(), Handle::current())))
    }
}

impl<S: Sync> FromMessageParts<S> for Progress {
    type Rejection = Infallible;

    async fn from_message_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of_delivery(parts))
    }
}

impl<S: Sync> OptionalFromMessageParts<S> for Progress {
    type Rejection = Infallible;

    async fn from_message_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(Some(Self::of_delivery(parts)).filter(|progress| progress.0.is_some()))
    }
}

/// Saves the state of a task that is [tracked](crate::client::Call::tracked) or
/// [unique](crate::client::Call::unique), so that its next attempt continues from this state. An
/// extractor.
///
/// ```
/// use campanile::{Checkpoint, Error, Router};
///
/// async fn import(checkpoint: Checkpoint) -> Result<(), Error> {
///     let first: u64 = checkpoint.load().await?.unwrap_or_default();
///     for page in first..100 {
///         // …
///         checkpoint.save(page + 1).await?;
///     }
///     Ok(())
/// }
///
/// let app: Router = Router::new().task("pages.import", import);
/// ```
///
/// The checkpoint survives a failed attempt and the death of the worker: the next attempt may run
/// in another process. The checkpoint is deleted when the task ends.
///
/// # Rejection
/// A [permanent](Rejection::permanent) rejection, if the message has no record: only tasks that are
/// tracked or unique have a record.
#[derive(Debug, Clone)]
pub struct Checkpoint(Arc<RunningRecord>);

impl Checkpoint {
    /// Returns the value that was saved last, by this attempt or by an earlier one. `None` if there
    /// is none.
    ///
    /// # Errors
    /// If the server cannot be reached, or the value is of another type.
    ///
    /// # Cancel safety
    /// The future can be dropped at any time.
    pub async fn load<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        let saved = self.0.record.checkpoint().await?;
        let value = saved.as_deref().map(serde_json::from_slice).transpose();
        value.map_err(|error| {
            Error::new(ErrorKind::Decode, "the checkpoint cannot be read").with_source(error)
        })
    }

    /// Saves a value as JSON. Once this returns `Ok`, the next attempt will find the value. While
    /// the server cannot be reached, the call waits.
    ///
    /// # Errors
    /// If the value cannot be serialized, or has more than 64 KiB as JSON. If another worker has
    /// claimed the task, or the task was cancelled.
    ///
    /// # Cancel safety
    /// If the future is dropped, the value may have been saved.
    pub async fn save(&self, value: impl Serialize) -> Result<(), Error> {
        let value = encode("checkpoint", value, MAX_CHECKPOINT_LEN)?;
        match self.0.record.set_checkpoint(value).await? {
            true => Ok(()),
            false => Err(Error::refused(
                "the checkpoint was not saved: the task was cancelled, or another worker has it",
            )),
        }
    }

    /// Returns the checkpoint of a delivery. `None` if its task has no record.
    pub(crate) fn of_delivery(parts: &Parts) -> Option<Self> {
        parts.lease.as_ref()?.record().cloned().map(Self)
    }
}

impl<S: Sync> FromMessageParts<S> for Checkpoint {
    type Rejection = Rejection;

    async fn from_message_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        Self::of_delivery(parts).ok_or_else(|| {
            Rejection::permanent(
                "this message has no checkpoint: only a task with a record has one; send it with \
                 `.tracked(…)`, for the group of this worker",
            )
        })
    }
}

impl<S: Sync> OptionalFromMessageParts<S> for Checkpoint {
    type Rejection = Infallible;

    async fn from_message_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(Self::of_delivery(parts))
    }
}

fn encode(what: &str, value: impl Serialize, max_len: usize) -> Result<Bytes, Error> {
    let invalid = |text: String| Error::new(ErrorKind::Invalid, text);
    let json = Json(value).into_payload().map_err(|error| {
        invalid(format!("the {what} cannot be written as JSON")).with_source(error)
    })?;
    match json.len() > max_len {
        false => Ok(json),
        true => Err(invalid(format!(
            "the {what} has {} bytes as JSON, and the most is {max_len}; store it elsewhere, and report \
             where it is",
            json.len()
        ))),
    }
}
