//! The recorded status of a task.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::{
    error::{Error, ErrorKind},
    message::{Attempt, MessageId, Name, UniqueKey},
    reply::{FromReply, Reply},
};

/// The state of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TaskState {
    /// The task waits for a worker.
    Waiting,
    /// The task is not due: its sender has delayed the task, or the task waits for its next
    /// attempt.
    Delayed,
    /// A worker has fetched the task.
    Running,
    /// The task was handled.
    Done,
    /// The task became a dead letter.
    Dead,
    /// The task was discarded by its handler or by a purge, or because it had expired.
    Discarded,
    /// The task was cancelled.
    Cancelled,
}

impl TaskState {
    /// All states.
    pub(crate) const ALL: [Self; 7] = [
        Self::Waiting,
        Self::Delayed,
        Self::Running,
        Self::Done,
        Self::Dead,
        Self::Discarded,
        Self::Cancelled,
    ];

    /// Returns the name of the state, in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Delayed => "delayed",
            Self::Running => "running",
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Discarded => "discarded",
            Self::Cancelled => "cancelled",
        }
    }

    /// Returns the state with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// Returns `true` if the task will not run any more, unless its dead letter is replayed.
    pub const fn has_ended(self) -> bool {
        !matches!(self, Self::Waiting | Self::Delayed | Self::Running)
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The recorded status of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskStatus {
    /// The id of the task, as in its receipt.
    pub id: MessageId,
    /// The name of the task.
    pub name: Name,
    /// The state.
    pub state: TaskState,
    /// The number of the last attempt. Zero if no attempt was started.
    pub attempt: Attempt,
    /// The reason of the last failure, of the end, or of the cancellation. Empty if there is none.
    pub reason: String,
    /// The last [progress](crate::Progress) of the handler, as JSON:
    /// [`read_progress`](Self::read_progress) decodes it.
    pub progress: Option<Bytes>,
    /// The payload of the handler's reply, if the task is done and the reply has one. `None` in
    /// lists. [`read_result`](Self::read_result) decodes it.
    pub result: Option<Bytes>,
    /// The length of the reply's payload, if it is longer than 64 KiB and therefore not recorded.
    pub result_too_large: Option<u64>,
    /// The unique key of the task.
    pub unique: Option<UniqueKey>,
    /// The time for which the status is kept after the end.
    pub keep: Duration,
    /// The time at which the task was accepted. All times of the status are on the server's clock.
    pub accepted_at: SystemTime,
    /// The time at which the last attempt was started.
    pub started_at: Option<SystemTime>,
    /// The time at which the task ended.
    pub ended_at: Option<SystemTime>,
}

impl TaskStatus {
    /// Creates the status of a task that was accepted at this time and waits. For transports.
    pub fn waiting(id: MessageId, name: Name, accepted_at: SystemTime) -> Self {
        Self {
            id,
            name,
            state: TaskState::Waiting,
            attempt: Attempt(0),
            reason: String::new(),
            progress: None,
            result: None,
            result_too_large: None,
            unique: None,
            keep: Duration::ZERO,
            accepted_at,
            started_at: None,
            ended_at: None,
        }
    }

    /// Decodes the result of a task that is done: the value that its handler has returned. If the
    /// task has no result, decodes an empty payload.
    ///
    /// ```
    /// use std::time::Duration;
    /// use campanile::{Client, Json, Router, serve, transport::memory::Memory};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), campanile::Error> {
    /// let memory = Memory::new();
    /// let app: Router = Router::new().task("add", async |Json((a, b)): Json<(u32, u32)>| Json(a + b));
    /// let worker = tokio::spawn(serve(memory.clone(), app).into_future());
    ///
    /// let call = Client::new(memory.clone()).enqueue("add", Json((2, 3)));
    /// let receipt = call.tracked(Duration::from_secs(3600)).await?;
    /// let ended = memory.tasks().wait(receipt.id().expect("it is stored")).await?;
    /// let Json(sum): Json<u32> = ended.read_result()?;
    /// assert_eq!(sum, 5);
    /// # worker.abort();
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the task is not done, if its result was too large, or if the result is of another type.
    pub fn read_result<R: FromReply>(&self) -> Result<R, Error> {
        let decode_error = |text: String| Error::new(ErrorKind::Decode, text);
        let id = &self.id;
        if self.state != TaskState::Done {
            let text = format!("the task `{id}` has no result: it is {}", self.state);
            return Err(decode_error(text));
        }
        if let Some(length) = self.result_too_large {
            return Err(decode_error(format!(
                "the result of the task `{id}` was not recorded: it has {length} bytes, and the most \
                 is {MAX_RESULT}; store it elsewhere, and return where it is"
            )));
        }
        R::from_reply(Reply::new(self.result.clone().unwrap_or_default())).map_err(|error| {
            decode_error(format!("the result of the task `{id}` cannot be read")).with_source(error)
        })
    }

    /// Decodes the last progress. `None` if the handler has not reported any.
    ///
    /// # Errors
    /// If the progress is of another type.
    pub fn read_progress<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        let progress = self.progress.as_deref().map(serde_json::from_slice);
        progress.transpose().map_err(|error| {
            let text = format!("the progress of the task `{}` cannot be read", self.id);
            Error::new(ErrorKind::Decode, text).with_source(error)
        })
    }
}

/// The maximum size of a recorded result, in bytes.
const MAX_RESULT: usize = 64 << 10;

/// The outcome of a task, as its record stores it.
#[derive(Debug, Default)]
pub(crate) struct TaskOutcome {
    pub(crate) result: Option<Bytes>,
    pub(crate) result_too_large: Option<u64>,
    /// The last progress, if it is not recorded yet.
    pub(crate) progress: Option<Bytes>,
}

impl TaskOutcome {
    /// Sets the result to the payload of the reply, or only its length if it is too large.
    pub(crate) fn with_result(mut self, reply: &Reply) -> Self {
        match reply.payload.len() {
            0 => {}
            // Copied, since the payload may be a part of a larger buffer.
            1..=MAX_RESULT => self.result = Some(Bytes::copy_from_slice(&reply.payload)),
            length => self.result_too_large = Some(length as u64),
        }
        self
    }
}
