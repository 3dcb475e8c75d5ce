//! How connections are made: once with a clear error for people, and again and again for
//! supervisors.

mod outage;
#[cfg(feature = "redis-rustls")]
mod tls;

use std::{
    fmt,
    future::{Future, poll_fn},
    io,
    sync::Arc,
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ProtocolVersion, RedisConnectionInfo,
    RedisError,
    aio::MultiplexedConnection,
    io::tcp::{
        TcpSettings,
        socket2::{SockRef, TcpKeepalive},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

pub(super) use self::outage::{Limit, Outage};
use super::{
    connection::{Connection, Direct, Foreign, PubSub},
    error::{self, Handshake},
    response::{self, Value},
};
use crate::{error::Error, transport::Backoff};

/// How long making a connection may take.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The wait before a connection that was lost is made again.
pub(super) const BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(50),
    most: Duration::from_secs(2),
};

/// The oldest server that has every command that is used: `XAUTOCLAIM`'s generation.
const OLDEST_SERVER: (u32, u32) = (6, 2);

/// Makes connections to one server. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connector(Arc<Inner>);

struct Inner {
    client: Client,
    address: String,
    #[cfg(feature = "redis-rustls")]
    tls: tls::Tls,
    /// What the network is replaced by.
    #[cfg(test)]
    dial: Option<Box<dyn super::simulation::Dial>>,
}

impl Connector {
    /// From a URL. No connection is made.
    pub(super) fn from_url(url: &str) -> Result<Self, Error> {
        if cfg!(not(feature = "redis-rustls"))
            && (url.starts_with("rediss:") || url.starts_with("valkeys:"))
        {
            return Err(Error::config(
                "TLS is not built in; enable the feature `redis-rustls` of `campanile`",
            ));
        }
        // The driver's own errors name what is wrong with a URL without repeating it, so that no
        // password gets into a log.
        let client = Client::open(url).map_err(|error| {
            Error::config(
                "the Redis URL cannot be read; it looks like redis://user:password@host:port/db, \
                 or redis+unix:///path/to/redis.sock?db=0",
            )
            .with_source(error)
        })?;
        Self::from_client(client)
    }

    /// From a client that the application has set up. No connection is made.
    pub(super) fn from_client(client: Client) -> Result<Self, Error> {
        let info = client.get_connection_info().clone();
        let address = info.addr().to_string();
        let tcp = tcp_settings(info.tcp_settings());
        // The driver would name itself in two more commands, which a user with few rights may not
        // run.
        let handshake = info.redis_settings().clone().set_skip_set_lib_name();
        let info = info.set_tcp_settings(tcp).set_redis_settings(handshake);
        #[cfg(feature = "redis-rustls")]
        if let ConnectionAddr::TcpTls {
            insecure,
            tls_params,
            ..
        } = info.addr()
            && (*insecure || tls_params.is_some())
        {
            tls::check_provider()?;
        }
        let client = Client::open(info).map_err(|error| error::connecting(&address, error))?;
        Ok(Self(Arc::new(Inner {
            client,
            address,
            #[cfg(feature = "redis-rustls")]
            tls: Default::default(),
            #[cfg(test)]
            dial: None,
        })))
    }

    /// Over a network that is simulated.
    #[cfg(test)]
    pub(super) fn simulated(dial: impl super::simulation::Dial) -> Self {
        let connector = Self::from_url("redis://simulation/").expect("it is a URL");
        let mut inner = Arc::into_inner(connector.0).expect("it was not cloned");
        inner.dial = Some(Box::new(dial));
        Self(Arc::new(inner))
    }

    /// A byte stream over a network that is simulated, where it is.
    #[cfg(test)]
    async fn dialled(&self) -> Result<Option<Box<dyn Stream>>, Error> {
        let Some(dial) = &self.0.dial else {
            return Ok(None);
        };
        let connecting = async { Ok(dial.dial().await?) };
        self.within_time(connecting).await.map(Some)
    }

    /// Where a simulation runs the keeper, in place of a thread.
    #[cfg(test)]
    pub(super) fn keepers_runtime(&self) -> Option<tokio::runtime::Handle> {
        self.0.dial.as_ref().map(|dial| dial.keepers_runtime())
    }

    /// Where the server is, without user and password.
    pub(super) fn address(&self) -> &str {
        &self.0.address
    }

    /// A connection for commands. Its answers have no time limit: whoever uses it sets one.
    pub(super) async fn connection(&self) -> Result<Connection, Error> {
        let config = config();
        match self.stream().await? {
            Some(stream) if self.is_resp2() => Ok(Connection::direct(self.greet(stream).await?)),
            Some(stream) => {
                let making = MultiplexedConnection::new_with_config(self.login(), stream, config);
                let (connection, driver) = self.within_time(making).await?;
                Ok(Connection::foreign(Foreign::driven(connection, driver)))
            }
            None => {
                let client = &self.0.client;
                let making = client.get_multiplexed_async_connection_with_config(&config);
                let connection = self.within_time(making).await?;
                let mut line = Connection::foreign(Foreign::made(connection));
                // The driver's own handshake need not have asked for anything.
                let answer = self.within_time(line.command(redis::cmd("PING"))).await?;
                self.greeted(Handshake::Ping, answer)?;
                Ok(line)
            }
        }
    }

    /// A connection for subscriptions.
    pub(super) async fn pubsub(&self) -> Result<PubSub, Error> {
        match self.stream().await? {
            Some(stream) if self.is_resp2() => Ok(PubSub::direct(self.greet(stream).await?)),
            Some(stream) => {
                let making = redis::aio::PubSub::new(self.login(), stream);
                Ok(PubSub::foreign(self.within_time(making).await?))
            }
            None => {
                let making = self.0.client.get_async_pubsub();
                Ok(PubSub::foreign(self.within_time(making).await?))
            }
        }
    }

    /// User, password, database and protocol.
    fn login(&self) -> &RedisConnectionInfo {
        self.0.client.get_connection_info().redis_settings()
    }

    fn is_resp2(&self) -> bool {
        self.login().protocol() == ProtocolVersion::RESP2
    }

    /// Logs in over a byte stream.
    ///
    /// The handshake ends with a round trip: a connection is one when the server has answered. A
    /// server at its `maxclients`, or a proxy without a server, accepts and closes; what it writes
    /// before that must not be taken for the answer to the first command.
    async fn greet(&self, stream: Box<dyn Stream>) -> Result<Direct, Error> {
        let login = self.login();
        let mut commands = Vec::new();
        if let Some(password) = login.password() {
            let mut auth = redis::cmd("AUTH");
            auth.arg(login.username()).arg(password);
            commands.push((Handshake::Auth, auth));
        }
        if login.db() != 0 {
            let select = redis::cmd("SELECT").arg(login.db()).to_owned();
            commands.push((Handshake::Select, select));
        }
        commands.push((Handshake::Ping, redis::cmd("PING")));
        let mut direct = Direct::new(stream);
        let mut answers = Vec::with_capacity(commands.len());
        let exchange = async {
            direct.send(commands.iter().map(|(_, command)| command));
            for (command, _) in &commands {
                let answer = poll_fn(|cx| direct.poll_answer(cx)).await?;
                let is_last = matches!(answer, Value::ServerError(_));
                answers.push((*command, answer));
                // A server that refuses may close without another answer.
                if is_last {
                    break;
                }
            }
            Ok(())
        };
        self.within_time(exchange).await?;
        for (command, answer) in answers {
            self.greeted(command, answer)?;
        }
        Ok(direct)
    }

    /// Looks at the answer to a command of the handshake.
    fn greeted(&self, command: Handshake, answer: Value) -> Result<(), Error> {
        match answer {
            Value::ServerError(refusal) => {
                error::handshake(self.address(), command, refusal).map_or(Ok(()), Err)
            }
            _ => Ok(()),
        }
    }

    /// A byte stream to the server; `None` where the driver has to make it, for it alone knows the
    /// certificates.
    async fn stream(&self) -> Result<Option<Box<dyn Stream>>, Error> {
        #[cfg(test)]
        if let Some(stream) = self.dialled().await? {
            return Ok(Some(stream));
        }
        let info = self.0.client.get_connection_info();
        Ok(match info.addr() {
            ConnectionAddr::Tcp(host, port) => {
                Some(Box::new(self.within_time(self.tcp(host, *port)).await?))
            }
            #[cfg(feature = "redis-rustls")]
            ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            } => {
                let making = async {
                    let stream = self.tcp(host, *port).await?;
                    self.0.tls.handshake(host, stream).await
                };
                Some(Box::new(self.within_time(making).await?))
            }
            #[cfg(unix)]
            ConnectionAddr::Unix(path) => {
                let connecting = async { Ok(tokio::net::UnixStream::connect(path).await?) };
                Some(Box::new(self.within_time(connecting).await?))
            }
            _ => None,
        })
    }

    async fn tcp(&self, host: &str, port: u16) -> Result<TcpStream, RedisError> {
        let stream = TcpStream::connect((host, port)).await?;
        // The options are refinements: a socket that does not take them works.
        let info = self.0.client.get_connection_info();
        let _ = set_options(&stream, info.tcp_settings());
        Ok(stream)
    }

    async fn within_time<T>(
        &self,
        connection: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, Error> {
        match timeout(CONNECT_TIMEOUT, connection).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(error::connecting(self.address(), error)),
            Err(_) => Err(error::unreachable(self.address())),
        }
    }

    /// A connection to a server that was asked whether it can be worked with.
    pub(super) async fn checked(&self) -> Result<Connection, Error> {
        let mut line = self.connection().await?;
        let mut info = redis::cmd("INFO");
        info.arg("server");
        let answer = self.within_time(line.command(&info)).await?;
        match answer {
            // A worker does not need the right to read `INFO`; the version is then taken on trust.
            Value::ServerError(error) if error.code() == "NOPERM" => {}
            Value::ServerError(error) => return Err(error::refused(error)),
            answer => self.check_version(answer)?,
        }
        Ok(line)
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

/// Small commands go out at once, and the kernel gives up on a peer that does not answer.
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

/// A byte stream to a server.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None)
        .set_pipeline_buffer_size(64)
}

/// Tells a socket what the driver would tell its own.
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

/// Major and minor version in the text of `INFO server`.
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
    fn a_url_that_cannot_be_read_is_not_repeated() {
        for url in [
            "redis://user:hunter2@",
            "http://user:hunter2@localhost/",
            "redis://user:hunter2@localhost/zero",
            "hunter2",
        ] {
            let error = Connector::from_url(url).expect_err(url);
            assert!(error.is_config());
            let shown = format!("{error:?} {}", error.chain());
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn a_connector_shows_its_address_and_nothing_else() {
        let connector = Connector::from_url("redis://user:hunter2@localhost:7000/3").unwrap();
        assert_eq!(format!("{connector:?}"), r#"Connector("localhost:7000")"#);
    }

    #[test]
    #[cfg(not(feature = "redis-rustls"))]
    fn a_tls_url_without_tls_names_the_feature() {
        let error = Connector::from_url("rediss://localhost").unwrap_err();
        assert!(error.to_string().contains("redis-rustls"), "{error}");
    }
}
