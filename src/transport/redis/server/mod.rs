//! Connects to a server and logs in: once, with a clear error for people, or repeatedly for
//! supervised connections.

mod builder;
mod cause;
mod outage;
#[cfg(feature = "redis-rustls")]
mod tls;
/// Stands in for TLS when it is not built in.
#[cfg(not(feature = "redis-rustls"))]
mod tls {
    #[derive(Clone, Default)]
    pub(super) struct TlsOptions {}
}
mod url;

use std::{fmt, future::Future, io, sync::Arc, time::Duration};

use redis::{
    Client, ConnectionAddr, ConnectionInfo, ProtocolVersion, RedisError,
    io::tcp::{
        TcpSettings,
        socket2::{SockRef, TcpKeepalive},
    },
};
use tokio::{net::TcpStream, time::timeout};

pub use self::builder::RedisBuilder;
pub(super) use self::outage::{Limit, Outage};
use self::tls::TlsOptions;
#[cfg(feature = "redis-rustls")]
pub(super) use self::tls::fault as tls_fault;
use super::{
    connection::{Connection, PubSub, Stream},
    error::{self, Handshake},
    response::{self, Value},
};
use crate::{error::Error, transport::Backoff};

/// The time limit for a new connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The delay before a lost connection is made again.
pub(super) const BACKOFF: Backoff =
    Backoff::exponential(Duration::from_millis(50), Duration::from_secs(2));

/// The oldest server with all commands that are used, such as `XAUTOCLAIM`.
const OLDEST_SERVER: (u32, u32) = (6, 2);

/// Makes connections to one server. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connector(Arc<Inner>);

struct Inner {
    info: ConnectionInfo,
    address: String,
    #[cfg(feature = "redis-rustls")]
    tls: tls::Tls,
    /// A simulated network, which replaces the real one.
    #[cfg(test)]
    dial: Option<Box<dyn super::simulation::Dial>>,
}

impl Connector {
    /// Makes a connector from a URL, without a connection.
    #[cfg(test)]
    pub(super) fn from_url(url: &str) -> Result<Self, Error> {
        Self::new(url::parse(url)?, TlsOptions::default())
    }

    /// Makes a connector from the application's redis-rs client, without a connection.
    pub(super) fn from_client(client: &Client) -> Result<Self, Error> {
        let info = client.get_connection_info().clone();
        if let ConnectionAddr::TcpTls {
            tls_params: Some(_),
            ..
        } = info.addr()
        {
            return Err(Error::config(
                "the certificates of a `redis::Client` cannot be read; give them to \
                 `Redis::builder(url)`, with `ca_certificate` and `client_certificate`",
            ));
        }
        Self::new(info, TlsOptions::default())
    }

    fn new(info: ConnectionInfo, tls: TlsOptions) -> Result<Self, Error> {
        #[cfg(feature = "redis-rustls")]
        let mut tls = tls;
        #[cfg(not(feature = "redis-rustls"))]
        let TlsOptions {} = tls;
        match info.addr() {
            #[cfg(feature = "redis-rustls")]
            ConnectionAddr::TcpTls { insecure, .. } => tls.accept_invalid |= *insecure,
            #[cfg(not(feature = "redis-rustls"))]
            ConnectionAddr::TcpTls { .. } => return Err(url::no_tls()),
            #[cfg(feature = "redis-rustls")]
            _ if tls.is_set() => {
                return Err(Error::config(
                    "certificates have a meaning under TLS only; let the URL begin with rediss://",
                ));
            }
            _ => {}
        }
        let tcp = tcp_settings(info.tcp_settings());
        Ok(Self(Arc::new(Inner {
            address: info.addr().to_string(),
            info: info.set_tcp_settings(tcp),
            #[cfg(feature = "redis-rustls")]
            tls: tls::Tls::new(tls)?,
            #[cfg(test)]
            dial: None,
        })))
    }

    /// Makes a connector over a simulated network.
    #[cfg(test)]
    pub(super) fn simulated(dial: impl super::simulation::Dial) -> Self {
        let connector = Self::from_url("redis://simulation/").expect("it is a URL");
        let mut inner = Arc::into_inner(connector.0).expect("it was not cloned");
        inner.dial = Some(Box::new(dial));
        Self(Arc::new(inner))
    }

    /// The runtime on which a simulation runs the upkeep, instead of a thread.
    #[cfg(test)]
    pub(super) fn upkeep_runtime(&self) -> Option<tokio::runtime::Handle> {
        self.0.dial.as_ref().map(|dial| dial.upkeep_runtime())
    }

    /// The server's address, without user and password.
    pub(super) fn address(&self) -> &str {
        &self.0.address
    }

    /// Connects and logs in. The connection has no timeouts: its user sets them.
    pub(super) async fn connection(&self) -> Result<Connection, Error> {
        let stream = self.stream().await?;
        self.greet(Connection::new(stream)).await
    }

    /// Connects, for subscriptions.
    pub(super) async fn pubsub(&self) -> Result<PubSub, Error> {
        Ok(PubSub::new(self.connection().await?))
    }

    /// Logs in, and chooses protocol and database.
    ///
    /// The handshake ends with a round trip: a server at its `maxclients`, or a proxy without a
    /// server, accepts and then closes. What it writes before that must not be taken for the
    /// response to the first command.
    async fn greet(&self, mut connection: Connection) -> Result<Connection, Error> {
        let login = self.0.info.redis_settings();
        let mut commands = Vec::new();
        if let Some(password) = login.password() {
            let mut auth = redis::cmd("AUTH");
            auth.arg(login.username()).arg(password);
            commands.push((Handshake::Auth, auth));
        }
        if login.protocol() == ProtocolVersion::RESP3 {
            let hello = redis::cmd("HELLO").arg(3).to_owned();
            commands.push((Handshake::Hello, hello));
        }
        if login.db() != 0 {
            let select = redis::cmd("SELECT").arg(login.db()).to_owned();
            commands.push((Handshake::Select, select));
        }
        commands.push((Handshake::Ping, redis::cmd("PING")));
        let mut answers = Vec::with_capacity(commands.len());
        let exchange = async {
            connection.send(commands.iter().map(|(_, command)| command));
            for (command, _) in &commands {
                let answer = connection.answer().await?;
                let is_last = matches!(answer, Value::ServerError(_));
                answers.push((*command, answer));
                // A server that refuses may close without another response.
                if is_last {
                    break;
                }
            }
            Ok(())
        };
        self.within_time(exchange).await?;
        for (command, answer) in answers {
            if let Value::ServerError(refusal) = answer
                && let Some(error) = error::handshake(self.address(), command, refusal)
            {
                return Err(error);
            }
        }
        Ok(connection)
    }

    /// Opens a byte stream to the server.
    async fn stream(&self) -> Result<Box<dyn Stream>, Error> {
        #[cfg(test)]
        if let Some(dial) = &self.0.dial {
            return self.within_time(async { Ok(dial.dial().await?) }).await;
        }
        let connecting = async {
            let stream: Box<dyn Stream> = match self.0.info.addr() {
                ConnectionAddr::Tcp(host, port) => Box::new(self.tcp(host, *port).await?),
                #[cfg(feature = "redis-rustls")]
                ConnectionAddr::TcpTls { host, port, .. } => {
                    let stream = self.tcp(host, *port).await?;
                    Box::new(self.0.tls.handshake(host, stream).await?)
                }
                #[cfg(unix)]
                ConnectionAddr::Unix(path) => {
                    Box::new(tokio::net::UnixStream::connect(path).await?)
                }
                _ => {
                    return Err(RedisError::from(io::Error::from(
                        io::ErrorKind::Unsupported,
                    )));
                }
            };
            Ok(stream)
        };
        self.within_time(connecting).await
    }

    async fn tcp(&self, host: &str, port: u16) -> Result<TcpStream, RedisError> {
        let stream = TcpStream::connect((host, port)).await?;
        // The options are optional: the socket works without them.
        let _ = set_options(&stream, self.0.info.tcp_settings());
        Ok(stream)
    }

    async fn within_time<T>(
        &self,
        connection: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, Error> {
        match timeout(CONNECT_TIMEOUT, connection).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(error::connecting(self.address(), error)),
            Err(_) => {
                let is_tls = matches!(self.0.info.addr(), ConnectionAddr::TcpTls { .. });
                Err(error::silent(self.address(), is_tls))
            }
        }
    }

    /// Connects, and checks that the server is ready and its version supported.
    pub(super) async fn checked(&self) -> Result<Connection, Error> {
        let mut connection = self.connection().await?;
        let mut info = redis::cmd("INFO");
        info.arg("server");
        let answer = self.within_time(connection.command(&info)).await?;
        match answer {
            // A worker needs no permission for `INFO`; the version is not checked then.
            Value::ServerError(error) if error.code() == "NOPERM" => {}
            Value::ServerError(error) => return Err(error::refused(error)),
            answer => self.check_version(answer)?,
        }
        Ok(connection)
    }

    fn check_version(&self, info: Value) -> Result<(), Error> {
        let text = response::bytes(info).unwrap_or_default();
        match version(&String::from_utf8_lossy(&text)) {
            Some(found) if found < OLDEST_SERVER => Err(Error::config(format!(
                "Redis at {} is version {}.{}; {}.{} or newer is needed",
                self.address(),
                found.0,
                found.1,
                OLDEST_SERVER.0,
                OLDEST_SERVER.1
            ))),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connector").field(&self.address()).finish()
    }
}

/// Sends small commands at once, and lets the kernel detect a dead peer.
fn tcp_settings(given: &TcpSettings) -> TcpSettings {
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

/// Sets a socket's options.
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

/// The major and minor version in the text of `INFO server`.
fn version(info: &str) -> Option<(u32, u32)> {
    let version = info
        .lines()
        .find_map(|line| line.strip_prefix("redis_version:"))?;
    let mut numbers = version.trim().split('.').map_while(|n| n.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_info() {
        assert_eq!(
            version("# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n"),
            Some((7, 0))
        );
        assert_eq!(version("redis_version:255.255.255"), Some((255, 255)));
        assert_eq!(version("# Server"), None);
    }

    #[test]
    fn a_connector_shows_its_address_and_nothing_else() {
        let connector = Connector::from_url("redis://user:hunter2@localhost:7000/3").unwrap();
        assert_eq!(format!("{connector:?}"), r#"Connector("localhost:7000")"#);
    }
}
