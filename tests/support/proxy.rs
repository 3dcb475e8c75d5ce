//! A TCP proxy that disturbs a network: it limits the bandwidth, goes silent without closing
//! connections, leads new connections to another server, cuts off some of its clients, or changes
//! bytes.
//!
//! ```ignore
//! let proxy = Proxy::start(server.port()).await;
//! Redis::connect(&proxy.url()).await;
//! proxy.limit_bandwidth(Some(10_000_000));       // bytes per second, in each direction
//! proxy.silence(Direction::ToClient);            // no bytes pass, no connection is closed
//! proxy.heal();
//! proxy.lead_to(other.port());                   // open connections stay at their server
//! proxy.cut_off(Ipv4Addr::new(127, 0, 0, 2));    // closes connections from there, now and later
//! proxy.replace("BLOCK", "block");               // in all bytes to the server
//! ```

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// The size of the socket buffers, in bytes. It is small, so that the sender notices the limit
/// after a few hundred kilobytes. It is not smaller than two loopback segments of 64 KiB: below
/// that, TCP stalls until its timers fire.
const SOCKET_BUFFER: u32 = 128 << 10;
/// The maximum number of bytes that are forwarded at once.
const CHUNK: usize = 16 << 10;
/// The delay that the sender may still make up for. Timers fire up to a millisecond late, and later
/// on a loaded machine; without this time the bandwidth would be lower than the limit.
const CATCH_UP: Duration = Duration::from_millis(50);

/// A direction through the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    ToServer,
    ToClient,
}

/// A running proxy. Dropping it closes its connections.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    server: Arc<AtomicU16>,
    replaced: Arc<Replaced>,
    silent: watch::Sender<Option<Direction>>,
    cut_off: watch::Sender<Option<Ipv4Addr>>,
    to_server: Arc<Bandwidth>,
    to_client: Arc<Bandwidth>,
    running: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy in front of the server on this port.
    pub(crate) async fn start(server: u16) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0), server).await
    }

    /// Like [`start`](Self::start), at this address; 0 is any free port.
    pub(crate) async fn start_at(address: (Ipv4Addr, u16), server: u16) -> Self {
        let listener = socket().expect("a socket");
        listener.bind(address.into()).expect("a free port");
        let listener = listener.listen(1024).expect("the listener is bound");
        let port = listener.local_addr().expect("the listener is bound").port();
        let (silent, seen) = watch::channel(None);
        let (cut_off, cut) = watch::channel(None);
        let (to_server, to_client) = <(Arc<Bandwidth>, Arc<Bandwidth>)>::default();
        let limits = (to_server.clone(), to_client.clone());
        let server = Arc::new(AtomicU16::new(server));
        let replaced = Arc::<Replaced>::default();
        let (target, change) = (server.clone(), replaced.clone());
        let running = tokio::spawn(async move {
            // The tasks of the connections end with the proxy.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, from)) = listener.accept().await {
                let (seen, limits, change) = (seen.clone(), limits.clone(), change.clone());
                let server = target.load(Ordering::SeqCst);
                let mut cut = cut.clone();
                connections.spawn(async move {
                    let is_cut = |cut: &Option<Ipv4Addr>| cut.map(IpAddr::V4) == Some(from.ip());
                    tokio::select! {
                        biased;
                        _ = cut.wait_for(is_cut) => {}
                        // Errors are ignored: a connection that was reset has ended.
                        _ = connect(client, server, seen, limits, change) => {}
                    }
                });
            }
        });
        Self {
            port,
            server,
            replaced,
            silent,
            cut_off,
            to_server,
            to_client,
            running,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The URL of the server through the proxy.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Leads new connections to the server on this port. Open connections stay at their server, as
    /// behind a load balancer or after a change in DNS.
    pub(crate) fn lead_to(&self, server: u16) {
        self.server.store(server, Ordering::SeqCst);
    }

    /// Replaces a text in all further bytes to the server. The text must arrive in one piece, as a
    /// small command does.
    pub(crate) fn replace(&self, from: &str, to: &str) {
        let both = (from.as_bytes().to_vec(), to.as_bytes().to_vec());
        *self.replaced.both() = Some(both);
    }

    /// Limits the bytes per second in each direction, over all connections together; `None` removes
    /// the limit.
    pub(crate) fn limit_bandwidth(&self, bytes_per_second: Option<u32>) {
        self.to_server.set(bytes_per_second);
        self.to_client.set(bytes_per_second);
    }

    /// Stops all bytes in this direction.
    pub(crate) fn silence(&self, direction: Direction) {
        self.silent.send_replace(Some(direction));
    }

    /// Closes the connections that come from this address, and each new one at once.
    pub(crate) fn cut_off(&self, from: Ipv4Addr) {
        self.cut_off.send_replace(Some(from));
    }

    /// Lets new connections work. Silent connections stay silent, as behind a router that has lost
    /// its state.
    pub(crate) fn heal(&self) {
        self.silent.send_replace(None);
        self.cut_off.send_replace(None);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// A text and its replacement.
#[derive(Debug, Default)]
struct Replaced(Mutex<Option<(Vec<u8>, Vec<u8>)>>);

impl Replaced {
    fn both(&self) -> std::sync::MutexGuard<'_, Option<(Vec<u8>, Vec<u8>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These bytes after the replacement; `None` if they do not contain the text.
    fn apply(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let both = self.both();
        let (from, to) = both.as_ref()?;
        let mut changed = Vec::new();
        let mut rest = bytes;
        while let Some(at) = rest.windows(from.len()).position(|part| part == from) {
            changed.extend_from_slice(&rest[..at]);
            changed.extend_from_slice(to);
            rest = &rest[at + from.len()..];
        }
        (rest.len() < bytes.len()).then(|| [&changed[..], rest].concat())
    }
}

/// A token bucket for one direction of all connections.
#[derive(Debug, Default)]
struct Bandwidth(Mutex<Tokens>);

#[derive(Debug, Default)]
struct Tokens {
    bytes_per_second: Option<u32>,
    /// The time at which all earlier bytes have passed at this bandwidth.
    free_at: Option<Instant>,
}

impl Bandwidth {
    fn set(&self, bytes_per_second: Option<u32>) {
        *self.tokens() = Tokens {
            bytes_per_second,
            free_at: None,
        };
    }

    /// Waits until these bytes may pass. Connections take turns in the order of their calls.
    async fn pass(&self, bytes: usize) {
        let free_at = {
            let mut tokens = self.tokens();
            let Some(bytes_per_second) = tokens.bytes_per_second else {
                return;
            };
            let now = Instant::now();
            let earliest = now.checked_sub(CATCH_UP).unwrap_or(now);
            let start = tokens.free_at.map_or(now, |free_at| free_at.max(earliest));
            let time = Duration::from_secs_f64(bytes as f64 / f64::from(bytes_per_second));
            *tokens.free_at.insert(start + time)
        };
        sleep_until(free_at).await;
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, Tokens> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn socket() -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    Ok(socket)
}

async fn connect(
    client: TcpStream,
    server: u16,
    silent: watch::Receiver<Option<Direction>>,
    (limit_to_server, limit_to_client): (Arc<Bandwidth>, Arc<Bandwidth>),
    replaced: Arc<Replaced>,
) -> io::Result<()> {
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, server));
    let server = socket()?.connect(server).await?;
    // A small command must not wait for the acknowledgement of the previous one.
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (there, back) = (Direction::ToServer, Direction::ToClient);
    tokio::try_join!(
        pass(
            from_client,
            to_server,
            there,
            silent.clone(),
            &limit_to_server,
            Some(&replaced)
        ),
        pass(from_server, to_client, back, silent, &limit_to_client, None),
    )?;
    Ok(())
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    direction: Direction,
    mut silent: watch::Receiver<Option<Direction>>,
    limit: &Bandwidth,
    replaced: Option<&Replaced>,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        tokio::select! {
            biased;
            () = async { drop(silent.wait_for(|silent| *silent == Some(direction)).await) } => break,
            read = from.read(&mut buffer) => match read? {
                0 => return to.shutdown().await,
                read => {
                    limit.pass(read).await;
                    let changed = replaced.and_then(|it| it.apply(&buffer[..read]));
                    let passed = changed.as_deref().unwrap_or(&buffer[..read]);
                    to.write_all(passed).await?;
                }
            }
        }
    }
    // Discards further input, so that the side that still sends does not notice the closed one.
    while from.read(&mut buffer).await? > 0 {}
    std::future::pending().await
}
