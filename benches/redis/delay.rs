//! A slow network: a proxy that delays every byte by half of the round trip in each direction.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    process::Stdio,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// The argument that makes a process a proxy. The server's port follows, and then the round trip in
/// microseconds.
pub(crate) const PROXY_ARG: &str = "--proxy";

/// The timer slack of Linux: a sleeping thread wakes late by this time.
const SLACK: Duration = Duration::from_micros(55);

/// A proxy in front of a server. It is a separate process, so that its CPU time counts for neither
/// side. Dropping this value kills the process.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    _process: Child,
}

impl Proxy {
    /// Starts a proxy in front of the server on this port.
    pub(crate) async fn start(server_port: u16, round_trip_us: usize) -> Self {
        let program = std::env::current_exe().expect("the bench's own program");
        let mut process = Command::new(program)
            .args([
                PROXY_ARG,
                &server_port.to_string(),
                &round_trip_us.to_string(),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the bench runs itself");
        let mut written = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        let line = written.next_line().await.expect("the proxy writes");
        let port = line.and_then(|line| line.parse().ok());
        Self {
            port: port.expect("the proxy's port"),
            _process: process,
        }
    }
}

/// Runs this process as a proxy until the standard input ends. The proxy uses threads, since
/// tokio's timers have a resolution of a millisecond.
pub(crate) fn run(server_port: u16, round_trip: Duration) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = listener.local_addr().expect("the listener is bound").port();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server =
                TcpStream::connect((Ipv4Addr::LOCALHOST, server_port)).expect("the server");
            forward(&client, &server, round_trip / 2);
            forward(&server, &client, round_trip / 2);
        }
    });
    println!("{port}");
    let _ = std::io::stdin().read(&mut [0]);
}

/// Forwards the bytes of one direction of a connection, each piece when its delay is over.
fn forward(from: &TcpStream, to: &TcpStream, delay: Duration) {
    to.set_nodelay(true).expect("a TCP socket");
    let clone = |stream: &TcpStream| stream.try_clone().expect("a file descriptor");
    let (mut from, mut to) = (clone(from), clone(to));
    let (sender, pieces) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            let piece = buffer[..read].to_vec();
            if sender.send((Instant::now() + delay, piece)).is_err() {
                break;
            }
        }
    });
    thread::spawn(move || {
        for (due, piece) in pieces {
            let left = due.saturating_duration_since(Instant::now());
            thread::sleep(left.saturating_sub(SLACK));
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
