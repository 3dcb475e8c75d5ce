//! Addresses of servers, and TCP connections to them.

use std::{fmt, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use futures_util::FutureExt;
use redis::{
    ConnectionAddr,
    io::tcp::{
        TcpSettings,
        socket2::{SockRef, TcpKeepalive},
    },
};
use tokio::net::{TcpStream, lookup_host};

use super::race;

/// The address of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::transport::redis) enum Address {
    /// A host and a port.
    Tcp(Arc<str>, u16),
    /// The path of a Unix socket.
    #[cfg_attr(
        not(unix),
        expect(dead_code, reason = "a URL can ask for one on any system")
    )]
    Unix(PathBuf),
}

impl Address {
    pub(super) fn tcp(host: &str, port: u16) -> Self {
        Self::Tcp(host.into(), port)
    }

    /// Parses `host:port` as servers write it: an IPv6 address may have no brackets.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Some(Self::tcp(host, port.parse().ok()?))
    }

    /// Returns the host, which is empty for a Unix socket.
    pub(super) fn host(&self) -> &str {
        match self {
            Self::Tcp(host, _) => host,
            Self::Unix(_) => "",
        }
    }
}

impl From<&ConnectionAddr> for Address {
    fn from(address: &ConnectionAddr) -> Self {
        match address {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                Self::tcp(host, *port)
            }
            ConnectionAddr::Unix(path) => Self::Unix(path.clone()),
            other => Self::tcp(&other.to_string(), 0),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Formats addresses as a comma-separated list, for errors.
pub(super) fn comma_separated(addresses: &[Address]) -> String {
    let all: Vec<_> = addresses.iter().map(Address::to_string).collect();
    all.join(", ")
}

/// Connects to a host over TCP. Looks up the name each time, tries its addresses with a [staggered
/// start](https://www.rfc-editor.org/rfc/rfc8305), and uses the first connection.
pub(super) async fn connect(
    host: &str,
    port: u16,
    settings: &TcpSettings,
) -> io::Result<TcpStream> {
    let stream = connect_to_any(lookup_host((host, port)).await?.collect()).await?;
    // The socket works without the options, so an error is ignored.
    let _ = set_options(&stream, settings);
    Ok(stream)
}

/// Connects to the addresses of a name with a staggered start, and returns the first connection.
async fn connect_to_any(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let attempts = alternate(addresses).into_iter();
    let attempts = attempts.map(|it| TcpStream::connect(it).boxed()).collect();
    race::first(attempts).await.map_err(|mut errors| {
        let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        errors.pop().unwrap_or_else(none)
    })
}

/// Reorders addresses so that IPv4 and IPv6 alternate, starting with the family of the first
/// address.
fn alternate(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first = addresses.first().map(SocketAddr::is_ipv6);
    let (same, other): (Vec<_>, Vec<_>) =
        (addresses.into_iter()).partition(|it| Some(it.is_ipv6()) == first);
    let (mut same, mut other) = (same.into_iter(), other.into_iter());
    let mut ordered = Vec::new();
    loop {
        let pair = [same.next(), other.next()];
        if pair == [None, None] {
            return ordered;
        }
        ordered.extend(pair.into_iter().flatten());
    }
}

/// Turns on `TCP_NODELAY`, and adds the keep-alive probes and the user timeout if they are missing.
/// With these two options, the kernel detects a dead peer.
pub(super) fn tcp_settings_with_defaults(given: &TcpSettings) -> TcpSettings {
    let mut settings = given.clone().set_nodelay(true);
    if given.keepalive().is_none() {
        settings = settings.set_keepalive(
            TcpKeepalive::new()
                .with_time(Duration::from_secs(15))
                .with_interval(Duration::from_secs(5)),
        );
    }
    #[cfg(target_os = "linux")]
    if given.user_timeout().is_none() {
        settings = settings.set_user_timeout(Duration::from_secs(15));
    }
    settings
}

/// Applies the settings to a socket.
fn set_options(stream: &TcpStream, settings: &TcpSettings) -> io::Result<()> {
    stream.set_nodelay(settings.nodelay())?;
    let socket = SockRef::from(stream);
    if let Some(keepalive) = settings.keepalive() {
        socket.set_tcp_keepalive(keepalive)?;
    }
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(settings.user_timeout())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::net::TcpListener;

    use super::*;

    /// Connects to a name with two addresses: `first`, and one that accepts the connection. Asserts
    /// that the second address is used before the attempt at `first` would time out.
    async fn assert_second_is_used(first: SocketAddr) {
        let live = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live = live.local_addr().unwrap();
        let start = Instant::now();
        let stream = connect_to_any(vec![first, live]).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), live);
        // Less than half of the time limit of a connection, 5 s.
        assert!(start.elapsed() < Duration::from_secs(2));
    }

    #[tokio::test]
    async fn a_dead_address_of_a_name_leaves_the_live_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead = listener.local_addr().unwrap();
        drop(listener);
        assert_second_is_used(dead).await;
        let error = connect_to_any(vec![dead]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    // Linux drops the attempts to connect to a listener whose backlog is full.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_silent_address_of_a_name_delays_the_live_one_by_its_head_start_only() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let silent = listener.local_addr().unwrap();
        let _full = TcpStream::connect(silent).await.unwrap();
        assert_second_is_used(silent).await;
    }

    #[test]
    fn an_address_is_read_as_servers_write_it() {
        for (written, host, port) in [
            ("127.0.0.1:7000", "127.0.0.1", 7000),
            ("node-1.internal:6379", "node-1.internal", 6379),
            ("::1:7000", "::1", 7000),
            ("[fe80::1]:7000", "fe80::1", 7000),
            (":7000", "", 7000),
        ] {
            assert_eq!(Address::parse(written), Some(Address::tcp(host, port)));
        }
        for written in ["", "127.0.0.1", "127.0.0.1:", "127.0.0.1:70000"] {
            assert_eq!(Address::parse(written), None, "{written}");
        }
    }

    #[test]
    fn addresses_of_both_families_take_turns() {
        let addresses = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|it| it.parse().unwrap()).collect()
        };
        let found = addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "1.0.0.1:1"]);
        let ordered = addresses(&["[::1]:1", "1.0.0.1:1", "[::2]:1", "[::3]:1"]);
        assert_eq!(alternate(found), ordered);
    }
}
