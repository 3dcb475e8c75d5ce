//! A network with a round trip: a proxy that holds every byte for half of it on each way.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// The timer slack of Linux, by which a thread that sleeps wakes late.
const SLACK: Duration = Duration::from_micros(55);

/// Starts a proxy in front of the server on this port, for as long as the process runs, and gives
/// its port. It has threads of its own: the timers of tokio are as coarse as a millisecond. Its CPU
/// time counts as that of the client.
pub(crate) fn start(server: u16, round_trip: Duration) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).expect("the server");
            one_way(&client, &server, round_trip / 2);
            one_way(&server, &client, round_trip / 2);
        }
    });
    port
}

/// Passes on what comes, each piece when its time is over.
fn one_way(from: &TcpStream, to: &TcpStream, delay: Duration) {
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
