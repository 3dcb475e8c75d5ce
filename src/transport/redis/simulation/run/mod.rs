//! One run: the clock, the processes, the network and the server, and the order in which they run.
//! Everything follows from a seed.

mod faults;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use fastrand::Rng;
use tokio::sync::watch;

use super::{
    ledger::{Ledger, ProcessId},
    locations::STREAMS,
    network::Network,
    node::Node,
    process::ProcessContext,
    rules::{JobEnd, Purpose},
    scenario::{Behavior, Fault, JobSpec, SENDERS, Scenario},
    server::{ClientId, Mutation, NODE_ENTRIES, Reply, Server, take_command},
};
use crate::sync::lock;

/// The server's clock at the start, in milliseconds since 1970.
const EPOCH: u64 = 1_700_000_000_000;
/// The longest step of the simulation's clock, in milliseconds.
const MAX_STEP: u64 = 50;
/// The time without faults, in milliseconds, after which unfinished jobs count as lost.
const FINISH_LIMIT: u64 = 400_000;
/// The time limit of a graceful shutdown, and the time after which the consumers of dead workers
/// must be deleted, in milliseconds.
const SHUTDOWN_LIMIT: u64 = 160_000;

/// The result of a run.
pub(super) struct Outcome {
    pub(super) violation: Option<String>,
    pub(super) trace: Vec<String>,
}

struct Simulation {
    scenario: Arc<Scenario>,
    rng: Rng,
    now: u64,
    /// The difference of the server's wall clock from the simulation's clock.
    clock_skew: i64,
    server: Server,
    /// Bytes that have arrived at the server: incomplete commands, and commands that wait for the
    /// end of a blocked read.
    buffers: BTreeMap<ClientId, Vec<u8>>,
    network: Arc<Mutex<Network>>,
    ledger: Arc<Mutex<Ledger>>,
    context: ProcessContext,
    senders: Vec<Node>,
    slots: Vec<WorkerSlot>,
    /// Dead processes whose machines are lost. The server keeps their connections.
    unnoticed: BTreeSet<ProcessId>,
    next_worker: ProcessId,
    /// Faults that wait for a command of their kind.
    armed: Vec<Fault>,
    /// Set while the replica lags.
    failover: Option<FailOver>,
    /// The command that the server runs first after a stall.
    held_command: Option<(ClientId, Vec<Vec<u8>>)>,
}

/// A failover to the replica, which receives no more writes.
struct FailOver {
    /// The replica is promoted after this number of further commands that may move a job.
    writes: u32,
    /// The time for which the promoted replica accepts no connections.
    time: u64,
    /// The difference of the replica's clock from the primary's.
    clock: i64,
}

/// A place for one worker. When a worker has ended, the next one starts in its slot.
struct WorkerSlot {
    group: usize,
    worker: ProcessId,
    node: Option<Node>,
    stop: watch::Sender<bool>,
    /// The next worker starts at this time.
    restart_at: u64,
}

/// Counts the command that has just run, if it may have moved a job.
fn count_write(failover: &mut Option<FailOver>, server: &Server) {
    if let Some(failover) = failover.as_mut().filter(|_| server.data.changed) {
        failover.writes = failover.writes.saturating_sub(1);
    }
}

/// Runs the simulation of a seed.
pub(super) fn run(seed: u64, mutation: Option<Mutation>, traced: bool) -> Outcome {
    // Seeds the jitter and the ids of the workers.
    fastrand::seed(seed);
    let mut simulation = Simulation::new(seed, mutation, traced);
    simulation.run_to_end();
    let ledger = simulation.ledger.clone();
    drop(simulation);
    let mut ledger = lock(&ledger);
    Outcome {
        violation: ledger.violation.take(),
        trace: ledger.trace.take().unwrap_or_default(),
    }
}

impl Simulation {
    fn new(seed: u64, mutation: Option<Mutation>, traced: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let scenario = Arc::new(Scenario::new(&mut rng));
        let ledger = Arc::new(Mutex::new(Ledger::new(scenario.clone(), traced)));
        let network = Arc::<Mutex<Network>>::default();
        let context = ProcessContext {
            id: 0,
            network: network.clone(),
            ledger: ledger.clone(),
            scenario: scenario.clone(),
            // Each worker gets a separate channel when it starts.
            stop: watch::channel(false).1,
        };
        lock(&ledger).note("simulation", format_args!("{scenario:?}"));
        let senders = (0..SENDERS).map(|id| {
            let sender = ProcessContext {
                id,
                ..context.clone()
            };
            Node::start(0, |upkeep| sender.send(upkeep))
        });
        let senders = senders.collect();
        let slots = (0..scenario.groups * scenario.workers_per_group).map(|slot| WorkerSlot {
            group: slot % scenario.groups,
            // No worker has started yet.
            worker: ProcessId::MAX,
            node: None,
            stop: watch::channel(false).0,
            restart_at: rng.u64(..2_000),
        });
        let slots = slots.collect();
        let mut server = Server::new(mutation, scenario.is_cluster);
        server.data.now = EPOCH;
        Self {
            scenario,
            rng,
            now: 0,
            clock_skew: 0,
            server,
            buffers: Default::default(),
            network,
            ledger,
            context,
            senders,
            slots,
            unnoticed: BTreeSet::new(),
            next_worker: SENDERS,
            armed: Vec::new(),
            failover: None,
            held_command: None,
        }
    }

    fn run_to_end(&mut self) {
        let faults_until = self.scenario.faults_until;
        let scenario = self.scenario.clone();
        let mut faults = scenario.faults.iter().peekable();
        while self.now < faults_until && self.has_no_violation() {
            while let Some((_, fault)) = faults.next_if(|(at, _)| *at <= self.now) {
                self.inject(*fault);
            }
            self.step();
        }
        // After the last fault, all jobs end.
        self.unnoticed.clear();
        self.armed.clear();
        self.failover = None;
        lock(&self.ledger).replica_caught_up();
        self.run_until("not finished", FINISH_LIMIT, |simulation| {
            simulation.senders.iter().all(Node::is_finished)
                && lock(&simulation.ledger).unfinished().is_empty()
        });
        if self.scenario.until_consumers_deleted {
            self.run_for(SHUTDOWN_LIMIT);
        }
        // Connected workers trim finished jobs once a second.
        let stalled = lock(&self.network).stalled_until.saturating_sub(self.now);
        self.run_for(stalled + 10_000);
        self.check_ends();
        // All workers shut down, and no worker starts again.
        for slot in &mut self.slots {
            slot.restart_at = u64::MAX;
            slot.shut_down(&self.ledger);
        }
        self.run_until("not stopped", SHUTDOWN_LIMIT, |simulation| {
            simulation.slots.iter().all(|slot| slot.node.is_none())
        });
        self.check_leftovers();
    }

    fn has_no_violation(&self) -> bool {
        lock(&self.ledger).violation.is_none()
    }

    fn run_for(&mut self, time: u64) {
        let until = self.now + time;
        while self.now < until && self.has_no_violation() {
            self.step();
        }
    }

    fn run_until(&mut self, failure: &str, limit: u64, done: impl Fn(&Self) -> bool) {
        let limit = self.now + limit;
        while self.has_no_violation() && !done(self) {
            if self.now >= limit {
                let mut ledger = lock(&self.ledger);
                let unfinished = ledger.unfinished();
                ledger.fail(format_args!("{failure}, {unfinished:?}"));
                return;
            }
            self.step();
        }
    }

    /// Advances the clock by one step. Runs the server, then the senders, then the workers in
    /// random order.
    fn step(&mut self) {
        // The clock advances to the next arrival or the next timeout of the server.
        let next = [
            lock(&self.network).next_arrival(self.now),
            self.server
                .next_timeout()
                .map(|at| at.saturating_sub(EPOCH.saturating_add_signed(self.clock_skew))),
        ];
        let next = next.into_iter().flatten().min().unwrap_or(u64::MAX);
        self.now = next.clamp(self.now + 1, self.now + MAX_STEP);
        if let Some(failover) = self.failover.take_if(|it| it.writes == 0) {
            self.fail_over(failover);
        }
        self.server.data.now = (EPOCH + self.now).saturating_add_signed(self.clock_skew);
        lock(&self.ledger).now = self.now;
        let now = self.now;
        let unreadable = &mut self.server.data.unreadable;
        unreadable.retain(|_, until| *until > now);

        self.run_server();
        self.send_notices();
        lock(&self.network).deliver(self.now);
        let mut order: Vec<_> = (0..self.slots.len()).collect();
        self.rng.shuffle(&mut order);
        for sender in &mut self.senders {
            sender.run(self.now);
        }
        for slot in order {
            self.run_slot(slot);
        }
        lock(&self.network).send_written(self.now, &mut self.rng);
        let closed = lock(&self.network).remove_closed(&self.unnoticed);
        self.server.forget(&closed);
        self.buffers.retain(|client, _| !closed.contains(client));
        let mut ledger = lock(&self.ledger);
        ledger.check_reported_losses();
        ledger.check_progress();
    }

    fn run_slot(&mut self, slot: usize) {
        let slot = &mut self.slots[slot];
        match &mut slot.node {
            Some(node) => {
                node.run(self.now);
                if node.is_finished() {
                    slot.node = None;
                    let mut ledger = lock(&self.ledger);
                    ledger.note(format_args!("w{}", slot.worker), "has ended");
                    ledger.process_ended(slot.worker);
                } else if lock(&self.ledger).killed_by_handlers.remove(&slot.worker) {
                    let restart_at = self.now + 500;
                    slot.crash(restart_at, &self.ledger);
                }
            }
            None if slot.restart_at <= self.now => {
                slot.worker = self.next_worker;
                self.next_worker += 1;
                let (stop, stopped) = watch::channel(false);
                slot.stop = stop;
                let context = ProcessContext {
                    id: slot.worker,
                    stop: stopped,
                    ..self.context.clone()
                };
                let mut ledger = lock(&self.ledger);
                ledger.process_started(slot.worker, slot.group);
                ledger.note(
                    format_args!("w{}", slot.worker),
                    format_args!("starts, for group {}", slot.group),
                );
                drop(ledger);
                slot.node = Some(Node::start(self.now, |upkeep| context.work(upkeep)));
            }
            None => {}
        }
    }

    /// Lets the server run the commands that have arrived.
    fn run_server(&mut self) {
        let arrivals = lock(&self.network).take_arrivals(self.now);
        for (client, bytes) in arrivals {
            self.buffers.entry(client).or_default().extend(bytes);
        }
        if lock(&self.network).stalled_until > self.now {
            return;
        }
        if let Some((client, args)) = self.held_command.take() {
            self.execute(client, &args);
        }
        self.answer_blocked_reads();
        let mut clients: Vec<_> = self.buffers.keys().copied().collect();
        self.rng.shuffle(&mut clients);
        for client in clients {
            while !self.server.is_blocked(client)
                && let Some(args) = self.buffers.get_mut(&client).and_then(take_command)
            {
                if self.stalls_before(&args) {
                    self.held_command = Some((client, args));
                    return;
                }
                self.execute(client, &args);
            }
        }
    }

    fn execute(&mut self, client: ClientId, args: &[Vec<u8>]) {
        let Some(owner) = lock(&self.network).owner(client) else {
            return;
        };
        let mut ledger = lock(&self.ledger);
        if ledger.trace.is_some() {
            let description = self.server.describe(args);
            ledger.note(format_args!("w{owner} →"), description);
        }
        // The arguments are `XREADGROUP GROUP group consumer …`.
        if args[0] == b"XREADGROUP" {
            ledger.set_consumer(owner, &args[3]);
        }
        let reply = self.server.execute(client, args);
        let purpose = self.server.purpose(args);
        count_write(&mut self.failover, &self.server);
        ledger.record_locations(&mut self.server.data, owner, purpose);
        let read = std::mem::take(&mut self.server.data.entries_read);
        if read > 0 {
            let room = self.server.room(args);
            ledger.record_read(&self.server.data, owner, read, room);
        }
        drop(ledger);
        if let Some(reply) = reply {
            let kind = self.server.kind(args).to_owned();
            self.respond(client, &kind, &reply);
        }
        self.send_notices();
        self.answer_blocked_reads();
    }

    /// Answers the blocked reads whose streams have an entry, or whose timeouts have passed.
    fn answer_blocked_reads(&mut self) {
        while let Some((client, reply)) = self.server.wake_one() {
            let read = std::mem::take(&mut self.server.data.entries_read);
            if let Some(owner) = lock(&self.network).owner(client) {
                let mut ledger = lock(&self.ledger);
                count_write(&mut self.failover, &self.server);
                ledger.record_locations(&mut self.server.data, owner, Purpose::Other);
                if read > 0 {
                    ledger.record_read(&self.server.data, owner, read, None);
                }
            }
            // A fault can lose only a response with entries.
            let kind = (reply != Reply::Nil).then_some("XREADGROUP");
            self.respond(client, kind.unwrap_or_default(), &reply);
        }
    }

    fn respond(&mut self, client: ClientId, kind: &str, reply: &Reply) {
        let owner = lock(&self.network).owner(client);
        if let Some(owner) = owner
            && self.loses_response(client, owner, kind)
        {
            return;
        }
        self.send(client, reply);
    }

    fn send(&mut self, client: ClientId, reply: &Reply) {
        let mut bytes = Vec::new();
        reply.encode(self.server.has_resp3(client), &mut bytes);
        lock(&self.network).respond(client, bytes, self.now, &mut self.rng);
    }

    /// Sends the notices of the streams that were written.
    fn send_notices(&mut self) {
        for (client, notice) in self.server.take_notices(self.now) {
            self.send(client, &notice);
        }
    }

    /// Checks that each job ended as its handler asked.
    fn check_ends(&mut self) {
        let mut ledger = lock(&self.ledger);
        ledger.check_follow_ups();
        let ends: Vec<_> = ledger.job_ends().collect();
        for (job, ended, used_up) in ends {
            let JobSpec {
                handler, request, ..
            } = &self.scenario.jobs[job as usize];
            if *request {
                // A request may end with an error reply, or may have expired.
                continue;
            }
            let expected = match handler.then {
                Behavior::DeadLetters => JobEnd::DeadLetter,
                Behavior::Discards => JobEnd::Discarded,
                Behavior::Succeeds => JobEnd::Done,
                _ => JobEnd::DeadLetter,
            };
            if ended != expected && !(ended == JobEnd::DeadLetter && used_up) {
                ledger.fail(format_args!(
                    "job {job} should be {expected:?} and is {ended:?}"
                ));
            }
        }
    }

    /// Checks that nothing is left on the server.
    fn check_leftovers(&mut self) {
        let mut ledger = lock(&self.ledger);
        if ledger.violation.is_some() {
            return;
        }
        let mut left = ledger.leftovers(&self.server.data, self.scenario.until_consumers_deleted);
        for name in &STREAMS[..self.scenario.streams] {
            let stream = self.server.data.stream(name);
            let entries = stream.map_or(0, |stream| stream.entries.len());
            // A trim leaves the whole node of the last delivered entry.
            if entries > NODE_ENTRIES + 1 {
                left.push(format!("{name} has {entries} entries"));
            }
        }
        if !left.is_empty() {
            ledger.fail(format_args!("left over: {left:?}"));
        }
    }
}
