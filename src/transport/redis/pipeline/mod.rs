//! A supervised, multiplexed connection for everything that is answered at once: sending,
//! acknowledging, scripts.
//!
//! Callers encode commands into a batch of the submit queue. One task sends whatever has gathered as
//! one pipeline, keeps a few pipelines in flight, and delivers the answers. The task connects again,
//! without limit, whenever the connection is lost or the server does not answer any more.
//!
//! # Ordering
//! Commands are sent in the order of the calls to [`Pipeline::submit`], as long as no permit has to be
//! waited for. Commands that have to be sent again go before those that were not sent yet.
//!
//! # Back-pressure
//! Commands that are queued or in flight are bounded in number and in bytes. [`Submit`] waits for its
//! permit, first come, first served.
//!
//! # Cancel safety
//! Dropping a [`Submit`] does not take back what was sent, nor an idempotent command that is queued.
//! Any other queued command is not sent any more.

mod batch;
mod in_flight;
mod queue;
mod task;
#[cfg(test)]
mod tests;

use std::{
    future::{Future, pending},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::BoxFuture;
use redis::Cmd;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use self::queue::{Permit, Submitter, submit_queue};
use super::{
    connection::{Connection, Encode},
    error,
    response::Value,
    scripts::Script,
    server::Connector,
};
use crate::{
    error::Error,
    sync::Completion,
    transport::{ConnectionState, Counters},
};

/// How long a server may take to answer before it counts as gone.
pub(super) const SILENCE: Duration = Duration::from_secs(5);
/// How long a command waits without a connection before it fails. It counts from the submission, or
/// from the loss of the connection where that came later.
const WAIT: Duration = Duration::from_secs(5);

/// What becomes of a command when the connection is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// It is sent once. Without a connection it waits for a few seconds and then fails as
    /// disconnected; with its answer outstanding its outcome is unknown.
    Never,
    /// It is idempotent, and sent again until it is answered.
    UntilAnswered,
}

/// The server's answer to a command, be it a refusal, or why there is none.
type Outcome = Result<Value, Error>;

/// Acts on the answers to commands, in the pipeline's own task: it must not take long.
pub(super) trait CompletionHandler: Send + Sync {
    /// Takes the outcome of the command that was posted with this number. It is called once.
    fn answered(&self, number: u128, outcome: Result<Value, Error>);

    /// Returns `true` if nobody is interested any more, so that a queued command need not be sent.
    fn is_gone(&self, number: u128) -> bool;
}

/// A handle of the connection. Cheap to clone; with the last one the connection ends, once what
/// was submitted is answered.
#[derive(Clone)]
pub(super) struct Pipeline {
    queue: Submitter,
    status: watch::Receiver<Status>,
    connector: Connector,
}

/// The state of the connection.
#[derive(Debug)]
struct Status {
    state: ConnectionState,
    /// Why the last connection was lost, or could not be made; `None` once the server has answered.
    cause: Option<Arc<Error>>,
    /// Since when commands cannot be carried out: there is no connection, or the server is not ready.
    down_since: Option<Instant>,
}

impl Pipeline {
    /// Starts the task that owns the connection, beginning with one that was already made.
    pub(super) fn spawn(
        connector: Connector,
        first: Option<Connection>,
        counters: Arc<Counters>,
    ) -> Self {
        Self::with_patience(connector, first, counters, SILENCE)
    }

    /// Like [`spawn`](Self::spawn), for a server that counts as gone when it has not answered for
    /// so long.
    pub(super) fn with_patience(
        connector: Connector,
        first: Option<Connection>,
        counters: Arc<Counters>,
        silence: Duration,
    ) -> Self {
        let (queue, batches) = submit_queue();
        let (publish, status) = watch::channel(match first {
            Some(_) => Status {
                state: ConnectionState::Connected,
                cause: None,
                down_since: None,
            },
            None => Status {
                state: ConnectionState::Reconnecting,
                cause: None,
                down_since: Some(Instant::now()),
            },
        });
        let task = task::Task::new(connector.clone(), counters, silence, batches, publish);
        tokio::spawn(task.run(first));
        Self {
            queue,
            status,
            connector,
        }
    }

    /// Queues a command now, if it needs not wait for a permit, and resolves to its answer. A refusal
    /// of the server is an answer too: a [`Value::ServerError`].
    ///
    /// A command that has to wait is encoded before that: for one that may be large see
    /// [`submit_owned`](Self::submit_owned).
    pub(super) fn submit(&self, command: impl Encode, retry: Retry) -> Submit {
        self.ask(command, retry, None)
    }

    /// Like [`submit`](Self::submit), for a script: it is called by its hash, and sent with its
    /// text where the server does not know it.
    pub(super) fn submit_script(
        &self,
        script: &'static Script,
        keys: &[&str],
        args: impl FnOnce(&mut Cmd),
        retry: Retry,
    ) -> Submit {
        self.submit_owned(script.call(keys, args), retry, Some(script))
    }

    /// Like [`submit`](Self::submit), for a command that may be large: it is encoded when it has its
    /// permit, so that commands that wait hold nothing beyond what their callers have given.
    pub(super) fn submit_owned(
        &self,
        command: impl Encode + Send + 'static,
        retry: Retry,
        script: Option<&'static Script>,
    ) -> Submit {
        let size = command.size_hint();
        Submit(match self.queue.try_reserve(size) {
            Some(permit) => Stage::queue(permit, command, retry, script),
            None => {
                let (pipeline, submitted) = (self.clone(), Instant::now());
                Stage::Permit(Box::pin(async move {
                    let permit = pipeline.permit(size, submitted, retry).await?;
                    permit.push(|batch, at| batch.ask(command, retry, script, at))
                }))
            }
        })
    }

    /// Queues a command, once it has its permit, whose answer a handler gets with this number:
    /// commands that are submitted after that are sent after it. Dropped before that, the command is
    /// not sent, and the handler is not called.
    pub(super) async fn post(
        &self,
        command: impl Encode,
        retry: Retry,
        handler: &Arc<impl CompletionHandler + 'static>,
        number: u128,
    ) {
        let size = command.size_hint();
        let permit = match self.queue.try_reserve(size) {
            Some(permit) => Ok(permit),
            None => self.permit(size, Instant::now(), retry).await,
        };
        let posted = permit.and_then(|permit| {
            let to = (handler.clone() as Arc<dyn CompletionHandler>, number);
            permit.push(|batch, at| batch.post(command, retry, to, at))
        });
        if let Err(error) = posted {
            handler.answered(number, Err(error));
        }
    }

    /// Waits for a permit, for a command that is not retried no longer than it may wait without a
    /// connection.
    async fn permit(
        &self,
        size: usize,
        submitted: Instant,
        retry: Retry,
    ) -> Result<Permit<'_>, Error> {
        tokio::select! {
            biased;
            permit = self.queue.reserve(size, submitted) => permit,
            error = self.waited_too_long(submitted), if retry == Retry::Never => Err(error),
        }
    }

    /// Resolves when a command that was submitted at this time has waited too long without a
    /// connection.
    async fn waited_too_long(&self, submitted: Instant) -> Error {
        let mut status = self.status.clone();
        // Kept over connections that are lost again: they do not add to the wait.
        let mut give_up = None;
        loop {
            let down = status.wait_for(|status| status.down_since.is_some()).await;
            let Ok(since) = down.map(|status| status.down_since) else {
                // The queue says that the task has ended.
                return pending().await;
            };
            let since = since.unwrap_or(submitted).max(submitted);
            let until = *give_up.get_or_insert(since + WAIT);
            let up = async {
                let up = status.wait_for(|status| status.down_since.is_none()).await;
                up.is_ok()
            };
            let is_down = tokio::select! {
                biased;
                () = sleep_until(until) => true,
                is_open = up => match is_open {
                    true => false,
                    false => return pending().await,
                },
            };
            if is_down {
                return error::disconnected(self.connector.address(), self.cause());
            }
        }
    }

    /// Sends a command; a refusal of the server is an error.
    pub(super) async fn command(&self, command: impl Encode, retry: Retry) -> Result<Value, Error> {
        super::error::check(self.submit(command, retry).await?)
    }

    /// Runs a script; a refusal of the server is an error.
    pub(super) async fn script(
        &self,
        script: &'static Script,
        keys: &[&str],
        args: impl FnOnce(&mut Cmd),
        retry: Retry,
    ) -> Result<Value, Error> {
        let answer = self.submit_script(script, keys, args, retry);
        super::error::check(answer.await?)
    }

    /// Connected, reconnecting, or closed: then the runtime of its task has ended.
    pub(super) fn state(&self) -> ConnectionState {
        self.status.borrow().state
    }

    /// Why there is no connection, where there is none.
    pub(super) fn cause(&self) -> Option<Arc<Error>> {
        self.status.borrow().cause.clone()
    }

    fn ask(&self, command: impl Encode, retry: Retry, script: Option<&'static Script>) -> Submit {
        match self.queue.try_reserve(command.size_hint()) {
            Some(permit) => Submit(Stage::queue(permit, command, retry, script)),
            None => {
                let mut encoded = Vec::new();
                command.encode(&mut encoded);
                self.submit_owned(encoded, retry, script)
            }
        }
    }
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").finish_non_exhaustive()
    }
}

/// The future of a command's answer.
#[must_use = "the answer says whether the command was carried out"]
pub(super) struct Submit(Stage);

enum Stage {
    /// The command waits for its permit.
    Permit(BoxFuture<'static, Result<Completion<Outcome>, Error>>),
    Answer(Completion<Outcome>),
    /// The pipeline's task has ended.
    Closed,
}

impl Stage {
    fn queue(
        permit: Permit<'_>,
        command: impl Encode,
        retry: Retry,
        script: Option<&'static Script>,
    ) -> Self {
        match permit.push(|batch, at| batch.ask(command, retry, script, at)) {
            Ok(completion) => Stage::Answer(completion),
            Err(_) => Stage::Closed,
        }
    }
}

impl Future for Submit {
    type Output = Result<Value, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            self.0 = match &mut self.0 {
                Stage::Permit(waiting) => Stage::Answer(ready!(waiting.as_mut().poll(cx))?),
                Stage::Answer(completion) => return Pin::new(completion).poll(cx),
                Stage::Closed => return Poll::Ready(Err(error::runtime_ended())),
            }
        }
    }
}
