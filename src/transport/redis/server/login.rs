//! Connects to a server: opens the byte stream, with TLS if the URL asks for it, and logs in.

use std::{future::Future, sync::Arc, time::Duration};

use redis::{
    Cmd, ConnectionAddr, ConnectionInfo, ProtocolVersion, RedisConnectionInfo, RedisError,
    ServerError, io::tcp::TcpSettings,
};
use tokio::time::timeout;

use super::{
    CredentialsProvider, Renewal,
    address::{self, Address},
    credentials::{Credentials, CredentialsSource},
    tls::TlsOptions,
};
#[cfg(test)]
use crate::transport::redis::simulation::Dial;
use crate::{
    error::Error,
    transport::redis::{
        connection::{ByteStream, Connection},
        error::{self, Handshake},
        response::{self, Value},
    },
};

/// The time limit for each step of a new connection: the byte stream with TLS, the handshake, and
/// each command of [`Login::ask`].
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The credentials and the settings of connections to one kind of server: Redis servers or
/// Sentinels.
pub(super) struct Login {
    credentials: CredentialsSource,
    settings: RedisConnectionInfo,
    tcp: TcpSettings,
    is_tls: bool,
    #[cfg(feature = "redis-rustls")]
    tls: super::tls::Tls,
    /// A simulated network, which replaces the real one.
    #[cfg(test)]
    pub(super) dial: Option<Box<dyn Dial>>,
}

/// The use of a connection. It decides which protocol the connection requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// RESP2, or RESP3 if the URL asks for it.
    Commands,
    /// RESP3 if the server supports it, because a subscriber cannot send `ROLE` over RESP2.
    Subscriptions,
    /// RESP3 with `CLIENT TRACKING`: the server sends a notice when a key that was read is written.
    TrackedReads,
}

impl Login {
    /// Takes the settings from a URL, except its address. Fails if the URL has credentials and
    /// there is a provider too, or if `tls` is set and the URL has no TLS.
    pub(super) fn new(
        info: &ConnectionInfo,
        provider: Option<Arc<dyn CredentialsProvider>>,
        tls: TlsOptions,
    ) -> Result<Self, Error> {
        #[cfg(feature = "redis-rustls")]
        let mut tls = tls;
        #[cfg(not(feature = "redis-rustls"))]
        let TlsOptions {} = tls;
        match info.addr() {
            #[cfg(feature = "redis-rustls")]
            ConnectionAddr::TcpTls { insecure, .. } => tls.accept_invalid |= *insecure,
            #[cfg(not(feature = "redis-rustls"))]
            ConnectionAddr::TcpTls { .. } => return Err(super::url::no_tls()),
            #[cfg(feature = "redis-rustls")]
            _ if tls.is_set() => {
                return Err(Error::config(
                    "certificates have a meaning under TLS only; let the URL begin with rediss://",
                ));
            }
            _ => {}
        }
        Ok(Self {
            credentials: CredentialsSource::new(info.redis_settings(), provider)?,
            settings: info.redis_settings().clone(),
            tcp: address::tcp_settings_with_defaults(info.tcp_settings()),
            is_tls: matches!(info.addr(), ConnectionAddr::TcpTls { .. }),
            #[cfg(feature = "redis-rustls")]
            tls: super::tls::Tls::new(tls)?,
            #[cfg(test)]
            dial: None,
        })
    }

    /// Connects to a server and logs in.
    pub(super) async fn connection(
        &self,
        address: &Address,
        purpose: Purpose,
    ) -> Result<Connection, Error> {
        let address_text = address.to_string();
        let stream = self.connect(address).await?;
        let credentials = self.credentials.current(&address_text).await?;
        let auth = credentials.as_ref().map(Credentials::auth_command);
        let connection = Connection::new(stream);
        let mut connection = self.greet(address, connection, auth, purpose).await?;
        let lifetime = credentials.and_then(|it| it.lifetime());
        if let Some(provider) = self.credentials.provider().filter(|_| lifetime.is_some()) {
            connection.set_renewal(Renewal::new(provider, address_text, lifetime));
        }
        Ok(connection)
    }

    /// Logs in, and selects the protocol and the database.
    ///
    /// The handshake ends with a `PING`, so it has at least one response. A server at its
    /// `maxclients`, or a proxy without a server, accepts a connection, may write an error, and
    /// closes it. Without the `PING`, this error would be read as the response to the first
    /// command.
    async fn greet(
        &self,
        address: &Address,
        mut connection: Connection,
        auth: Option<Cmd>,
        purpose: Purpose,
    ) -> Result<Connection, Error> {
        let settings = &self.settings;
        let tracks = purpose == Purpose::TrackedReads;
        let needs_resp3 = tracks || settings.protocol() == ProtocolVersion::RESP3;
        // Each command has a label, which selects the error for a refusal.
        let mut commands = Vec::new();
        commands.extend(auth.map(|auth| (Handshake::Auth, auth)));
        if needs_resp3 || purpose == Purpose::Subscriptions {
            let hello = redis::cmd("HELLO").arg(3).to_owned();
            commands.push((Handshake::Hello, hello));
        }
        if settings.db() != 0 {
            let select = redis::cmd("SELECT").arg(settings.db()).to_owned();
            commands.push((Handshake::Select, select));
        }
        if tracks {
            let tracking = redis::cmd("CLIENT").arg("TRACKING").arg("ON").to_owned();
            commands.push((Handshake::Tracking, tracking));
        }
        commands.push((Handshake::Ping, redis::cmd("PING")));
        // All commands are sent together. At most one refusal is kept: the first one.
        let mut refusals = Vec::new();
        let exchange = async {
            connection.send(commands.iter().map(|(_, command)| command));
            for (command, _) in &commands {
                let is_hello = *command == Handshake::Hello;
                match connection.response().await? {
                    // A subscription also works over RESP2.
                    Value::ServerError(refusal)
                        if is_hello && !needs_resp3 && error::lacks_resp3(&refusal) => {}
                    Value::ServerError(refusal) => {
                        refusals.push((*command, refusal));
                        // After a refusal the server may close the connection without further
                        // responses.
                        break;
                    }
                    _ if is_hello => connection.set_resp3(),
                    _ => {}
                }
            }
            Ok(())
        };
        self.within_time(address, exchange).await?;
        // Some refusals are no failures: the server has accepted this client all the same.
        let failure = |(command, refusal): (Handshake, ServerError)| {
            error::handshake_error(&address.to_string(), command, refusal)
        };
        match refusals.pop().and_then(failure) {
            Some(error) => Err(error),
            None => Ok(connection),
        }
    }

    /// Sends a command, with a time limit. Returns the response, which may be an error of the
    /// server.
    pub(super) async fn ask(
        &self,
        address: &Address,
        connection: &mut Connection,
        command: &redis::Cmd,
    ) -> Result<Value, Error> {
        self.within_time(address, connection.command(command)).await
    }

    /// Opens a byte stream to the server.
    async fn connect(&self, address: &Address) -> Result<Box<dyn ByteStream>, Error> {
        #[cfg(test)]
        if let Some(dial) = &self.dial {
            let dialing = async { Ok(dial.dial().await?) };
            return self.within_time(address, dialing).await;
        }
        let connecting = async {
            let stream: Box<dyn ByteStream> = match address {
                #[cfg(unix)]
                Address::Unix(path) => Box::new(tokio::net::UnixStream::connect(path).await?),
                #[cfg(not(unix))]
                Address::Unix(_) => {
                    let unsupported = std::io::ErrorKind::Unsupported;
                    return Err(std::io::Error::from(unsupported).into());
                }
                Address::Tcp(host, port) => {
                    let stream = address::connect(host, *port, &self.tcp).await?;
                    match self.is_tls {
                        false => Box::new(stream),
                        #[cfg(feature = "redis-rustls")]
                        true => Box::new(self.tls.handshake(host, stream).await?),
                        #[cfg(not(feature = "redis-rustls"))]
                        true => unreachable!("refused by `new`"),
                    }
                }
            };
            Ok(stream)
        };
        self.within_time(address, connecting).await
    }

    /// Limits the time of one step, and adds the address to its error.
    async fn within_time<T>(
        &self,
        address: &Address,
        work: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, Error> {
        match timeout(CONNECT_TIMEOUT, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(error::connect_failed(&address.to_string(), error)),
            Err(_) => Err(error::no_response(&address.to_string(), self.is_tls)),
        }
    }
}

/// Checks the version in the text of `INFO server`. Accepts a text without a version.
pub(super) fn check_version(address: &Address, info: &str) -> Result<(), Error> {
    match version(info) {
        Some(found) if found < OLDEST_SERVER => Err(Error::config(format!(
            "Redis at {address} is version {}.{}; {}.{} or newer is needed",
            found.0, found.1, OLDEST_SERVER.0, OLDEST_SERVER.1
        ))),
        _ => Ok(()),
    }
}

/// The major and minor version of the oldest supported server, the first with `XAUTOCLAIM`.
const OLDEST_SERVER: (u32, u32) = (6, 2);

/// Decodes the response to `INFO`.
pub(super) fn info_text(info: Value) -> String {
    let text = response::bytes(info).unwrap_or_default();
    String::from_utf8_lossy(&text).into_owned()
}

/// Parses the major and minor version in the text of `INFO server`.
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
}
