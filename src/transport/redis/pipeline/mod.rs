//! A supervised, multiplexed connection for commands that do not block: sending, acknowledging,
//! scripts.
//!
//! Callers encode commands into a batch of the submit queue. One task sends the queued commands as
//! one pipeline, keeps a few pipelines in flight, and delivers the responses. The task reconnects,
//! without limit, when the connection is lost or the server stops responding.
//!
//! # Ordering
//! Commands are sent in the order of the calls to [`Pipeline::submit`], as long as none waits for a
//! permit. Commands that are sent again go before those that were not sent yet.
//!
//! # Back-pressure
//! Commands that are queued or in flight are bounded in number and in bytes. [`Submit`] waits for
//! its permit, first come, first served.
//!
//! # Cancel safety
//! Dropping a [`Submit`] does not stop a command that was sent, nor an idempotent command that is
//! queued. Any other queued command is dropped.

mod batch;
mod in_flight;
mod nodes;
mod queue;
mod redirection;
mod replicas;
mod role_check;
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
use tokio::time::{Instant, sleep_until};

use self::{
    nodes::{Node, Nodes},
    queue::QueuePermit,
};
use super::{
    connection::{Connection, Encode},
    error,
    response::Value,
    scripts::Script,
    server::{Connector, HashSlot},
};
use crate::{
    error::Error,
    message::Replicas,
    sync::Completion,
    transport::{ConnectionState, Counters},
};

/// If a response is due and the server sends nothing for this long, the connection counts as lost.
pub(super) const SILENCE: Duration = Duration::from_secs(5);
/// The longest time for which a command waits without a connection. The wait begins when the
/// command is submitted or, if there is a connection then, when that connection is lost.
const MAX_DISCONNECTED_WAIT: Duration = Duration::from_secs(5);

/// The handling of a command whose connection is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resend {
    /// Sent once. Without a connection, the command waits for a few seconds and then fails as
    /// disconnected. If the connection is lost before the response, the outcome is unknown.
    Never,
    /// Sent again until there is a response. The command must be idempotent.
    UntilAnswered,
}

/// The response to a command, which may be a [`Value::ServerError`]. `Err` is the reason why there
/// is no response.
type Outcome = Result<Value, Error>;

/// Handles responses to commands. It runs in the pipeline's task, so it must be quick.
pub(super) trait CompletionHandler: Send + Sync {
    /// Takes the outcome of the command that was submitted with this number. Called once.
    fn completed(&self, number: u128, outcome: Result<Value, Error>);

    /// Returns `true` if the outcome is no longer wanted, so that a queued command need not be
    /// sent.
    fn is_unwanted(&self, number: u128) -> bool;
}

/// A handle of the connection, or on a cluster of the connections to all primaries in use. Cheap to
/// clone. After the last handle is dropped, the connection closes once all submitted commands have
/// responses.
#[derive(Clone)]
pub(super) struct Pipeline {
    nodes: Arc<Nodes>,
    /// The slot of the keys of the handle's commands.
    slot: HashSlot,
    /// The replicas that have to confirm the handle's commands.
    replicas: Option<Replicas>,
}

/// The state of the connection.
#[derive(Debug)]
struct Status {
    state: ConnectionState,
    /// The reason why the last connection was lost or could not be made; `None` once the server has
    /// responded.
    cause: Option<Arc<Error>>,
    /// The time since which commands cannot be carried out: there is no connection, or the server
    /// is not ready.
    down_since: Option<Instant>,
}

impl Pipeline {
    /// Starts the task that owns the connection. `first` is the connection to begin with, if there
    /// is one.
    pub(super) fn spawn(
        connector: Connector,
        first: Option<Connection>,
        counters: Arc<Counters>,
    ) -> Self {
        Self::with_max_silence(connector, first, counters, SILENCE)
    }

    /// Like [`spawn`](Self::spawn), with another limit for the server's silence.
    pub(super) fn with_max_silence(
        connector: Connector,
        first: Option<Connection>,
        counters: Arc<Counters>,
        max_silence: Duration,
    ) -> Self {
        let slot = connector.slot().unwrap_or(HashSlot::ANY);
        Self {
            nodes: Arc::new(Nodes::start(connector, first, counters, max_silence)),
            slot,
            replicas: None,
        }
    }

    /// Returns a handle for commands on this key, and on other keys of its slot.
    pub(super) fn for_key(&self, key: &str) -> Self {
        let slot = match *self.nodes {
            Nodes::One(_) => HashSlot::ANY,
            Nodes::Cluster(_) => HashSlot::of(key.as_bytes()),
        };
        Self {
            nodes: self.nodes.clone(),
            slot,
            replicas: self.replicas,
        }
    }

    /// Returns a handle for writes that replicas have to confirm. Each response becomes a list of
    /// two: the response to the write, and the response to the `WAIT` that follows it. The response
    /// to `WAIT` is nil if the connection was lost before it came. If the response to the write is
    /// an error, the error is returned alone.
    ///
    /// All handles of the connection must be for such writes. Other commands would also wait for
    /// the replicas.
    pub(super) fn confirmed_by(self, replicas: Replicas) -> Self {
        Self {
            replicas: Some(replicas),
            ..self
        }
    }

    /// Queues a command, immediately or when it gets its permit. The future resolves to the
    /// response, which may be a [`Value::ServerError`].
    ///
    /// A command that has to wait for its permit is encoded before it waits. Use
    /// [`submit_owned`](Self::submit_owned) for large commands.
    pub(super) fn submit(&self, command: impl Encode, resend: Resend) -> Submit {
        self.submit_command(command, resend, None)
    }

    /// Like [`submit`](Self::submit), for a script. The script is called by its hash, and then by
    /// its source if the server does not know the hash.
    pub(super) fn submit_script(
        &self,
        script: &'static Script,
        keys: &[&str],
        args: impl FnOnce(&mut Cmd),
        resend: Resend,
    ) -> Submit {
        self.submit_owned(script.call(keys, args), resend, Some(script))
    }

    /// Like [`submit`](Self::submit), for large commands. The command is encoded only when it has
    /// its permit, so its encoding takes no memory during the wait.
    pub(super) fn submit_owned(
        &self,
        command: impl Encode + Send + 'static,
        resend: Resend,
        script: Option<&'static Script>,
    ) -> Submit {
        let (size, slot) = (command.size_hint(), self.slot);
        let node = self.nodes.for_slot(slot);
        let replicas = self.replicas;
        let permit = node.queue.try_reserve(size, slot);
        Submit(match permit {
            Some(permit) => Stage::of(queue(permit, command, resend, script, replicas)),
            None => {
                let (node, submitted) = (node.clone(), Instant::now());
                Stage::Permit(Box::pin(async move {
                    let permit = node.permit(size, submitted, slot, resend).await?;
                    queue(permit, command, resend, script, replicas)
                }))
            }
        })
    }

    /// Waits for a permit, then queues a command. The handler gets the outcome of the command,
    /// together with `number`. Commands that are submitted after this future completes are sent
    /// after this command. If the future is dropped before it has its permit, the command is not
    /// sent and the handler is not called.
    pub(super) async fn submit_with_handler(
        &self,
        command: impl Encode,
        resend: Resend,
        handler: &Arc<impl CompletionHandler + 'static>,
        number: u128,
    ) {
        let (size, slot) = (command.size_hint(), self.slot);
        let node = self.nodes.for_slot(slot);
        let permit = match node.queue.try_reserve(size, slot) {
            Some(permit) => Ok(permit),
            None => node.permit(size, Instant::now(), slot, resend).await,
        };
        let queued = permit.and_then(|permit| {
            let to = (handler.clone() as Arc<dyn CompletionHandler>, number);
            permit.push(|batch, admission| batch.push_with_handler(command, resend, to, admission))
        });
        if let Err(error) = queued {
            handler.completed(number, Err(error));
        }
    }

    /// Sends a command and returns its response. An error of the server becomes an `Err`.
    pub(super) async fn command(
        &self,
        command: impl Encode,
        resend: Resend,
    ) -> Result<Value, Error> {
        super::error::check(self.submit(command, resend).await?)
    }

    /// Runs a script and returns its response. An error of the server becomes an `Err`.
    pub(super) async fn script(
        &self,
        script: &'static Script,
        keys: &[&str],
        args: impl FnOnce(&mut Cmd),
        resend: Resend,
    ) -> Result<Value, Error> {
        let response = self.submit_script(script, keys, args, resend);
        super::error::check(response.await?)
    }

    /// Runs an idempotent script, and runs it again after an unknown outcome. Unlike with
    /// [`Resend::UntilAnswered`], the call fails after a few seconds without a connection.
    pub(super) async fn script_until_known(
        &self,
        script: &'static Script,
        keys: &[&str],
        args: impl Fn(&mut Cmd),
    ) -> Result<Value, Error> {
        loop {
            match self.script(script, keys, &args, Resend::Never).await {
                Err(error) if error.is_unknown_outcome() => {}
                response => return response,
            }
        }
    }

    /// Returns the state of the connection, or on a cluster the worst state of all connections.
    /// `Closed` means that the task has ended.
    pub(super) fn state(&self) -> ConnectionState {
        let nodes = self.nodes.all().into_iter();
        let states = nodes.map(|node| node.status.borrow().state);
        states.max().unwrap_or(ConnectionState::Connected)
    }

    /// Returns the reason why the last connection was lost or could not be made; `None` once the
    /// server has responded.
    pub(super) fn cause(&self) -> Option<Arc<Error>> {
        let nodes = self.nodes.all().into_iter();
        nodes.filter_map(|node| node.cause()).next()
    }

    /// Like [`cause`](Self::cause), for the connection to the primary of the handle's keys alone.
    pub(super) fn cause_here(&self) -> Option<Arc<Error>> {
        self.nodes.for_slot(self.slot).cause()
    }

    fn submit_command(
        &self,
        command: impl Encode,
        resend: Resend,
        script: Option<&'static Script>,
    ) -> Submit {
        let node = self.nodes.for_slot(self.slot);
        match node.queue.try_reserve(command.size_hint(), self.slot) {
            Some(permit) => {
                let queued = queue(permit, command, resend, script, self.replicas);
                Submit(Stage::of(queued))
            }
            None => {
                let mut encoded = Vec::new();
                command.encode(&mut encoded);
                self.submit_owned(encoded, resend, script)
            }
        }
    }
}

impl Node {
    /// Waits for a permit. With [`Resend::Never`], fails if the wait without a connection is too
    /// long.
    async fn permit(
        &self,
        size: usize,
        submitted: Instant,
        slot: HashSlot,
        resend: Resend,
    ) -> Result<QueuePermit<'_>, Error> {
        tokio::select! {
            biased;
            permit = self.queue.reserve(size, submitted, slot) => permit,
            error = self.waited_too_long(submitted), if resend == Resend::Never => Err(error),
        }
    }

    /// Resolves when a command that was submitted at this time has waited too long without a
    /// connection.
    async fn waited_too_long(&self, submitted: Instant) -> Error {
        let mut status = self.status.clone();
        // Set once, when the connection is first down. A later loss does not restart the wait.
        let mut give_up_at = None;
        loop {
            let down = status.wait_for(|status| status.down_since.is_some()).await;
            let Ok(down_since) = down.map(|status| status.down_since) else {
                // The task has ended. The queue reports that.
                return pending().await;
            };
            let waits_since = down_since.unwrap_or(submitted).max(submitted);
            let until = *give_up_at.get_or_insert(waits_since + MAX_DISCONNECTED_WAIT);
            let up = async {
                let up = status.wait_for(|status| status.down_since.is_none()).await;
                up.is_ok()
            };
            let has_waited_too_long = tokio::select! {
                biased;
                () = sleep_until(until) => true,
                is_open = up => match is_open {
                    true => false,
                    false => return pending().await,
                },
            };
            if has_waited_too_long {
                return error::disconnected(&self.connector.address(), self.cause());
            }
        }
    }

    fn cause(&self) -> Option<Arc<Error>> {
        self.status.borrow().cause.clone()
    }
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").finish_non_exhaustive()
    }
}

/// The future of a command's response.
#[must_use = "the answer says whether the command was carried out"]
pub(super) struct Submit(Stage);

/// The progress of a command.
enum Stage {
    /// The command waits for its permit.
    Permit(BoxFuture<'static, Result<Completion<Outcome>, Error>>),
    /// The command is queued or in flight, and waits for its response.
    Response(Completion<Outcome>),
    /// The pipeline's task has ended.
    Closed,
}

impl Stage {
    fn of(queued: Result<Completion<Outcome>, Error>) -> Self {
        queued.map_or(Stage::Closed, Stage::Response)
    }
}

/// Queues a command whose caller waits for the response.
fn queue(
    permit: QueuePermit<'_>,
    command: impl Encode,
    resend: Resend,
    script: Option<&'static Script>,
    replicas: Option<Replicas>,
) -> Result<Completion<Outcome>, Error> {
    permit.push(|batch, admission| {
        if let Some(replicas) = replicas {
            batch.require_replicas(replicas);
        }
        batch.push_awaited(command, resend, script, admission)
    })
}

impl Future for Submit {
    type Output = Result<Value, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            self.0 = match &mut self.0 {
                Stage::Permit(waiting) => Stage::Response(ready!(waiting.as_mut().poll(cx))?),
                Stage::Response(completion) => return Pin::new(completion).poll(cx),
                Stage::Closed => return Poll::Ready(Err(error::runtime_ended())),
            }
        }
    }
}
