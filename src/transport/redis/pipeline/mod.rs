//! One supervised connection for everything that is answered at once: sending, acknowledging,
//! scripts.
//!
//! Callers pack commands into a batch; one task sends whatever has gathered as one pipeline, keeps a
//! few pipelines on their way, and hands out the answers. The task makes the connection again, without
//! limit, whenever it is lost or does not answer any more.
//!
//! # Ordering
//! Commands are sent in the order of the calls to [`Pipeline::submit`], as long as the queue has room.
//! Those that have to be sent again go before those that were not sent yet.
//!
//! # Back-pressure
//! The queue is bounded. When it is full, [`Submit`] waits.
//!
//! # Cancel safety
//! Dropping a [`Submit`] does not take back what was sent, nor an idempotent command that has found
//! room in the queue. Any other that is still there is not sent any more.

mod batch;
mod flight;
mod outbox;
mod task;
#[cfg(test)]
mod tests;

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::BoxFuture;
use redis::Cmd;

use self::outbox::{Sender, outbox};
use super::error;
use super::{
    connection::Connection, connection::Encode, response::Value, scripts::Script, server::Connector,
};
use crate::{
    error::Error,
    sync::{Waiter, lock},
    transport::{ConnectionState, Counters},
};

/// How long a server may take to answer before it counts as gone.
pub(super) const SILENCE: Duration = Duration::from_secs(5);

/// What becomes of a command when the connection is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// It is sent once. Without a connection it waits for a few seconds and then fails as
    /// disconnected; with its answer outstanding its outcome is unknown.
    Never,
    /// It is idempotent, and sent again until it is answered.
    UntilAnswered,
}

/// What a command has come to: the server's answer, be it a refusal, or why there is none.
type Outcome = Result<Value, Error>;

/// What acts on the answers to commands, in the link's own task: it must not take long.
pub(super) trait Listener: Send + Sync {
    /// What the command that was posted with this number has come to. It is told once.
    fn answered(&self, number: u128, outcome: Result<Value, Error>);

    /// Whether nobody is interested any more, so that what was not sent yet need not be.
    fn is_gone(&self, number: u128) -> bool;
}

/// A handle of the connection. Cheap to clone; with the last one the connection ends, once what
/// was submitted is answered.
#[derive(Clone)]
pub(super) struct Pipeline {
    outbox: Sender,
    health: Arc<Health>,
}

/// What the task of a link says about its connection.
#[derive(Debug)]
struct Health {
    /// A [`ConnectionState`].
    state: AtomicU8,
    /// Why the last connection was lost, or could not be made; `None` once the server has answered.
    cause: Mutex<Option<Arc<Error>>>,
}

const STATES: [ConnectionState; 3] = [
    ConnectionState::Connected,
    ConnectionState::Reconnecting,
    ConnectionState::Closed,
];

impl Health {
    fn new(state: ConnectionState) -> Self {
        let health = Self {
            state: AtomicU8::new(0),
            cause: Mutex::default(),
        };
        health.set(state);
        health
    }

    fn set(&self, state: ConnectionState) {
        let at = STATES.iter().position(|it| *it == state);
        self.state.store(at.unwrap_or(0) as u8, Ordering::Relaxed);
    }

    fn state(&self) -> ConnectionState {
        STATES[usize::from(self.state.load(Ordering::Relaxed))]
    }

    fn set_cause(&self, cause: Option<Error>) {
        *lock(&self.cause) = cause.map(Arc::new);
    }

    fn cause(&self) -> Option<Arc<Error>> {
        lock(&self.cause).clone()
    }
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
        let (outbox, batches) = outbox();
        let health = Arc::new(Health::new(match first {
            Some(_) => ConnectionState::Connected,
            None => ConnectionState::Reconnecting,
        }));
        let task = task::Task::new(connector, counters, silence, batches, health.clone());
        tokio::spawn(task.run(first));
        Self { outbox, health }
    }

    /// Puts a command in the outbox now, if there is room, and resolves to its answer. A refusal of
    /// the server is an answer too: a [`Value::ServerError`].
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
        self.ask(script.call(keys, args), retry, Some(script))
    }

    /// Puts a command in the outbox, once there is room, whose answer is told to a listener, with
    /// this number: what is submitted after that is sent after it. Dropped before there is room, it
    /// is not sent, and the listener is not told.
    pub(super) fn post(
        &self,
        command: impl Encode,
        retry: Retry,
        listener: &Arc<impl Listener + 'static>,
        number: u128,
    ) -> Posted {
        let listener = listener.clone();
        let Some(room) = self.outbox.room() else {
            let (packed, outbox) = (packed(command), self.outbox.clone());
            return Posted(Some(Box::pin(async move {
                match outbox.wait().await {
                    Ok(room) => post(room, &packed[..], retry, listener, number),
                    Err(error) => listener.answered(number, Err(error)),
                }
            })));
        };
        post(room, command, retry, listener, number);
        Posted(None)
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
        self.health.state()
    }

    /// Why there is no connection, where there is none.
    pub(super) fn cause(&self) -> Option<Arc<Error>> {
        self.health.cause()
    }

    fn ask(&self, command: impl Encode, retry: Retry, script: Option<&'static Script>) -> Submit {
        Submit(match self.outbox.room() {
            Some(room) => match room.fill(|batch| batch.ask(command, retry, script)) {
                Ok(waiter) => Stage::Answer(waiter),
                Err(_) => Stage::Closed,
            },
            None => {
                let (packed, outbox) = (packed(command), self.outbox.clone());
                Stage::Room(Box::pin(async move {
                    let room = outbox.wait().await?;
                    room.fill(|batch| batch.ask(&packed[..], retry, script))
                }))
            }
        })
    }
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").finish_non_exhaustive()
    }
}

fn packed(command: impl Encode) -> Vec<u8> {
    let mut packed = Vec::new();
    command.encode(&mut packed);
    packed
}

fn post(
    room: outbox::Room<'_>,
    command: impl Encode,
    retry: Retry,
    listener: Arc<impl Listener + 'static>,
    number: u128,
) {
    let told = listener.clone();
    if let Err(error) = room.fill(|batch| batch.post(command, retry, told, number)) {
        listener.answered(number, Err(error));
    }
}

/// The wait until a command that was posted has found room.
#[must_use = "what is posted next may come before it"]
pub(super) struct Posted(Option<BoxFuture<'static, ()>>);

impl Future for Posted {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            Some(waiting) => waiting.as_mut().poll(cx),
            None => Poll::Ready(()),
        }
    }
}

/// The future of a command's answer.
#[must_use = "the answer says whether the command was carried out"]
pub(super) struct Submit(Stage);

enum Stage {
    /// There was no room.
    Room(BoxFuture<'static, Result<Waiter<Outcome>, Error>>),
    Answer(Waiter<Outcome>),
    /// The link has ended.
    Closed,
}

impl Future for Submit {
    type Output = Result<Value, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            self.0 = match &mut self.0 {
                Stage::Room(waiting) => Stage::Answer(ready!(waiting.as_mut().poll(cx))?),
                Stage::Answer(waiter) => return Pin::new(waiter).poll(cx),
                Stage::Closed => return Poll::Ready(Err(error::runtime_ended())),
            }
        }
    }
}
