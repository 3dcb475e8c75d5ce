//! The network between the processes and the server. It delays bytes, holds them back, and loses
//! them with their connection.
//!
//! Each direction of a connection keeps its order, as TCP does. Everything else follows from the
//! seed.

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

use super::{Dial, ledger::ProcessId, server::ClientId};
use crate::{sync::lock, transport::redis::connection::ByteStream};

/// All connections, by their ids on the server.
#[derive(Debug, Default)]
pub(super) struct Network {
    connections: BTreeMap<ClientId, Connection>,
    /// The id of the connection that was made last.
    last_id: ClientId,
    /// The processes that are cut off.
    outages: BTreeMap<ProcessId, Outage>,
    /// The processes whose responses are slow.
    slow: BTreeMap<ProcessId, SlowLink>,
    /// The server refuses connections until this time.
    refuses_until: u64,
    now: u64,
    /// The server is stalled until this time.
    pub(super) stalled_until: u64,
}

/// A period in which a process is cut off. Its connections stay open.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outage {
    pub(super) until: u64,
    pub(super) to_server: bool,
    pub(super) to_worker: bool,
}

/// A period in which each connection of a process has a limited rate towards the process.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlowLink {
    pub(super) until: u64,
    pub(super) bytes_per_second: u64,
}

/// The number of bytes of a response that arrive together over a slow link.
const PIECE_BYTES: usize = 1 << 10;

/// The bytes that travel in one direction, in parts, each with its time of arrival in milliseconds.
type BytesInTransit = VecDeque<(u64, Vec<u8>)>;

#[derive(Debug)]
struct Connection {
    owner: ProcessId,
    /// The bytes that the process has written, and that `Network::send_written` has not sent yet.
    written: Vec<u8>,
    to_server: BytesInTransit,
    to_worker: BytesInTransit,
    /// The bytes that the process can read now.
    arrived: VecDeque<u8>,
    waker: Option<Waker>,
    /// Set once the process has closed the connection.
    closed: bool,
    /// Set once the connection was reset.
    broken: bool,
}

/// The process's end of a connection.
#[derive(Debug)]
struct SimulatedStream {
    network: Arc<Mutex<Network>>,
    id: ClientId,
}

/// The connector of a process.
pub(super) struct Dialer {
    pub(super) network: Arc<Mutex<Network>>,
    pub(super) owner: ProcessId,
    pub(super) upkeep: tokio::runtime::Handle,
}

impl Dial for Dialer {
    fn dial(&self) -> BoxFuture<'_, io::Result<Box<dyn ByteStream>>> {
        let mut network = lock(&self.network);
        let cut_off = network.outages.contains_key(&self.owner);
        let made = match network.refuses_until > network.now {
            true => Some(Err(io::ErrorKind::ConnectionRefused.into())),
            false if cut_off => None,
            false => {
                let id = network.connect(self.owner);
                let network = self.network.clone();
                Some(Ok(
                    Box::new(SimulatedStream { network, id }) as Box<dyn ByteStream>
                ))
            }
        };
        Box::pin(async {
            match made {
                Some(made) => made,
                // The attempt gets no response, so the caller's timeout ends it.
                None => std::future::pending().await,
            }
        })
    }

    fn upkeep_runtime(&self) -> tokio::runtime::Handle {
        self.upkeep.clone()
    }
}

impl Network {
    fn connect(&mut self, owner: ProcessId) -> ClientId {
        self.last_id += 1;
        let connection = Connection {
            owner,
            written: Vec::new(),
            to_server: VecDeque::new(),
            to_worker: VecDeque::new(),
            arrived: VecDeque::new(),
            waker: None,
            closed: false,
            broken: false,
        };
        self.connections.insert(self.last_id, connection);
        self.last_id
    }

    /// Refuses new connections until this time.
    pub(super) fn refuse_until(&mut self, until: u64) {
        self.refuses_until = until;
    }

    /// Sends the bytes that processes have written.
    pub(super) fn send_written(&mut self, now: u64, rng: &mut Rng) {
        for connection in self.connections.values_mut() {
            if !connection.written.is_empty() {
                let mut bytes = std::mem::take(&mut connection.written);
                // Some bytes are sent in two parts, so that a reset can cut a pipeline anywhere.
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

    /// Takes the bytes that have reached the server.
    pub(super) fn take_arrivals(&mut self, now: u64) -> Vec<(ClientId, Vec<u8>)> {
        self.now = now;
        self.outages.retain(|_, outage| outage.until > now);
        if self.stalled_until > now {
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
            while let Some(bytes) = take_arrived(&mut connection.to_server, now) {
                arrivals.push((*id, bytes));
            }
        }
        arrivals
    }

    /// Sends a response.
    pub(super) fn respond(&mut self, client: ClientId, bytes: Vec<u8>, now: u64, rng: &mut Rng) {
        let Some(connection) = self.connections.get_mut(&client) else {
            return;
        };
        let slow = self.slow.get(&connection.owner);
        match slow.filter(|slow| slow.until > now) {
            None => send(&mut connection.to_worker, bytes, now, rng),
            Some(slow) => send_in_pieces(&mut connection.to_worker, &bytes, now, slow, rng),
        }
    }

    /// Limits the rate of responses to a process.
    pub(super) fn set_slow(&mut self, worker: ProcessId, slow: SlowLink) {
        self.slow.insert(worker, slow);
    }

    /// Delivers the bytes that have reached the processes.
    pub(super) fn deliver(&mut self, now: u64) {
        for connection in self.connections.values_mut() {
            if self
                .outages
                .get(&connection.owner)
                .is_some_and(|outage| outage.to_worker)
            {
                continue;
            }
            while let Some(bytes) = take_arrived(&mut connection.to_worker, now) {
                connection.arrived.extend(bytes);
                connection.wake();
            }
        }
    }

    /// Returns the time of the next arrival.
    pub(super) fn next_arrival(&self, now: u64) -> Option<u64> {
        let first = |queue: &BytesInTransit| queue.front().map(|(at, _)| *at);
        let next = (self.connections.values())
            .flat_map(|connection| [first(&connection.to_server), first(&connection.to_worker)]);
        // Bytes that an outage holds back may have a time of arrival in the past.
        next.flatten().filter(|at| *at > now).min()
    }

    pub(super) fn owner(&self, client: ClientId) -> Option<ProcessId> {
        self.connections
            .get(&client)
            .map(|connection| connection.owner)
    }

    /// Cuts a process off.
    pub(super) fn cut_off(&mut self, worker: ProcessId, outage: Outage) {
        self.outages.insert(worker, outage);
    }

    /// Returns the open connections of a process, or of all processes.
    pub(super) fn connections_of(&self, worker: Option<ProcessId>) -> Vec<ClientId> {
        let of = |connection: &Connection| {
            !connection.broken && worker.is_none_or(|owner| owner == connection.owner)
        };
        let found = self
            .connections
            .iter()
            .filter(|(_, connection)| of(connection));
        found.map(|(id, _)| *id).collect()
    }

    /// Resets a connection. A part of the bytes on the way to the server still arrives.
    pub(super) fn reset(&mut self, client: ClientId, now: u64, rng: &mut Rng) {
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

    /// Loses all connections, with all bytes on the way.
    pub(super) fn lose_all(&mut self) {
        for connection in self.connections.values_mut() {
            connection.broken = true;
            connection.written.clear();
            connection.to_server.clear();
            connection.to_worker.clear();
            connection.wake();
        }
    }

    /// Removes the closed connections, and returns them. Keeps the connections of `unnoticed`
    /// processes: their machines were lost, and the server does not notice that.
    pub(super) fn remove_closed(&mut self, unnoticed: &BTreeSet<ProcessId>) -> BTreeSet<ClientId> {
        let is_gone = |connection: &Connection| {
            (connection.closed || connection.broken)
                && connection.to_server.is_empty()
                && connection.written.is_empty()
                && !unnoticed.contains(&connection.owner)
        };
        let gone: BTreeSet<_> = self
            .connections
            .iter()
            .filter(|(_, connection)| is_gone(connection))
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

/// Takes the next bytes that have arrived.
fn take_arrived(queue: &mut BytesInTransit, now: u64) -> Option<Vec<u8>> {
    let (at, _) = queue.front()?;
    (*at <= now)
        .then(|| queue.pop_front())?
        .map(|(_, bytes)| bytes)
}

/// Appends bytes, which arrive a few milliseconds later, and sometimes much later.
fn send(queue: &mut BytesInTransit, bytes: Vec<u8>, now: u64, rng: &mut Rng) {
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

/// Appends bytes in pieces that arrive one after the other at the link's rate.
fn send_in_pieces(
    queue: &mut BytesInTransit,
    bytes: &[u8],
    now: u64,
    slow: &SlowLink,
    rng: &mut Rng,
) {
    for piece in bytes.chunks(PIECE_BYTES) {
        let before = queue.back().map_or(0, |(at, _)| *at);
        let time = piece.len() as u64 * 1000 / slow.bytes_per_second;
        send(queue, piece.to_vec(), now.max(before) + time, rng);
    }
}

impl AsyncRead for SimulatedStream {
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

impl AsyncWrite for SimulatedStream {
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

impl Drop for SimulatedStream {
    fn drop(&mut self) {
        if let Some(connection) = lock(&self.network).connections.get_mut(&self.id) {
            connection.closed = true;
            // Written bytes stay even if the process is killed: its operating system sends them.
            connection.waker = None;
        }
    }
}
