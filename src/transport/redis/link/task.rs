//! The task behind a [`Link`](super::Link).

use std::{
    collections::VecDeque,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::{Cmd, RedisError};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Request, Retry,
    flight::{Flight, Sent},
};
use crate::transport::{
    Counters,
    redis::{
        connect::{BACKOFF, Connector},
        error,
        line::Line,
        value::Value,
    },
};

/// How many pipelines are on their way at once: enough that the server never waits for us, and few
/// enough that commands gather while it works.
const PIPELINES: usize = 4;
/// How many commands a pipeline holds at most.
const COMMANDS: usize = 512;
/// Past how many bytes a pipeline takes no further command.
const BYTES: usize = 1 << 20;
/// How long a command waits for a connection before it fails.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a server that is not ready is left alone.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Task {
    connector: Connector,
    counters: Arc<Counters>,
    /// How long a server may take to answer before it counts as gone.
    silence: Duration,
    queue: mpsc::Receiver<Request>,
    /// Whether every handle is gone.
    closed: bool,
    connected_before: bool,
    /// Whether there is a connection, for the handles.
    connected: Arc<AtomicBool>,
    /// What goes before the queue: it waited for a connection, or has to be sent again.
    waiting: VecDeque<Request>,
}

/// Why a connection is not used any more.
enum End {
    Lost(Option<RedisError>),
    Closed,
}

impl Task {
    pub(super) fn new(
        connector: Connector,
        counters: Arc<Counters>,
        silence: Duration,
        queue: mpsc::Receiver<Request>,
        connected: Arc<AtomicBool>,
    ) -> Self {
        Self {
            connector,
            counters,
            silence,
            queue,
            closed: false,
            connected_before: false,
            connected,
            waiting: VecDeque::new(),
        }
    }

    pub(super) async fn run(mut self, mut first: Option<Line>) {
        loop {
            let connection = match first.take() {
                Some(connection) => connection,
                None => match self.connect().await {
                    Some(connection) => connection,
                    None => return,
                },
            };
            if std::mem::replace(&mut self.connected_before, true) {
                self.counters.reconnects.increment();
            }
            self.connected.store(true, Ordering::Relaxed);
            let end = self.serve(connection).await;
            self.connected.store(false, Ordering::Relaxed);
            match end {
                End::Closed => return,
                End::Lost(reason) => {
                    tracing::warn!(
                        address = self.connector.address(),
                        reason = reason
                            .map_or_else(|| "no usable answer".into(), |reason| reason.to_string()),
                        "lost a connection to Redis"
                    );
                }
            }
        }
    }

    /// Connects, however long it takes. `None` when nobody needs a connection any more.
    async fn connect(&mut self) -> Option<Line> {
        let connector = self.connector.clone();
        for attempt in 1.. {
            // The first attempt follows the loss at once, but for a moment in which the clients of a
            // server that restarts spread out.
            let wait = BACKOFF.after(attempt);
            let making = async {
                sleep(wait).await;
                connector.line().await
            };
            match self.while_waiting(making).await? {
                Ok(connection) => return Some(connection),
                Err(error) => tracing::debug!(attempt, error = error.chain(), "cannot connect"),
            }
        }
        None
    }

    /// Runs `work` and meanwhile lets commands wait, until they have waited for too long. `None`
    /// when nobody waits any more and every handle is gone.
    async fn while_waiting<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut next = self.expire();
        tokio::pin!(work);
        loop {
            if self.closed {
                self.waiting.retain(|request| !request.answer.is_closed());
                if self.waiting.is_empty() {
                    return None;
                }
            }
            let room = !self.closed && self.waiting.len() < super::QUEUE;
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = sleep_until(next) => next = self.expire(),
                request = self.queue.recv(), if room => match request {
                    Some(mut request) => {
                        request.give_up = Some(Instant::now() + PATIENCE);
                        self.waiting.push_back(request);
                    }
                    None => self.closed = true,
                },
            }
        }
    }

    /// Fails what has waited for too long, and says when to look again.
    fn expire(&mut self) -> Instant {
        let now = Instant::now();
        let mut next = now + PATIENCE;
        let mut kept = VecDeque::with_capacity(self.waiting.len());
        for mut request in self.waiting.drain(..) {
            let give_up = *request.give_up.get_or_insert(now + PATIENCE);
            if request.retry == Retry::Never && give_up <= now {
                let error = error::disconnected(self.connector.address());
                request.answer.send(Err(error));
                continue;
            }
            if request.retry == Retry::Never {
                next = next.min(give_up);
            }
            kept.push_back(request);
        }
        self.waiting = kept;
        next
    }

    async fn serve(&mut self, line: Line) -> End {
        let mut flight = Flight::new(line, self.silence);
        let end = self.exchange(&mut flight).await;
        for mut sent in flight.sent.into_iter().rev() {
            // What was on its way and is not answered is lost with the connection.
            let lost = sent.requests.split_off(sent.answers.len());
            for request in lost.into_iter().rev() {
                if request.retry == Retry::UntilAnswered {
                    self.waiting.push_front(request);
                } else {
                    let error = error::unanswered(self.connector.address());
                    request.answer.send(Err(error));
                }
            }
            self.hand_out(sent);
        }
        end
    }

    async fn exchange(&mut self, flight: &mut Flight) -> End {
        loop {
            while flight.sent.len() < PIPELINES {
                let Some((requests, bytes)) = self.gather() else {
                    break;
                };
                flight.send(requests, bytes);
            }
            if flight.sent.is_empty() && self.closed {
                return End::Closed;
            }
            let room = flight.sent.len() < PIPELINES && !self.closed;
            tokio::select! {
                biased;
                answered = flight.next() => {
                    let sent = match answered {
                        Ok(sent) => sent,
                        Err(reason) => return End::Lost(reason),
                    };
                    let crowd = sent.requests.len() > 1;
                    match self.hand_out(sent) {
                        // Those who were answered often have more to send: with a turn to do so
                        // they fill one pipeline in place of many.
                        Health::Fine if crowd => tokio::task::yield_now().await,
                        Health::Fine => {}
                        Health::NotReady => {
                            self.while_waiting(sleep(PAUSE)).await;
                        }
                        Health::Demoted => {
                            self.while_waiting(sleep(PAUSE)).await;
                            return End::Lost(None);
                        }
                    }
                }
                request = self.queue.recv(), if room => match request {
                    Some(request) => {
                        self.waiting.push_back(request);
                        if !flight.sent.is_empty() {
                            tokio::task::yield_now().await;
                        }
                    }
                    None => self.closed = true,
                },
            }
        }
    }

    /// What is to be sent next, as one pipeline.
    fn gather(&mut self) -> Option<(Vec<Request>, usize)> {
        let mut requests = Vec::new();
        let mut bytes = 0;
        while requests.len() < COMMANDS && bytes < BYTES {
            let next = self.waiting.pop_front();
            let Some(request) = next.or_else(|| self.queue.try_recv().ok()) else {
                break;
            };
            // Nobody waits for it and it was never sent: a request that was given up.
            if request.retry == Retry::Never && request.answer.is_closed() {
                continue;
            }
            bytes += size(&request.cmd);
            requests.push(request);
        }
        (!requests.is_empty()).then_some((requests, bytes))
    }

    /// Answers the requests of a pipeline, or puts them back where the server was not ready.
    fn hand_out(&mut self, sent: Sent) -> Health {
        let mut health = Health::Fine;
        let mut again = Vec::new();
        for (mut request, answer) in sent.requests.into_iter().zip(sent.answers) {
            if let Value::ServerError(error) = &answer {
                let unknown = error.code() == "NOSCRIPT";
                if let Some(script) = request.script.filter(|_| unknown) {
                    request.cmd = script.with_text(&request.cmd);
                    again.push(request);
                    continue;
                }
                if error::is_passing(error.code()) && !request.has_waited() {
                    health = health.max(match error::is_demoted(error) {
                        true => Health::Demoted,
                        false => Health::NotReady,
                    });
                    request.give_up.get_or_insert(Instant::now() + PATIENCE);
                    again.push(request);
                    continue;
                }
            }
            request.answer.send(Ok(answer));
        }
        for request in again.into_iter().rev() {
            self.waiting.push_front(request);
        }
        health
    }
}

impl Request {
    /// Whether it may not be sent again because it has waited for as long as it may.
    fn has_waited(&self) -> bool {
        self.retry == Retry::Never
            && self
                .give_up
                .is_some_and(|give_up| give_up <= Instant::now())
    }
}

/// What the answers of a pipeline say about the server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    Fine,
    NotReady,
    Demoted,
}

/// About how many bytes a command takes.
fn size(cmd: &Cmd) -> usize {
    cmd.args_iter()
        .map(|arg| match arg {
            redis::Arg::Simple(bytes) => bytes.len() + 16,
            _ => 16,
        })
        .sum()
}
