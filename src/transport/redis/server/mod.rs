//! Finds the servers of a URL, connects to them and logs in. Each call of a [`Connector`] makes one
//! attempt. The caller repeats failed attempts.

mod address;
mod builder;
mod cause;
mod cluster;
mod credentials;
mod login;
mod outage;
mod race;
mod renewal;
mod sentinel;
mod slot;
#[cfg(feature = "redis-rustls")]
mod tls;
/// Replaces the module `tls` when TLS is not built in.
#[cfg(not(feature = "redis-rustls"))]
mod tls {
    #[derive(Clone, Default)]
    pub(super) struct TlsOptions {}
}
mod topology;
mod url;

use std::{fmt, sync::Arc, time::Duration};

use redis::{Client, ConnectionAddr};

#[cfg(feature = "redis-rustls")]
pub(super) use self::tls::describe_fault as describe_tls_fault;
pub(super) use self::{
    address::Address,
    cluster::parse_redirection,
    outage::{LogLimit, Outage},
    renewal::Renewal,
    slot::{HashSlot, hash_tag},
    topology::{PrimaryChange, is_replica},
};
pub use self::{
    builder::RedisBuilder,
    credentials::{Credentials, CredentialsFuture, CredentialsProvider},
};
use self::{
    cluster::Cluster,
    login::{Login, Purpose, check_version, info_text},
    sentinel::Sentinels,
    tls::TlsOptions,
    topology::{Destination, Servers, Topology},
    url::{ParsedUrl, UrlTopology},
};
use super::{
    connection::{Connection, PubSub, TrackedKeys},
    error,
    namespace::Namespace,
    response::Value,
};
use crate::{error::Error, transport::Backoff};

/// The delay between two attempts to restore a lost connection.
pub(super) const BACKOFF: Backoff =
    Backoff::exponential(Duration::from_millis(50), Duration::from_secs(2));

/// Connects to one of the servers of a URL. Without a cluster, the connector connects to the only
/// primary. On a cluster, `destination` selects the primary of a slot, a given node, or any
/// primary. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connector {
    servers: Arc<Servers>,
    destination: Destination,
    /// Receives the server's notices about written keys. The server sends a notice when a key is
    /// written that the connection has read. `None` without tracking.
    tracked_keys: Option<Arc<TrackedKeys>>,
}

impl Connector {
    /// Makes a connector from a URL, without a connection.
    #[cfg(test)]
    pub(super) fn from_url(url: &str) -> Result<Self, Error> {
        Self::new(url::parse(url)?, None, TlsOptions::default())
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
        let topology = UrlTopology::Server;
        let parsed = ParsedUrl {
            info,
            topology,
            namespace: Namespace::NONE,
        };
        Self::new(parsed, None, TlsOptions::default())
    }

    /// Makes a connector, without a connection. `provider` supplies the credentials for Redis
    /// servers. The credentials for Sentinels are in `parsed`.
    fn new(
        parsed: ParsedUrl,
        provider: Option<Arc<dyn CredentialsProvider>>,
        tls: TlsOptions,
    ) -> Result<Self, Error> {
        let ParsedUrl { info, topology, .. } = parsed;
        let topology = match topology {
            UrlTopology::Server => Topology::Server(info.addr().into()),
            UrlTopology::Cluster(nodes) => Topology::Cluster(Cluster::new(nodes)),
            UrlTopology::Sentinel {
                info: sentinel_info,
                addresses,
                name,
            } => {
                let login = Login::new(&sentinel_info, None, tls.clone())?;
                Topology::Sentinel(Box::new(Sentinels::new(addresses, name, login)))
            }
        };
        Ok(Self {
            servers: Arc::new(Servers {
                login: Login::new(&info, provider, tls)?,
                topology,
            }),
            destination: Destination::Any,
            tracked_keys: None,
        })
    }

    /// Makes a connector over a simulated network.
    #[cfg(test)]
    pub(super) fn simulated(url: &str, dial: impl super::simulation::Dial) -> Self {
        let connector = Self::from_url(url).expect("it is a URL");
        let mut servers = Arc::into_inner(connector.servers).expect("it was not cloned");
        servers.login.dial = Some(Box::new(dial));
        Self {
            servers: Arc::new(servers),
            destination: Destination::Any,
            tracked_keys: None,
        }
    }

    /// In a simulation, returns the runtime for the upkeep. Otherwise returns `None`, and the
    /// upkeep runs on a separate thread.
    #[cfg(test)]
    pub(super) fn upkeep_runtime(&self) -> Option<tokio::runtime::Handle> {
        let dial = self.servers.login.dial.as_ref();
        dial.map(|dial| dial.upkeep_runtime())
    }

    /// Returns a connector to the primary of a key's slot. Without a cluster, returns a connector
    /// to the only primary.
    pub(super) fn for_key(&self, key: &str) -> Self {
        self.to(match self.servers.topology {
            Topology::Cluster(_) => Destination::Slot(HashSlot::of(key.as_bytes())),
            _ => Destination::Any,
        })
    }

    /// Returns a connector to the node of a cluster at `address`.
    pub(super) fn for_node(&self, address: Address) -> Self {
        self.to(Destination::Node(address))
    }

    /// Returns a connector to any of the servers.
    pub(super) fn for_any(&self) -> Self {
        self.to(Destination::Any)
    }

    /// Returns a connector to this node of a cluster. Its connections end when the node serves no
    /// slot.
    pub(super) fn for_primary(&self, address: Address) -> Self {
        self.to(Destination::Primary(address))
    }

    fn to(&self, destination: Destination) -> Self {
        Self {
            destination,
            ..self.clone()
        }
    }

    /// Returns a connector to the same server. `tracked_keys` receives the server's notices about
    /// written keys, from all connections for commands.
    pub(super) fn with_tracking(&self, tracked_keys: Arc<TrackedKeys>) -> Self {
        Self {
            tracked_keys: Some(tracked_keys),
            ..self.clone()
        }
    }

    /// Returns the slot whose primary this connector connects to, or `None` if it was not made for
    /// a slot.
    pub(super) fn slot(&self) -> Option<HashSlot> {
        match self.destination {
            Destination::Slot(slot) => Some(slot),
            _ => None,
        }
    }

    /// Returns the name of the topology, for display.
    pub(super) fn topology_name(&self) -> &'static str {
        match self.servers.topology {
            Topology::Server(_) => "redis",
            Topology::Sentinel(_) => "redis sentinel",
            Topology::Cluster(_) => "redis cluster",
        }
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.cluster().is_some()
    }

    /// Returns the primary of a slot in the last known map of the cluster. If the map lists none,
    /// returns any node: that node redirects commands to the primary.
    ///
    /// # Panics
    /// If the URL is not that of a cluster.
    pub(super) fn owner(&self, slot: HashSlot) -> Address {
        self.cluster().expect("it is a cluster").owner(slot)
    }

    /// Records the node at `address` as the primary of a slot, after a redirection. Does nothing
    /// without a cluster.
    pub(super) fn learn(&self, slot: HashSlot, address: &Address) {
        if let Some(cluster) = self.cluster() {
            cluster.learn(slot, address);
        }
    }

    /// Returns `true` if the last known map of the cluster lists the node at `address` as a
    /// primary. Returns `false` without a cluster.
    pub(super) fn is_primary(&self, address: &Address) -> bool {
        let cluster = self.cluster();
        cluster.is_some_and(|cluster| cluster.map().is_primary(address))
    }

    fn cluster(&self) -> Option<&Cluster> {
        match &self.servers.topology {
            Topology::Cluster(cluster) => Some(cluster),
            _ => None,
        }
    }

    /// Returns the server's last known address for errors and log lines, without user and password.
    pub(super) fn address(&self) -> String {
        self.servers.address_for_display(&self.destination)
    }

    /// Looks the servers up again. If that fails, the known servers stay in use.
    pub(super) async fn refresh(&self) {
        self.servers.refresh().await;
    }

    /// Connects and logs in. Commands on the connection have no time limit, so the caller must set
    /// a limit. The connection fails when a look-up names another server as the primary.
    pub(super) async fn connection(&self) -> Result<Connection, Error> {
        Ok(self.connect().await?.1)
    }

    async fn connect(&self) -> Result<(Address, Connection), Error> {
        let Some(tracked_keys) = &self.tracked_keys else {
            return self
                .servers
                .connection(&self.destination, Purpose::Commands)
                .await;
        };
        let connecting = self
            .servers
            .connection(&self.destination, Purpose::TrackedReads);
        let (address, mut connection) = connecting.await?;
        connection.set_tracked(tracked_keys.clone());
        Ok((address, connection))
    }

    /// Connects and logs in, for subscriptions.
    pub(super) async fn pubsub(&self) -> Result<PubSub, Error> {
        let connection = self
            .servers
            .connection(&self.destination, Purpose::Subscriptions);
        // On a cluster, every node receives all events that are not sharded, so a replica is as
        // good as a primary. Only `Destination::Primary` needs the primary, for sharded events.
        let needs_primary =
            !self.is_cluster() || matches!(self.destination, Destination::Primary(_));
        Ok(PubSub::new(connection.await?.1, needs_primary))
    }

    /// Connects and logs in, and checks the server: its version must be supported, and it must not
    /// be a node of a cluster if the URL is that of a single server.
    pub(super) async fn checked_connection(&self) -> Result<Connection, Error> {
        let (address, mut connection) = self.connect().await?;
        let mut info = redis::cmd("INFO");
        info.arg("server");
        let login = &self.servers.login;
        let info = match login.ask(&address, &mut connection, &info).await? {
            // A user without permission for `INFO` is allowed. The checks are then skipped.
            Value::ServerError(error) if error.code() == "NOPERM" => return Ok(connection),
            response => info_text(error::check(response)?),
        };
        check_version(&address, &info)?;
        // Valkey's name for `redis_mode` is `server_mode`.
        let cluster_modes = ["redis_mode:cluster", "server_mode:cluster"];
        let is_node = cluster_modes.iter().any(|mode| info.contains(mode));
        if is_node && matches!(self.servers.topology, Topology::Server(_)) {
            return Err(Error::config(format!(
                "Redis at {address} is a node of a cluster; let the URL begin with \
                 redis+cluster:// or rediss+cluster://"
            )));
        }
        Ok(connection)
    }

    /// Starts a tokio task that looks the servers up every few seconds, until this connector and
    /// its clones are dropped. Does nothing for a single server.
    pub(super) fn keep_current(&self) {
        if !matches!(self.servers.topology, Topology::Server(_)) {
            tokio::spawn(Servers::keep_current(Arc::downgrade(&self.servers)));
        }
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connector").field(&self.address()).finish()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_connection_to_a_primary_ends_when_its_node_serves_no_slot() {
        let connector = Connector::from_url("redis+cluster://a:1").unwrap();
        let (serves, other) = (Address::tcp("a", 1), Address::tcp("b", 1));
        connector.learn(HashSlot::ANY, &serves);
        let primary_change = |address: &Address| {
            let destination = Destination::Primary(address.clone());
            let primary_change = connector
                .servers
                .primary_change(&destination, address.clone());
            primary_change.expect("it is a cluster").now_or_never()
        };
        assert_eq!(primary_change(&serves), None);
        assert_eq!(primary_change(&other), Some(()));
    }

    #[test]
    fn a_connector_shows_its_address_and_nothing_else() {
        let connector = Connector::from_url("redis://user:hunter2@localhost:7000/3").unwrap();
        assert_eq!(format!("{connector:?}"), r#"Connector("localhost:7000")"#);
    }
}
