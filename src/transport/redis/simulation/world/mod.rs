//! The world: its clock, its processes, its network and its server, and the order in which they get
//! their turns. All of it follows from a seed.

mod faults;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use fastrand::Rng;
use tokio::sync::watch;

use super::{
    book::{Book, WorkerId},
    host::Host,
    network::Network,
    places::STREAM,
    plan::{Fault, Order, Plan, SENDERS, Trouble},
    process::Surroundings,
    rules::Ended,
    server::{Change, Client, NODE, Reply, Server, command},
};
use crate::sync::lock;

/// The server's clock when the world begins.
const EPOCH: u64 = 1_700_000_000_000;
/// The longest step of the world's clock.
const STEP: u64 = 50;
/// How long the world goes on in peace, before what is not finished counts as lost.
const PATIENCE: u64 = 400_000;
/// How long a worker may take to end, and how long until those that are gone are forgotten.
const AFTERMATH: u64 = 160_000;

/// What has become of a world.
pub(super) struct Outcome {
    pub(super) violation: Option<String>,
    pub(super) trace: Vec<String>,
}

struct World {
    plan: Plan,
    rng: Rng,
    now: u64,
    /// How far the server's wall clock is ahead of the world's.
    skew: i64,
    server: Server,
    /// What has arrived at the server and is not a whole command, or waits for a blocked read.
    buffers: BTreeMap<Client, Vec<u8>>,
    network: Arc<Mutex<Network>>,
    book: Arc<Mutex<Book>>,
    surroundings: Surroundings,
    senders: Vec<Host>,
    slots: Vec<Slot>,
    /// Processes whose machines are gone, which the server does not know.
    unnoticed: BTreeSet<WorkerId>,
    next_worker: WorkerId,
    /// The faults that wait for a command of their kind.
    ambushes: Vec<Fault>,
    /// The command that the server was about to carry out when it stopped.
    held: Option<(Client, Vec<Vec<u8>>)>,
}

/// The place of a worker, which one after the other takes.
struct Slot {
    group: usize,
    worker: WorkerId,
    host: Option<Host>,
    stop: watch::Sender<bool>,
    /// When another starts.
    back: u64,
}

/// Lives through a seed's world.
pub(super) fn run(seed: u64, change: Option<Change>, traced: bool) -> Outcome {
    // The workers' own dice.
    fastrand::seed(seed);
    let mut world = World::new(seed, change, traced);
    world.live();
    let book = world.book.clone();
    drop(world);
    let mut book = lock(&book);
    Outcome {
        violation: book.violation.take(),
        trace: book.trace.take().unwrap_or_default(),
    }
}

impl World {
    fn new(seed: u64, change: Option<Change>, traced: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let plan = Plan::new(&mut rng);
        let book = Book::new(plan.groups, plan.lease, plan.most, traced);
        let book = Arc::new(Mutex::new(book));
        let network = Arc::<Mutex<Network>>::default();
        let surroundings = Surroundings {
            me: 0,
            network: network.clone(),
            book: book.clone(),
            orders: Arc::new(plan.jobs.clone()),
            max_in_flight: plan.max_in_flight,
            // Workers get their own.
            stop: watch::channel(false).1,
        };
        lock(&book).note("world", format_args!("{plan:?}"));
        let senders = (0..SENDERS).map(|me| {
            let sender = Surroundings {
                me,
                ..surroundings.clone()
            };
            Host::start(0, |upkeep| sender.send(upkeep))
        });
        let senders = senders.collect();
        let slots = (0..plan.groups * plan.workers_per_group).map(|slot| Slot {
            group: slot % plan.groups,
            // Nobody yet.
            worker: WorkerId::MAX,
            host: None,
            stop: watch::channel(false).0,
            back: rng.u64(..2_000),
        });
        let slots = slots.collect();
        let mut server = Server::new(change);
        server.data.now = EPOCH;
        Self {
            plan,
            rng,
            now: 0,
            skew: 0,
            server,
            buffers: Default::default(),
            network,
            book,
            surroundings,
            senders,
            slots,
            unnoticed: BTreeSet::new(),
            next_worker: SENDERS,
            ambushes: Vec::new(),
            held: None,
        }
    }

    fn live(&mut self) {
        let peace = self.plan.peace;
        let mut faults = std::mem::take(&mut self.plan.faults).into_iter().peekable();
        while self.now < peace && self.is_well() {
            while let Some((_, fault)) = faults.next_if(|(at, _)| *at <= self.now) {
                self.befall(fault);
            }
            self.step();
        }
        self.unnoticed.clear();
        self.ambushes.clear();
        self.until("not finished", PATIENCE, |world| {
            world.senders.iter().all(Host::is_finished) && lock(&world.book).unfinished().is_empty()
        });
        if self.plan.long {
            self.pause(AFTERMATH);
        }
        // What is finished is trimmed once a second, where workers are connected.
        let stalled = lock(&self.network).stalled.saturating_sub(self.now);
        self.pause(stalled + 10_000);
        self.check_ends();
        for slot in &mut self.slots {
            slot.back = u64::MAX;
            slot.stop.send_replace(true);
        }
        self.until("not stopped", AFTERMATH, |world| {
            world.slots.iter().all(|slot| slot.host.is_none())
        });
        self.check_left();
    }

    fn is_well(&self) -> bool {
        lock(&self.book).violation.is_none()
    }

    fn pause(&mut self, time: u64) {
        let until = self.now + time;
        while self.now < until && self.is_well() {
            self.step();
        }
    }

    fn until(&mut self, failure: &str, limit: u64, done: impl Fn(&Self) -> bool) {
        let limit = self.now + limit;
        while self.is_well() && !done(self) {
            if self.now >= limit {
                let mut book = lock(&self.book);
                let unfinished = book.unfinished();
                book.fail(format_args!("{failure}, {unfinished:?}"));
                return;
            }
            self.step();
        }
    }

    /// One step of the clock: the network, the server, then everybody in any order.
    fn step(&mut self) {
        let next = [
            lock(&self.network).next(self.now),
            self.server
                .next_timeout()
                .map(|at| at.saturating_sub(EPOCH.saturating_add_signed(self.skew))),
        ];
        let next = next.into_iter().flatten().min().unwrap_or(u64::MAX);
        self.now = next.clamp(self.now + 1, self.now + STEP);
        self.server.data.now = (EPOCH + self.now).saturating_add_signed(self.skew);
        lock(&self.book).now = self.now;

        self.serve();
        lock(&self.network).deliver(self.now);
        let mut order: Vec<_> = (0..self.slots.len()).collect();
        self.rng.shuffle(&mut order);
        for sender in &mut self.senders {
            sender.run(self.now);
        }
        for slot in order {
            self.take_turn(slot);
        }
        lock(&self.network).collect(self.now, &mut self.rng);
        let gone = lock(&self.network).sweep(&self.unnoticed);
        self.server.forget(&gone);
        self.buffers.retain(|client, _| !gone.contains(client));
        lock(&self.book).check_told();
    }

    fn take_turn(&mut self, slot: usize) {
        let slot = &mut self.slots[slot];
        match &mut slot.host {
            Some(host) => {
                host.run(self.now);
                if host.is_finished() {
                    slot.host = None;
                    let mut book = lock(&self.book);
                    book.note(format_args!("w{}", slot.worker), "has ended");
                    book.gone(slot.worker);
                } else if lock(&self.book).doomed.remove(&slot.worker) {
                    let back = self.now + 500;
                    slot.crash(back, &self.book);
                }
            }
            None if slot.back <= self.now => {
                slot.worker = self.next_worker;
                self.next_worker += 1;
                let (stop, stopped) = watch::channel(false);
                slot.stop = stop;
                let surroundings = Surroundings {
                    me: slot.worker,
                    stop: stopped,
                    ..self.surroundings.clone()
                };
                let mut book = lock(&self.book);
                book.joined(slot.worker, slot.group);
                book.note(
                    format_args!("w{}", slot.worker),
                    format_args!("starts, for group {}", slot.group),
                );
                drop(book);
                slot.host = Some(Host::start(self.now, |upkeep| surroundings.work(upkeep)));
            }
            None => {}
        }
    }

    /// Lets the server work off what has arrived.
    fn serve(&mut self) {
        let arrivals = lock(&self.network).arrivals(self.now);
        for (client, bytes) in arrivals {
            self.buffers.entry(client).or_default().extend(bytes);
        }
        if lock(&self.network).stalled > self.now {
            return;
        }
        if let Some((client, args)) = self.held.take() {
            self.execute(client, &args);
        }
        self.wake();
        let mut clients: Vec<_> = self.buffers.keys().copied().collect();
        self.rng.shuffle(&mut clients);
        for client in clients {
            while !self.server.is_blocked(client)
                && let Some(args) = self.buffers.get_mut(&client).and_then(command)
            {
                if self.stalls_before(&args) {
                    self.held = Some((client, args));
                    return;
                }
                self.execute(client, &args);
            }
        }
    }

    fn execute(&mut self, client: Client, args: &[Vec<u8>]) {
        let Some(owner) = lock(&self.network).owner(client) else {
            return;
        };
        let mut book = lock(&self.book);
        if book.trace.is_some() {
            let description = self.server.describe(args);
            book.note(format_args!("w{owner} →"), description);
        }
        if args[0] == b"XREADGROUP" {
            book.named(owner, &args[3]);
        }
        let reply = self.server.execute(client, args);
        let acknowledged = self.server.acknowledges(args);
        book.observe(&mut self.server.data, owner, acknowledged);
        drop(book);
        if let Some(reply) = reply {
            let kind = self.server.kind(args).to_owned();
            self.reply(client, &kind, &reply);
        }
        self.wake();
    }

    /// Ends the reads that wait no longer.
    fn wake(&mut self) {
        while let Some((client, reply)) = self.server.wake_one() {
            if let Some(owner) = lock(&self.network).owner(client) {
                lock(&self.book).observe(&mut self.server.data, owner, false);
            }
            // A read that has found nothing is no loss.
            let kind = (reply != Reply::Nil).then_some("XREADGROUP");
            self.reply(client, kind.unwrap_or_default(), &reply);
        }
    }

    fn reply(&mut self, client: Client, kind: &str, reply: &Reply) {
        let owner = lock(&self.network).owner(client);
        if let Some(owner) = owner
            && self.loses_answer(client, owner, kind)
        {
            return;
        }
        let mut bytes = Vec::new();
        reply.encode(&mut bytes);
        lock(&self.network).answer(client, bytes, self.now, &mut self.rng);
    }

    /// Whether each job came to the end that its handler wanted.
    fn check_ends(&mut self) {
        let mut book = lock(&self.book);
        let ends: Vec<_> = book.ends().collect();
        for (job, ended, used_up) in ends {
            let Order { work, request, .. } = &self.plan.jobs[job as usize];
            if *request {
                // It may have been too old, and then its failures are answered too.
                continue;
            }
            let expected = match work.then {
                Trouble::DeadLetter => Ended::Dead,
                Trouble::Discards => Ended::Discarded,
                Trouble::None => Ended::Done,
                _ => Ended::Dead,
            };
            if ended != expected && !(ended == Ended::Dead && used_up) {
                book.fail(format_args!(
                    "job {job} should be {expected:?} and is {ended:?}"
                ));
            }
        }
    }

    /// Whether nothing is left.
    fn check_left(&mut self) {
        let mut book = lock(&self.book);
        if book.violation.is_some() {
            return;
        }
        let mut left = book.left(&self.server.data, self.plan.long);
        // The last one that was delivered, and what is in a node with it.
        let entries = self
            .server
            .data
            .stream(STREAM)
            .map_or(0, |stream| stream.entries.len());
        if entries > NODE + 1 {
            left.push(format!("{STREAM} has {entries} entries"));
        }
        if !left.is_empty() {
            book.fail(format_args!("left over: {left:?}"));
        }
    }
}
