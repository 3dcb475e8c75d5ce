//! The task behind a [`Pipeline`](super::Pipeline).

use std::{collections::VecDeque, future::Future, sync::Arc, time::Duration};

use redis::RedisError;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    Health as LinkHealth, Retry,
    batch::{BYTES, Batch, COMMANDS},
    flight::{Flight, Part, Sent},
    outbox::{ROOM, Receiver},
};
use crate::{
    error::Error,
    transport::{
        ConnectionState, Counters,
        redis::{
            connection::Connection,
            error,
            response::Value,
            server::Outage,
            server::{BACKOFF, Connector},
        },
    },
};

/// How many pipelines are on their way at once: enough that the server never waits for us, and few
/// enough that commands gather while it works.
const PIPELINES: usize = 4;
/// How long a command waits for a connection before it fails.
const PATIENCE: Duration = Duration::from_secs(5);
/// After how many connections that the server closed at the same large command that command fails.
const CLOSED_AT: u32 = 3;
/// How long a server that is not ready is left alone.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Task {
    connector: Connector,
    counters: Arc<Counters>,
    /// How long a server may take to answer before it counts as gone.
    silence: Duration,
    outbox: Receiver,
    connected_before: bool,
    /// The server could not read the last command that it answered on this connection.
    protocol_error: bool,
    /// What the handles are told about the connection.
    health: Arc<LinkHealth>,
    outage: Outage,
    /// What goes before the outbox: it waited for a connection, or has to be sent again. Each is a
    /// batch of one.
    waiting: VecDeque<Batch>,
}

/// Why a connection is not used any more.
enum End {
    Lost(Error),
    Closed,
}

impl Task {
    pub(super) fn new(
        connector: Connector,
        counters: Arc<Counters>,
        silence: Duration,
        outbox: Receiver,
        health: Arc<LinkHealth>,
    ) -> Self {
        Self {
            connector,
            counters,
            silence,
            outbox,
            connected_before: false,
            protocol_error: false,
            health,
            outage: Outage::default(),
            waiting: VecDeque::new(),
        }
    }

    pub(super) async fn run(mut self, mut first: Option<Connection>) {
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
            self.health.set(ConnectionState::Connected);
            let made = Instant::now();
            let end = self.serve(connection).await;
            self.health.set(ConnectionState::Reconnecting);
            match end {
                End::Closed => return,
                End::Lost(reason) => {
                    // One that has stood for longer than the longest wait was a connection, also
                    // where nothing was asked over it.
                    if made.elapsed() > BACKOFF.most {
                        self.outage.answered();
                    }
                    let address = self.connector.address();
                    self.outage
                        .lost(address, "a connection to Redis", &reason.chain());
                    self.health.set_cause(Some(reason));
                }
            }
        }
    }

    /// Connects, however long it takes. `None` when nobody needs a connection any more.
    async fn connect(&mut self) -> Option<Connection> {
        let connector = self.connector.clone();
        loop {
            // The first attempt follows the loss at once, but for a moment in which the clients of a
            // server that restarts spread out.
            let wait = self.outage.wait();
            let making = async {
                sleep(wait).await;
                connector.connection().await
            };
            match self.while_waiting(making).await? {
                Ok(connection) => return Some(connection),
                Err(error) => {
                    self.outage
                        .refused(connector.address(), "connect to Redis", &error);
                    self.health.set_cause(Some(error));
                }
            }
        }
    }

    /// Runs `work` and meanwhile lets commands wait, until they have waited for too long. `None`
    /// when nobody waits any more and every handle is gone.
    async fn while_waiting<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut next = self.expire();
        tokio::pin!(work);
        loop {
            while self.waiting.len() < ROOM
                && let Some(mut batch) = self.outbox.take()
            {
                let give_up = Instant::now() + PATIENCE;
                self.waiting.extend((0..batch.len()).map(|place| {
                    let mut one = batch.take(place);
                    one.give_up = Some(give_up);
                    one
                }));
            }
            let closed = self.outbox.is_closed();
            if closed {
                self.waiting.retain(|one| one.is_wanted(0));
                if self.waiting.is_empty() {
                    return None;
                }
            }
            let room = self.waiting.len() < ROOM && !closed;
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = sleep_until(next) => next = self.expire(),
                () = self.outbox.filled(), if room => {}
            }
        }
    }

    /// Fails what has waited for too long, and says when to look again.
    fn expire(&mut self) -> Instant {
        let now = Instant::now();
        let mut next = now + PATIENCE;
        let mut kept = VecDeque::with_capacity(self.waiting.len());
        for mut one in self.waiting.drain(..) {
            let give_up = *one.give_up.get_or_insert(now + PATIENCE);
            if one.retry(0) == Retry::Never {
                if give_up <= now {
                    let cause = self.health.cause();
                    one.fail(|| error::disconnected(self.connector.address(), cause.clone()));
                    continue;
                }
                next = next.min(give_up);
            }
            kept.push_back(one);
        }
        self.waiting = kept;
        next
    }

    async fn serve(&mut self, line: Connection) -> End {
        let mut flight = Flight::new(line, self.silence);
        self.protocol_error = false;
        let end = self.exchange(&mut flight).await;
        let oldest = flight.sent.front().into_iter().flat_map(|sent| &sent.parts);
        let answers = oldest.flat_map(|part| &part.answers);
        self.protocol_error |= answers.into_iter().any(is_protocol_error);
        self.note_closed_at(&mut flight, &end);
        for mut sent in flight.sent.into_iter().rev() {
            // What was on its way and is not answered is lost with the connection.
            for Part { batch, answers } in sent.parts.iter_mut().rev() {
                for place in (answers.len()..batch.len()).rev() {
                    let mut lost = batch.take(place);
                    match lost.retry(0) {
                        Retry::UntilAnswered if lost.closed_at >= CLOSED_AT => {
                            lost.fail(|| error::not_taken(self.connector.address(), CLOSED_AT));
                        }
                        Retry::UntilAnswered => self.waiting.push_front(lost),
                        // It stood behind the one that the server could not read.
                        Retry::Never if self.protocol_error => self.waiting.push_front(lost),
                        Retry::Never => lost.fail(|| error::unanswered(self.connector.address())),
                    }
                }
            }
            self.hand_out(sent);
        }
        end
    }

    /// Counts that the server has closed the connection at the first command without an answer. After
    /// a few times that command fails: sent again for ever, it would hold up all others.
    ///
    /// A server says why it does not take a command and closes. Where the reset overtakes the reason,
    /// or there is none (`client-query-buffer-limit`), this is all that shows it. Only large commands are
    /// counted: any other was answered by nobody for another reason.
    fn note_closed_at(&mut self, flight: &mut Flight, end: &End) {
        let closed =
            matches!(end, End::Lost(reason) if std::error::Error::source(reason).is_some());
        let closed = closed && !self.protocol_error;
        let parts = flight.sent.front_mut().into_iter();
        let first = (parts.flat_map(|sent| &mut sent.parts))
            .find(|part| part.answers.len() < part.batch.len());
        let Some(Part { batch, .. }) = first.filter(|part| closed && part.batch.len() == 1) else {
            return;
        };
        if batch.bytes() >= error::LEAST_SIZE_LIMIT {
            batch.closed_at += 1;
        }
    }

    async fn exchange(&mut self, flight: &mut Flight) -> End {
        loop {
            while flight.sent.len() < PIPELINES {
                let Some(batches) = self.gather() else {
                    break;
                };
                flight.send(batches);
            }
            let closed = self.outbox.is_closed();
            if flight.sent.is_empty() && closed {
                return End::Closed;
            }
            let room = flight.sent.len() < PIPELINES && !closed;
            tokio::select! {
                biased;
                answered = flight.next() => {
                    let sent = match answered {
                        Ok(sent) => sent,
                        Err(reason) => return End::Lost(lost(reason)),
                    };
                    self.outage.answered();
                    self.health.set_cause(None);
                    let crowd = sent.parts.iter().any(|part| part.answers.len() > 1);
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
                            return End::Lost(Error::disconnected(
                                "the server has become a replica and takes no writes",
                            ));
                        }
                    }
                }
                () = self.outbox.filled(), if room => if !flight.sent.is_empty() {
                    tokio::task::yield_now().await;
                },
            }
        }
    }

    /// What is to be sent next, as one pipeline: of what waits as much as a batch may hold, or else
    /// the next batch.
    fn gather(&mut self) -> Option<Vec<Batch>> {
        let (mut batches, mut bytes) = (Vec::new(), 0);
        while batches.len() < COMMANDS
            && bytes < BYTES
            && let Some(one) = self.waiting.pop_front()
        {
            if let Some(one) = one.wanted() {
                bytes += one.bytes();
                batches.push(one);
            }
        }
        while batches.is_empty() {
            batches.extend(self.outbox.take()?.wanted());
        }
        Some(batches)
    }

    /// Answers the requests of a pipeline, or puts them back where the server was not ready.
    fn hand_out(&mut self, sent: Sent) -> Health {
        let mut health = Health::Fine;
        let mut again = Vec::new();
        for Part { mut batch, answers } in sent.parts {
            for (place, answer) in answers.iter().enumerate() {
                let Value::ServerError(error) = answer else {
                    continue;
                };
                self.protocol_error |= error::is_protocol_error(error);
                let unknown = error.code() == "NOSCRIPT";
                if let Some(script) = batch.script(place).filter(|_| unknown) {
                    again.push(batch.take(place).with_text(script));
                } else if error::is_passing(error.code()) && !has_waited(&batch, place) {
                    health = health.max(match error::is_demoted(error) {
                        true => Health::Demoted,
                        false => Health::NotReady,
                    });
                    let mut one = batch.take(place);
                    one.give_up.get_or_insert(Instant::now() + PATIENCE);
                    again.push(one);
                }
            }
            batch.tell(answers);
            self.outbox.reuse(batch.buffers());
        }
        for one in again.into_iter().rev() {
            self.waiting.push_front(one);
        }
        health
    }
}

fn is_protocol_error(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(error) if error::is_protocol_error(error))
}

impl Drop for Task {
    /// The task ends before the last handle where its runtime does.
    fn drop(&mut self) {
        self.health.set(ConnectionState::Closed);
    }
}

/// Why a connection is lost, where the server owes an answer for too long if nothing is said.
fn lost(reason: Option<RedisError>) -> Error {
    match reason {
        Some(reason) => Error::disconnected("the connection has ended").with_source(reason),
        None => Error::disconnected("the server has not answered in time"),
    }
}

/// Whether a command may not be sent again because it has waited for as long as it may.
fn has_waited(batch: &Batch, place: usize) -> bool {
    let too_long = |give_up| give_up <= Instant::now();
    batch.retry(place) == Retry::Never && batch.give_up.is_some_and(too_long)
}

/// What the answers of a pipeline say about the server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    Fine,
    NotReady,
    Demoted,
}
