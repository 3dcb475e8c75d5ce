//! The task behind a [`Pipeline`](super::Pipeline): it connects, sends commands, and delivers
//! responses.

use std::{collections::VecDeque, future::Future, sync::Arc, time::Duration};

use redis::{RedisError, ServerError};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{
    MAX_DISCONNECTED_WAIT, Resend, Status,
    batch::{CommandBatch, MAX_BATCH_BYTES, MAX_BATCH_COMMANDS},
    in_flight::{InFlightBatch, InFlightPipeline, InFlightPipelines},
    nodes::Forwarding,
    queue::Receiver,
    redirection::Redirection,
    replicas,
    role_check::RoleCheck,
};
use crate::{
    error::Error,
    sync::next_turn,
    transport::{
        ConnectionState, Counters,
        redis::{
            connection::Connection,
            error,
            response::Value,
            server::{BACKOFF, Connector, Outage},
        },
    },
};

/// A large command fails if the server closes this many connections in a row while the command is
/// the oldest one without a response.
const MAX_CLOSED_CONNECTIONS: u32 = 3;
/// The pause before commands are sent again to a server that was not ready.
const NOT_READY_PAUSE: Duration = Duration::from_millis(100);

/// Owns one connection, and the commands that wait for it.
pub(super) struct PipelineTask {
    connector: Connector,
    counters: Arc<Counters>,
    /// If a response is due and the server sends nothing for this long, the connection counts as
    /// lost.
    max_silence: Duration,
    queue: Receiver,
    /// Set after the first connection, so that later ones count as reconnects.
    connected_before: bool,
    /// Set if the server has reported a protocol error on this connection.
    protocol_error: bool,
    status: watch::Sender<Status>,
    /// A copy of the value in `status`.
    down_since: Option<Instant>,
    outage: Outage,
    /// Commands that are sent before those in the queue: they waited for a connection, or must be
    /// sent again. Each is a batch of one command.
    waiting: VecDeque<CommandBatch>,
    /// Forwards commands to the other nodes of a cluster; `None` on a single server.
    forwarding: Option<Forwarding>,
    role_check: RoleCheck,
}

/// The reason why a connection is no longer used.
enum ConnectionEnd {
    /// The connection was lost, or its server was demoted.
    Lost(Error),
    /// All handles were dropped, and all commands have responses.
    Closed,
}

impl PipelineTask {
    pub(super) fn new(
        connector: Connector,
        counters: Arc<Counters>,
        max_silence: Duration,
        queue: Receiver,
        status: watch::Sender<Status>,
        forwarding: Option<Forwarding>,
    ) -> Self {
        let down_since = status.borrow().down_since;
        Self {
            connector,
            counters,
            max_silence,
            queue,
            connected_before: false,
            protocol_error: false,
            down_since,
            status,
            outage: Outage::default(),
            waiting: VecDeque::new(),
            forwarding,
            role_check: RoleCheck::since_now(),
        }
    }

    /// Uses one connection after another. Returns when all handles are dropped and all commands
    /// have responses, or when the node no longer serves a slot.
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
            self.outage.record_connection();
            let connected_at = Instant::now();
            self.set_state(ConnectionState::Connected, None);
            let end = self.serve(connection).await;
            self.set_state(
                ConnectionState::Reconnecting,
                self.down_since.or(Some(Instant::now())),
            );
            match end {
                ConnectionEnd::Closed => return,
                ConnectionEnd::Lost(reason) => {
                    // A connection that outlasts the longest back-off counts as working, even if no
                    // command was sent.
                    if connected_at.elapsed() > BACKOFF.max() {
                        self.outage.record_success();
                    }
                    let address = self.connector.address();
                    self.outage
                        .record_loss(&address, "a connection to Redis", &reason.chain());
                    self.set_cause(Some(reason));
                }
            }
        }
    }

    fn set_state(&mut self, state: ConnectionState, down_since: Option<Instant>) {
        self.down_since = down_since;
        self.status.send_modify(|status| {
            status.state = state;
            status.down_since = down_since;
        });
    }

    fn set_cause(&self, cause: Option<Error>) {
        self.status
            .send_modify(|status| status.cause = cause.map(Arc::new));
    }

    /// Returns the time at which a command fails if it is not sent before. `submitted` is the time
    /// of its submission.
    fn give_up_at(&self, submitted: Instant) -> Instant {
        self.down_since
            .map_or(submitted, |since| since.max(submitted))
            + MAX_DISCONNECTED_WAIT
    }

    /// Moves a command that the server has not run to a batch of one command, to send it again.
    fn postpone(&self, batch: &mut CommandBatch, index: usize) -> CommandBatch {
        let mut one = batch.take(index);
        let give_up_at = self.give_up_at(one.submitted(0));
        one.give_up_at.get_or_insert(give_up_at);
        one
    }

    /// Connects, and retries until it succeeds. `None` when the connection is no longer needed.
    async fn connect(&mut self) -> Option<Connection> {
        let connector = self.connector.clone();
        loop {
            // Even the first attempt follows a short random delay, so that the clients of a
            // restarted server do not all reconnect at the same moment.
            let wait = self.outage.delay();
            self.while_waiting(sleep(wait)).await?;
            self.forward_misplaced().await?;
            self.retire().await?;
            match self.while_waiting(connector.connection()).await? {
                Ok(connection) => return Some(connection),
                Err(error) => {
                    let address = connector.address();
                    self.outage
                        .record_failed_attempt(&address, "connect to Redis", &error);
                    self.set_cause(Some(error));
                }
            }
        }
    }

    /// On a cluster, refreshes the map of slots, and forwards waiting commands whose slots another
    /// node serves. `None` if all handles are dropped and no caller waits.
    async fn forward_misplaced(&mut self) -> Option<()> {
        if self.forwarding.is_none() {
            return Some(());
        }
        let connector = self.connector.clone();
        self.while_waiting(connector.refresh()).await?;
        let forwarding = self.forwarding.as_ref()?;
        let belongs_here = |one: &CommandBatch| one.is_asking || forwarding.owns(one.slot(0));
        let (here, elsewhere) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(belongs_here);
        self.waiting = here;
        let elsewhere: VecDeque<CommandBatch> = elsewhere;
        for one in elsewhere {
            forwarding.forward(one);
        }
        Some(())
    }

    /// If the node no longer serves any slot, forwards the queued commands until no caller can add
    /// more, and returns `None`.
    async fn retire(&mut self) -> Option<()> {
        let Some(forwarding) = &self.forwarding else {
            return Some(());
        };
        if !self.waiting.is_empty() || !forwarding.retire() {
            return Some(());
        }
        tracing::debug!(node = %forwarding.address, "the node serves no slot any more");
        // Callers that found this queue before the node was removed may still submit commands.
        while !self.queue.is_closed() {
            while let Some(mut batch) = self.queue.take() {
                (0..batch.len()).for_each(|index| forwarding.forward(batch.take(index)));
            }
            self.queue.filled().await;
        }
        None
    }

    /// Runs `work`. Meanwhile, takes commands from the queue, and fails those that have waited too
    /// long. `None` if all handles are dropped and no caller waits.
    async fn while_waiting<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut next_check = self.expire();
        tokio::pin!(work);
        loop {
            while let Some(mut batch) = self.queue.take() {
                for index in 0..batch.len() {
                    let mut one = batch.take(index);
                    one.give_up_at = Some(self.give_up_at(one.submitted(0)));
                    next_check = next_check.min(self.give_up_at(one.submitted(0)));
                    self.waiting.push_back(one);
                }
            }
            let closed = self.queue.is_closed();
            if closed {
                self.waiting.retain(|one| one.is_wanted(0));
                if self.waiting.is_empty() {
                    return None;
                }
            }
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = sleep_until(next_check) => next_check = self.expire(),
                () = self.queue.filled(), if !closed => {}
            }
        }
    }

    /// Fails commands that have waited too long. Returns the time of the next check.
    fn expire(&mut self) -> Instant {
        let now = Instant::now();
        let mut next_check = now + MAX_DISCONNECTED_WAIT;
        let mut kept = VecDeque::with_capacity(self.waiting.len());
        for mut one in std::mem::take(&mut self.waiting) {
            let give_up_at = self.give_up_at(one.submitted(0));
            let give_up_at = *one.give_up_at.get_or_insert(give_up_at);
            if one.resend(0) == Resend::Never {
                if give_up_at <= now {
                    let cause = self.status.borrow().cause.clone();
                    one.fail(|| error::disconnected(&self.connector.address(), cause.clone()));
                    continue;
                }
                next_check = next_check.min(give_up_at);
            }
            kept.push_back(one);
        }
        self.waiting = kept;
        next_check
    }

    /// Uses a connection until it ends. Commands without a response are then sent again or fail.
    async fn serve(&mut self, connection: Connection) -> ConnectionEnd {
        let mut in_flight = InFlightPipelines::new(connection, self.max_silence);
        self.protocol_error = false;
        self.role_check = RoleCheck::since_now();
        let end = self.exchange(&mut in_flight).await;
        // The oldest pipeline may have a protocol error among its responses, which were not
        // delivered yet.
        let oldest = in_flight.pipelines.front().into_iter();
        let responses = oldest
            .flat_map(|it| &it.batches)
            .flat_map(|it| &it.responses);
        self.protocol_error |= responses.into_iter().any(is_protocol_error);
        self.count_closed_connection(&mut in_flight, &end);
        // The newest command comes first, so that `push_front` keeps the order.
        for mut pipeline in in_flight.pipelines.into_iter().rev() {
            for InFlightBatch { batch, responses } in pipeline.batches.iter_mut().rev() {
                for index in (responses.len()..batch.len()).rev() {
                    let mut lost = batch.take(index);
                    match lost.resend(0) {
                        Resend::UntilAnswered
                            if lost.closed_connections >= MAX_CLOSED_CONNECTIONS =>
                        {
                            lost.fail(|| {
                                error::too_large(&self.connector.address(), MAX_CLOSED_CONNECTIONS)
                            });
                        }
                        Resend::UntilAnswered => self.waiting.push_front(lost),
                        // The server could not read an earlier command, so it has not run this one.
                        Resend::Never if self.protocol_error => self.waiting.push_front(lost),
                        Resend::Never => lost.fail(|| error::unanswered(&self.connector.address())),
                    }
                }
            }
            self.deliver(pipeline);
        }
        end
    }

    /// Counts a connection that the server has closed, if a large command was the oldest one
    /// without a response. After [`MAX_CLOSED_CONNECTIONS`] of these connections the command fails.
    /// Otherwise it would be sent for ever, and delay all other commands.
    ///
    /// The server closes the connection when it refuses a command for its size. If the command
    /// exceeds `client-query-buffer-limit`, the server sends no error. Any other error may not
    /// reach the client. So only the closed connection shows the refusal.
    fn count_closed_connection(&mut self, in_flight: &mut InFlightPipelines, end: &ConnectionEnd) {
        // The error has a source if the connection has failed, and none if the server was silent or
        // demoted.
        let has_failed = matches!(
            end,
            ConnectionEnd::Lost(reason) if std::error::Error::source(reason).is_some()
        );
        let is_closed = has_failed && !self.protocol_error;
        let oldest = in_flight.pipelines.front_mut().into_iter();
        let first =
            (oldest.flat_map(|it| &mut it.batches)).find(|it| it.responses.len() < it.batch.len());
        let Some(InFlightBatch { batch, .. }) = first.filter(|it| is_closed && it.batch.len() == 1)
        else {
            return;
        };
        if batch.bytes() >= error::LEAST_SIZE_LIMIT {
            batch.closed_connections += 1;
        }
    }

    /// Sends commands and delivers responses until the connection ends.
    async fn exchange(&mut self, in_flight: &mut InFlightPipelines) -> ConnectionEnd {
        loop {
            while in_flight.has_room() {
                let Some(batches) = self.gather() else {
                    break;
                };
                in_flight.send(batches);
            }
            let closed = self.queue.is_closed();
            if in_flight.pipelines.is_empty() && closed {
                return ConnectionEnd::Closed;
            }
            let may_send = in_flight.has_room() && !closed;
            tokio::select! {
                biased;
                answered = in_flight.next() => {
                    let answered = match answered {
                        Ok(answered) => answered,
                        Err(reason) => return ConnectionEnd::Lost(loss_error(reason)),
                    };
                    self.outage.record_success();
                    if self.status.borrow().cause.is_some() {
                        self.set_cause(None);
                    }
                    let has_several_responses =
                        answered.batches.iter().any(|it| it.responses.len() > 1);
                    let health = self.deliver(answered);
                    if health == ServerHealth::Fine && self.down_since.is_some() {
                        self.set_state(ConnectionState::Connected, None);
                    }
                    match health {
                        // Callers often send more commands after a response. This task lets them
                        // run first, so that their commands form one pipeline.
                        ServerHealth::Fine if has_several_responses => next_turn().await,
                        ServerHealth::Fine => {}
                        ServerHealth::NotReady => {
                            self.while_waiting(sleep(NOT_READY_PAUSE)).await;
                            self.forward_misplaced().await;
                        }
                        ServerHealth::Demoted => {
                            self.while_waiting(sleep(NOT_READY_PAUSE)).await;
                            return ConnectionEnd::Lost(Error::disconnected(error::DEMOTED));
                        }
                    }
                }
                // While responses are due, other tasks run first, and may add more commands.
                () = self.queue.filled(), if may_send => if !in_flight.pipelines.is_empty() {
                    next_turn().await;
                },
            }
        }
    }

    /// Takes the batches of the next pipeline: the waiting commands, up to the limits of a batch.
    /// Without waiting commands, takes the next batch of the queue. `None` if there is nothing to
    /// send.
    fn gather(&mut self) -> Option<Vec<CommandBatch>> {
        let (mut batches, mut bytes) = (Vec::new(), 0);
        while batches.len() < MAX_BATCH_COMMANDS
            && bytes < MAX_BATCH_BYTES
            && let Some(one) = self.waiting.pop_front()
        {
            if let Some(one) = one.into_wanted() {
                bytes += one.bytes();
                batches.push(one);
            }
        }
        while batches.is_empty() {
            batches.extend(self.queue.take()?.into_wanted());
        }
        batches.extend(self.role_check.due_check());
        Some(batches)
    }

    /// Delivers the responses of a pipeline. Commands that the server has not run are sent again,
    /// or forwarded to another node.
    fn deliver(&mut self, answered: InFlightPipeline) -> ServerHealth {
        let mut health = ServerHealth::Fine;
        let mut to_resend = Vec::new();
        let confirmation = answered.confirmation();
        for InFlightBatch {
            mut batch,
            mut responses,
        } in answered.batches
        {
            for (index, response) in responses.iter().enumerate() {
                if let Value::ServerError(error) = response {
                    let (unrun, observed) = self.handle_error(&mut batch, index, error);
                    to_resend.extend(unrun);
                    health = health.max(observed);
                }
            }
            // Commands that were not moved to another batch have their responses.
            if let Some(confirmation) = confirmation.as_ref().filter(|_| batch.replicas.is_some()) {
                replicas::attach(confirmation, &mut responses);
            }
            batch.complete(responses);
            self.queue.reuse(batch.into_buffers());
        }
        for one in to_resend.into_iter().rev() {
            self.waiting.push_front(one);
        }
        match self.role_check.is_demoted() {
            true => ServerHealth::Demoted,
            false => health,
        }
    }

    /// Handles an error of the server. If the server has not run the command, returns the command
    /// to send again, or forwards it to another node. Otherwise the error is the response.
    fn handle_error(
        &mut self,
        batch: &mut CommandBatch,
        index: usize,
        error: &ServerError,
    ) -> (Option<CommandBatch>, ServerHealth) {
        self.protocol_error |= error::is_protocol_error(error);
        if let Some(forwarding) = &self.forwarding
            && let Some(redirection) = Redirection::decode(error, &forwarding.address)
        {
            return self.redirect(forwarding, batch, index, redirection);
        }
        let is_unknown_script = error.code() == "NOSCRIPT";
        if let Some(script) = batch.script(index).filter(|_| is_unknown_script) {
            // The server does not know the hash of the script.
            let with_source = batch.take(index).with_script_source(script);
            return (Some(with_source), ServerHealth::Fine);
        }
        if !error::is_transient_code(error.code()) || has_waited_too_long(batch, index) {
            return (None, ServerHealth::Fine);
        }
        // The server is not ready: the command is sent again after a pause.
        if self.down_since.is_none() {
            self.set_state(ConnectionState::Connected, Some(Instant::now()));
        }
        let health = match error::is_demoted(error) {
            true => ServerHealth::Demoted,
            false => ServerHealth::NotReady,
        };
        (Some(self.postpone(batch, index)), health)
    }

    /// Forwards a command to the node that the server has named. Returns the command if it was
    /// redirected before: it is sent again after a pause.
    fn redirect(
        &self,
        forwarding: &Forwarding,
        batch: &mut CommandBatch,
        index: usize,
        redirection: Redirection,
    ) -> (Option<CommandBatch>, ServerHealth) {
        let fine = (None, ServerHealth::Fine);
        if let Redirection::Moved(slot, address) = &redirection {
            forwarding.learn(*slot, address);
        }
        // Two nodes may redirect to each other until they agree. A command that has waited too long
        // gets the error as its response.
        if batch.redirections > 0 && has_waited_too_long(batch, index) {
            return fine;
        }
        let mut one = self.postpone(batch, index);
        one.redirections += 1;
        one.is_asking = false;
        match redirection {
            Redirection::Ask(address) => forwarding.forward_to(&address, one.with_asking()),
            Redirection::Moved(_, address) if one.redirections == 1 => {
                forwarding.forward_to(&address, one);
            }
            Redirection::Moved(..) => {
                one.redirections = 0;
                return (Some(one), ServerHealth::NotReady);
            }
        }
        fine
    }
}

fn is_protocol_error(response: &Value) -> bool {
    matches!(response, Value::ServerError(error) if error::is_protocol_error(error))
}

impl Drop for PipelineTask {
    /// Reports that the connection is closed. The runtime may drop the task before the last handle
    /// is dropped.
    fn drop(&mut self) {
        self.set_state(ConnectionState::Closed, self.down_since);
    }
}

/// Makes the error of a lost connection. Without a reason, the server was silent for too long.
fn loss_error(reason: Option<RedisError>) -> Error {
    match reason {
        Some(reason) => Error::disconnected("the connection has ended").with_source(reason),
        None => Error::disconnected("the server has not answered in time"),
    }
}

/// Returns `true` if a command must not be sent again, since it has waited too long.
fn has_waited_too_long(batch: &CommandBatch, index: usize) -> bool {
    let too_long = |give_up_at| give_up_at <= Instant::now();
    batch.resend(index) == Resend::Never && batch.give_up_at.is_some_and(too_long)
}

/// The state of the server as shown by the responses of a pipeline.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ServerHealth {
    /// The server has run the commands.
    Fine,
    /// Commands have to be sent again after a pause.
    NotReady,
    /// The server has become a replica, so another connection is needed.
    Demoted,
}
