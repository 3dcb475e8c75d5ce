//! One supervised connection for everything that is answered at once: sending, acknowledging,
//! scripts.
//!
//! Callers put commands on a queue; one task writes whatever is queued as one pipeline, keeps a few
//! pipelines on their way, and hands out the answers. The task makes the connection again, without
//! limit, whenever it is lost or does not answer any more.
//!
//! # Ordering
//! Commands are sent in the order of the calls to [`Link::submit`], as long as the queue has room.
//! Those that have to be sent again go before those that were not sent yet.
//!
//! # Back-pressure
//! The queue is bounded. When it is full, [`Submit`] waits.
//!
//! # Cancel safety
//! Dropping a [`Submit`] does not take back what was sent, nor an idempotent command that has found
//! room in the queue. Any other that is still there is not sent any more.

mod flight;
mod script;
mod task;
#[cfg(test)]
mod tests;

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use redis::Cmd;
use tokio::sync::{mpsc, oneshot};

pub(super) use self::script::Script;
use super::{connect::Connector, line::Line, value::Value};
use crate::{error::Error, transport::Counters};

/// How many commands may wait to be sent.
const QUEUE: usize = 1024;
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

/// A handle of the connection. Cheap to clone; with the last one the connection ends, once what
/// was submitted is answered.
#[derive(Debug, Clone)]
pub(super) struct Link {
    requests: mpsc::Sender<Request>,
    connected: Arc<AtomicBool>,
}

/// A command on its way through the link.
struct Request {
    cmd: Cmd,
    retry: Retry,
    /// What `cmd` calls, if it is a script: the server may have to be told its text.
    script: Option<&'static Script>,
    /// When it fails if it has not been sent by then. Set when it first has to wait.
    give_up: Option<tokio::time::Instant>,
    answer: Answer,
}

/// Who is told what the server answers.
enum Answer {
    /// A future that waits for it.
    Asker(oneshot::Sender<Result<Value, Error>>),
    /// What acts on it without waiting for it: nobody is woken.
    Listener(Told),
}

impl Answer {
    fn send(self, answer: Result<Value, Error>) {
        match self {
            Answer::Asker(asker) => {
                let _ = asker.send(answer);
            }
            Answer::Listener(mut told) => told.tell(answer),
        }
    }

    /// Whether nobody is interested any more.
    fn is_closed(&self) -> bool {
        match self {
            Answer::Asker(asker) => asker.is_closed(),
            Answer::Listener(Told(listener)) => listener.as_ref().is_none_or(|l| l.is_gone()),
        }
    }
}

/// What acts on the answer to a command, in the link's own task: it must not take long.
pub(super) trait Listener: Send {
    /// The server's answer, be it a refusal, or why there is none.
    fn answered(self: Box<Self>, answer: Result<Value, Error>);

    /// Whether nobody is interested any more, so that what was not sent yet need not be.
    fn is_gone(&self) -> bool;
}

/// A listener that is told once, and if by nothing else then by being dropped.
struct Told(Option<Box<dyn Listener>>);

impl Told {
    fn tell(&mut self, answer: Result<Value, Error>) {
        if let Some(listener) = self.0.take() {
            listener.answered(answer);
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.tell(Err(Error::closed()));
    }
}

impl Link {
    /// Starts the task that owns the connection, beginning with one that was already made.
    pub(super) fn spawn(
        connector: Connector,
        first: Option<Line>,
        counters: Arc<Counters>,
    ) -> Self {
        Self::with_patience(connector, first, counters, SILENCE)
    }

    /// Like [`spawn`](Self::spawn), for a server that counts as gone when it has not answered for
    /// so long.
    pub(super) fn with_patience(
        connector: Connector,
        first: Option<Line>,
        counters: Arc<Counters>,
        silence: Duration,
    ) -> Self {
        let (requests, queue) = mpsc::channel(QUEUE);
        let connected = Arc::new(AtomicBool::new(first.is_some()));
        let task = task::Task::new(connector, counters, silence, queue, connected.clone());
        tokio::spawn(task.run(first));
        Self {
            requests,
            connected,
        }
    }

    /// Puts a command on the queue now, if there is room, and resolves to its answer. A refusal of
    /// the server is an answer too: a [`Value::ServerError`].
    pub(super) fn submit(&self, cmd: Cmd, retry: Retry) -> Submit {
        self.enqueue(cmd, retry, None)
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
        self.enqueue(script.call(keys, args), retry, Some(script))
    }

    /// Puts a command on the queue, once there is room, whose answer is not waited for: what is
    /// submitted after that is sent after it.
    pub(super) fn post(
        &self,
        cmd: Cmd,
        retry: Retry,
        listener: impl Listener + 'static,
    ) -> impl Future<Output = ()> + Send {
        let room = self.queue_up(Request {
            cmd,
            retry,
            script: None,
            give_up: None,
            answer: Answer::Listener(Told(Some(Box::new(listener)))),
        });
        async move {
            if let Some(room) = room {
                room.await;
            }
        }
    }

    /// Sends a command; a refusal of the server is an error.
    pub(super) async fn command(&self, cmd: Cmd, retry: Retry) -> Result<Value, Error> {
        super::error::check(self.submit(cmd, retry).await?)
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

    /// Whether there is a connection.
    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    fn enqueue(&self, cmd: Cmd, retry: Retry, script: Option<&'static Script>) -> Submit {
        let (answer, answered) = oneshot::channel();
        let request = Request {
            cmd,
            retry,
            script,
            give_up: None,
            answer: Answer::Asker(answer),
        };
        let room = self.queue_up(request);
        Submit { room, answered }
    }

    /// Puts a request on the queue, or gives the wait for room there.
    fn queue_up(&self, request: Request) -> Option<Waiting> {
        match self.requests.try_send(request) {
            // A queue that is closed has dropped the request, which whoever waits for it is told.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => None,
            Err(mpsc::error::TrySendError::Full(request)) => {
                let requests = self.requests.clone();
                Some(Box::pin(async move {
                    let _ = requests.send(request).await;
                }))
            }
        }
    }
}

type Waiting = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The future of a command's answer.
#[must_use = "the answer says whether the command was carried out"]
pub(super) struct Submit {
    /// The wait for room in the queue, where there was none.
    room: Option<Waiting>,
    answered: oneshot::Receiver<Result<Value, Error>>,
}

impl Future for Submit {
    type Output = Result<Value, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(room) = &mut self.room {
            ready!(room.as_mut().poll(cx));
            self.room = None;
        }
        Pin::new(&mut self.answered)
            .poll(cx)
            .map(|answer| answer.unwrap_or_else(|_| Err(Error::closed())))
    }
}
