//! The network between the workers and the server: bytes travel for a while, stand still, or are
//! lost together with their connection.
//!
//! Both directions of a connection keep their order, as TCP does. Everything else is the seed's.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use fastrand::Rng;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Dial, book::WorkerId, server::Client};
use crate::{sync::lock, transport::redis::connection::Stream};

/// The connections, by the ids that the server knows them by.
#[derive(Debug, Default)]
pub(super) struct Network {
    connections: BTreeMap<Client, Connection>,
    last: Client,
    /// Until when nothing comes through, for whom, and whether new connections are refused then.
    outages: BTreeMap<WorkerId, Outage>,
    /// The workers whose answers come slowly.
    slow: BTreeMap<WorkerId, SlowLink>,
    /// Until when there is no server that takes connections.
    refuses: u64,
    now: u64,
    /// Until when the server does nothing.
    pub(super) stalled: u64,
}

/// A worker that is cut off, though its connections stay open.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outage {
    pub(super) until: u64,
    pub(super) to_server: bool,
    pub(super) to_worker: bool,
}

/// A worker that few bytes reach in a time, on each of its connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlowLink {
    pub(super) until: u64,
    pub(super) bytes_per_second: u64,
}

/// How many bytes of an answer arrive together over a slow pipeline.
const PIECE: usize = 1 << 10;

/// What travels in one direction, and when it arrives.
type Queue = VecDeque<(u64, Vec<u8>)>;

#[derive(Debug)]
struct Connection {
    owner: WorkerId,
    /// What the worker has written since the last step.
    written: Vec<u8>,
    to_server: Queue,
    to_worker: Queue,
    arrived: VecDeque<u8>,
    waker: Option<Waker>,
    /// The worker has closed it.
    left: bool,
    /// It is reset.
    broken: bool,
}

/// The worker's end of a connection.
#[derive(Debug)]
struct Wire {
    network: Arc<Mutex<Network>>,
    id: Client,
}

/// How a worker connects.
pub(super) struct Dialer {
    pub(super) network: Arc<Mutex<Network>>,
    pub(super) owner: WorkerId,
    pub(super) upkeep: tokio::runtime::Handle,
}

impl Dial for Dialer {
    fn dial(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        let mut network = lock(&self.network);
        let cut_off = network.outages.contains_key(&self.owner);
        let made = match network.refuses > network.now {
            true => Some(Err(io::ErrorKind::ConnectionRefused.into())),
            false if cut_off => None,
            false => {
                let id = network.connect(self.owner);
                let network = self.network.clone();
                Some(Ok(Box::new(Wire { network, id }) as Box<dyn Stream>))
            }
        };
        Box::pin(async {
            match made {
                Some(made) => made,
                // Nobody answers; whoever tries gives up after a while.
                None => std::future::pending().await,
            }
        })
    }

    fn upkeep_runtime(&self) -> tokio::runtime::Handle {
        self.upkeep.clone()
    }
}

impl Network {
    fn connect(&mut self, owner: WorkerId) -> Client {
        self.last += 1;
        let connection = Connection {
            owner,
            written: Vec::new(),
            to_server: VecDeque::new(),
            to_worker: VecDeque::new(),
            arrived: VecDeque::new(),
            waker: None,
            left: false,
            broken: false,
        };
        self.connections.insert(self.last, connection);
        self.last
    }

    /// There is no server until then.
    pub(super) fn refuse_until(&mut self, until: u64) {
        self.refuses = until;
    }

    /// Puts what was written on its way.
    pub(super) fn collect(&mut self, now: u64, rng: &mut Rng) {
        for connection in self.connections.values_mut() {
            if !connection.written.is_empty() {
                let mut bytes = std::mem::take(&mut connection.written);
                // Sometimes in two parts, so that a pipeline can be lost from anywhere on.
                let cut = if rng.u8(..4) == 0 {
                    rng.usize(..bytes.len())
                } else {
                    0
                };
                let rest = bytes.split_off(cut);
                send(&mut connection.to_server, bytes, now, rng);
                send(&mut connection.to_server, rest, now, rng);
            }
        }
    }

    /// What has reached the server by now.
    pub(super) fn arrivals(&mut self, now: u64) -> Vec<(Client, Vec<u8>)> {
        self.now = now;
        self.outages.retain(|_, outage| outage.until > now);
        if self.stalled > now {
            return Vec::new();
        }
        let mut arrivals = Vec::new();
        for (id, connection) in &mut self.connections {
            if self
                .outages
                .get(&connection.owner)
                .is_some_and(|outage| outage.to_server)
            {
                continue;
            }
            while let Some(bytes) = arrived(&mut connection.to_server, now) {
                arrivals.push((*id, bytes));
            }
        }
        arrivals
    }

    /// Puts an answer on its way.
    pub(super) fn answer(&mut self, client: Client, bytes: Vec<u8>, now: u64, rng: &mut Rng) {
        let Some(connection) = self.connections.get_mut(&client) else {
            return;
        };
        let slow = self.slow.get(&connection.owner);
        match slow.filter(|slow| slow.until > now) {
            None => send(&mut connection.to_worker, bytes, now, rng),
            Some(slow) => send_in_pieces(&mut connection.to_worker, &bytes, now, slow, rng),
        }
    }

    /// Few bytes reach a worker in a time, for a while.
    pub(super) fn slow_down(&mut self, worker: WorkerId, slow: SlowLink) {
        self.slow.insert(worker, slow);
    }

    /// Hands the workers what has reached them by now.
    pub(super) fn deliver(&mut self, now: u64) {
        for connection in self.connections.values_mut() {
            if self
                .outages
                .get(&connection.owner)
                .is_some_and(|outage| outage.to_worker)
            {
                continue;
            }
            while let Some(bytes) = arrived(&mut connection.to_worker, now) {
                connection.arrived.extend(bytes);
                connection.wake();
            }
        }
    }

    /// When the next bytes reach somebody.
    pub(super) fn next(&self, now: u64) -> Option<u64> {
        let first = |queue: &Queue| queue.front().map(|(at, _)| *at);
        let next = (self.connections.values())
            .flat_map(|connection| [first(&connection.to_server), first(&connection.to_worker)]);
        // What is held up is no reason to hurry.
        next.flatten().filter(|at| *at > now).min()
    }

    pub(super) fn owner(&self, client: Client) -> Option<WorkerId> {
        self.connections
            .get(&client)
            .map(|connection| connection.owner)
    }

    /// A worker is cut off for a while.
    pub(super) fn hold(&mut self, worker: WorkerId, outage: Outage) {
        self.outages.insert(worker, outage);
    }

    /// The connections of a worker, or of all.
    pub(super) fn of(&self, worker: Option<WorkerId>) -> Vec<Client> {
        let of = |connection: &Connection| {
            !connection.broken && worker.is_none_or(|owner| owner == connection.owner)
        };
        let found = self
            .connections
            .iter()
            .filter(|(_, connection)| of(connection));
        found.map(|(id, _)| *id).collect()
    }

    /// Resets a connection. Of what is on its way to the server some may still arrive.
    pub(super) fn reset(&mut self, client: Client, now: u64, rng: &mut Rng) {
        if let Some(connection) = self.connections.get_mut(&client) {
            connection.broken = true;
            let kept = rng.usize(..=connection.to_server.len());
            connection.to_server.truncate(kept);
            connection
                .to_server
                .iter_mut()
                .for_each(|(at, _)| *at = (*at).min(now));
            connection.to_worker.clear();
            connection.wake();
        }
    }

    /// Removes the connections that are no more, and returns them: the server has noticed. It does
    /// not notice that a machine is gone.
    pub(super) fn sweep(&mut self, unnoticed: &BTreeSet<WorkerId>) -> BTreeSet<Client> {
        let gone = |connection: &Connection| {
            (connection.left || connection.broken)
                && connection.to_server.is_empty()
                && connection.written.is_empty()
                && !unnoticed.contains(&connection.owner)
        };
        let gone: BTreeSet<_> = self
            .connections
            .iter()
            .filter(|(_, connection)| gone(connection))
            .map(|(id, _)| *id)
            .collect();
        self.connections.retain(|id, _| !gone.contains(id));
        gone
    }
}

impl Connection {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The next that has arrived by now.
fn arrived(queue: &mut Queue, now: u64) -> Option<Vec<u8>> {
    let (at, _) = queue.front()?;
    (*at <= now)
        .then(|| queue.pop_front())?
        .map(|(_, bytes)| bytes)
}

/// Behind what is on its way, a few milliseconds later, and now and then a lot later.
fn send(queue: &mut Queue, bytes: Vec<u8>, now: u64, rng: &mut Rng) {
    if bytes.is_empty() {
        return;
    }
    let travel = match rng.u8(..64) {
        0 => rng.u64(20..300),
        1..8 => rng.u64(5..40),
        _ => rng.u64(1..4),
    };
    let before = queue.back().map_or(0, |(at, _)| *at);
    queue.push_back(((now + travel).max(before), bytes));
}

/// Each piece takes its time behind the one before. What is sent while the link is slow stays slow.
fn send_in_pieces(queue: &mut Queue, bytes: &[u8], now: u64, slow: &SlowLink, rng: &mut Rng) {
    for piece in bytes.chunks(PIECE) {
        let before = queue.back().map_or(0, |(at, _)| *at);
        let time = piece.len() as u64 * 1000 / slow.bytes_per_second;
        send(queue, piece.to_vec(), now.max(before) + time, rng);
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut network = lock(&self.network);
        let connection = network
            .connections
            .get_mut(&self.id)
            .filter(|connection| !connection.broken);
        let Some(connection) = connection else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        if connection.arrived.is_empty() {
            connection.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = connection.arrived.len().min(buffer.remaining());
        let bytes: Vec<_> = connection.arrived.drain(..count).collect();
        buffer.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut network = lock(&self.network);
        match network.connections.get_mut(&self.id) {
            Some(connection) if !connection.broken => {
                connection.written.extend_from_slice(bytes);
                Poll::Ready(Ok(bytes.len()))
            }
            _ => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(connection) = lock(&self.network).connections.get_mut(&self.id) {
            connection.left = true;
            // What a process has written before it died is sent by its system.
            connection.waker = None;
        }
    }
}
