//! Finds the servers: one server, a primary that Sentinels watch, or the nodes of a cluster.

use std::{future::Future, pin::Pin, sync::Weak, time::Duration};

use tokio::{sync::watch, time::sleep};

use super::{
    address::Address,
    cluster::{Cluster, SlotMap},
    login::{Login, Purpose},
    sentinel::Sentinels,
    slot::HashSlot,
};
use crate::{
    error::Error,
    transport::redis::{connection::Connection, error, response::Value},
};

/// The time between two regular look-ups of the servers. A look-up finds a new primary even if the
/// old one is cut off and cannot report the failover.
const LOOKUP_PERIOD: Duration = Duration::from_secs(5);

/// The servers of one URL, and the login to them.
pub(super) struct Servers {
    pub(super) login: Login,
    pub(super) topology: Topology,
}

/// The kind of deployment. It decides how the primary is found.
pub(super) enum Topology {
    /// One server, whose address never changes.
    Server(Address),
    /// A primary that Sentinels watch, and replace if it fails.
    Sentinel(Box<Sentinels>),
    /// A cluster, whose map has the primary of each slot.
    Cluster(Cluster),
}

/// Selects the server that a connection is made to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Destination {
    /// The only primary, or on a cluster any primary.
    Any,
    /// The primary of a slot of a cluster.
    Slot(HashSlot),
    /// The node of a cluster at this address, whichever slots it serves.
    Node(Address),
    /// This node of a cluster, as long as it serves a slot.
    Primary(Address),
}

/// Resolves when a look-up names another server for the [`Destination`] of a connection. The
/// connection then has to end.
pub(in crate::transport::redis) type PrimaryChange =
    Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

impl Servers {
    /// Finds the server of a destination, connects to it and logs in. With Sentinels, fails if that
    /// server is a replica.
    pub(super) async fn connection(
        &self,
        destination: &Destination,
        purpose: Purpose,
    ) -> Result<(Address, Connection), Error> {
        let address = self.find(destination).await?;
        let mut connection = self.login.connection(&address, purpose).await?;
        if let Topology::Sentinel(_) = self.topology {
            self.check_role(&address, &mut connection).await?;
        }
        if let Some(primary_change) = self.primary_change(destination, address.clone()) {
            connection.set_primary_change(primary_change);
        }
        Ok((address, connection))
    }

    /// Looks up the address of the server of a destination.
    async fn find(&self, destination: &Destination) -> Result<Address, Error> {
        match (&self.topology, destination) {
            (Topology::Server(address), _) => Ok(address.clone()),
            (Topology::Sentinel(sentinels), _) => sentinels.find_primary().await,
            (Topology::Cluster(_), Destination::Node(address) | Destination::Primary(address)) => {
                Ok(address.clone())
            }
            (Topology::Cluster(cluster), destination) => {
                cluster.refresh(&self.login).await?;
                Ok(match destination {
                    Destination::Slot(slot) => cluster.owner(*slot),
                    _ => cluster.owner(HashSlot::random()),
                })
            }
        }
    }

    /// Looks the servers up again. If that fails, the known servers stay in use.
    pub(super) async fn refresh(&self) {
        let found = match &self.topology {
            Topology::Server(_) => Ok(()),
            Topology::Sentinel(sentinels) => sentinels.find_primary().await.map(drop),
            Topology::Cluster(cluster) => cluster.refresh(&self.login).await,
        };
        if let Err(error) = found {
            tracing::debug!(error = error.chain(), "the servers could not be looked up");
        }
    }

    /// Fails if a server is a replica. Sentinels may name a replica before it is promoted.
    async fn check_role(
        &self,
        address: &Address,
        connection: &mut Connection,
    ) -> Result<(), Error> {
        let role = self
            .login
            .ask(address, connection, &redis::cmd("ROLE"))
            .await?;
        match is_replica(&role) {
            true => Err(error::no_primary(&address.to_string())),
            false => Ok(()),
        }
    }

    /// Returns the last known address of the server of a destination, for errors and log lines. If
    /// no address is known, returns the name of the primary or the seeds of the cluster.
    pub(super) fn address_for_display(&self, destination: &Destination) -> String {
        match (&self.topology, destination) {
            (Topology::Server(address), _)
            | (_, Destination::Node(address) | Destination::Primary(address)) => {
                address.to_string()
            }
            (Topology::Sentinel(sentinels), _) => match &*sentinels.last_primary().borrow() {
                Some(primary) => format!("{primary} (`{}`)", sentinels.name),
                None => format!("`{}`", sentinels.name),
            },
            (Topology::Cluster(cluster), Destination::Slot(slot)) => {
                let map = cluster.map();
                let known = map.owner(*slot).map(ToString::to_string);
                known.unwrap_or_else(|| cluster.list_seeds())
            }
            (Topology::Cluster(cluster), Destination::Any) => cluster.list_seeds(),
        }
    }

    /// Returns a future that resolves when the server of this destination is no longer the one at
    /// `address`. Returns `None` if the server of this destination never changes.
    pub(super) fn primary_change(
        &self,
        destination: &Destination,
        address: Address,
    ) -> Option<PrimaryChange> {
        match (&self.topology, destination) {
            (Topology::Server(_), _) | (_, Destination::Node(_)) => None,
            (Topology::Sentinel(sentinels), _) => {
                let is_elsewhere =
                    move |last: &Option<Address>| last.as_ref().is_some_and(|it| *it != address);
                Some(Box::pin(until(sentinels.last_primary(), is_elsewhere)))
            }
            (Topology::Cluster(cluster), Destination::Primary(node)) => {
                let node = node.clone();
                let serves_none = move |map: &SlotMap| !map.is_primary(&node);
                Some(Box::pin(until(cluster.changes(), serves_none)))
            }
            (Topology::Cluster(cluster), Destination::Slot(slot)) => {
                let slot = *slot;
                let is_elsewhere =
                    move |map: &SlotMap| map.owner(slot).is_some_and(|it| **it != address);
                Some(Box::pin(until(cluster.changes(), is_elsewhere)))
            }
            (Topology::Cluster(cluster), Destination::Any) => {
                // Every node of a cluster forwards events, so the connection may stay on a replica.
                // After a failover, the map may omit the demoted node for a moment. The connection
                // ends only if the node is still omitted after [`LOOKUP_PERIOD`].
                let changes = cluster.changes();
                Some(Box::pin(async move {
                    loop {
                        until(changes.clone(), |map: &SlotMap| !map.is_node(&address)).await;
                        sleep(LOOKUP_PERIOD).await;
                        if !changes.borrow().is_node(&address) {
                            return;
                        }
                    }
                }))
            }
        }
    }

    /// Looks the servers up every few seconds, until `servers` is dropped.
    pub(super) async fn keep_current(servers: Weak<Self>) {
        loop {
            sleep(LOOKUP_PERIOD.mul_f64(1.0 + fastrand::f64() / 5.0)).await;
            match servers.upgrade() {
                Some(servers) => servers.refresh().await,
                None => return,
            }
        }
    }
}

/// Resolves when `condition` returns `true` for the current value. Never resolves if the sender is
/// dropped first.
async fn until<T>(mut last: watch::Receiver<T>, condition: impl FnMut(&T) -> bool) {
    if last.wait_for(condition).await.is_err() {
        // The sender was dropped with the handle, so there is no change any more.
        std::future::pending::<()>().await;
    }
}

/// Returns `true` if the response to `ROLE` says that the server is a replica. Returns `false` for
/// an error, for example if the user lacks the permission.
/// <https://redis.io/docs/latest/commands/role/>
pub(in crate::transport::redis) fn is_replica(role: &Value) -> bool {
    let Value::Array(parts) = role else {
        return false;
    };
    matches!(parts.first(), Some(Value::Text(role)) if role == "slave")
}
