//! Finds the servers: one server, a primary that Sentinels watch, or the nodes of a cluster.

use std::{future::Future, pin::Pin, sync::Weak, time::Duration};

use tokio::{sync::watch, time::sleep};

use super::{
    address::Address,
    cluster::{Cluster, Map},
    login::{Login, Purpose},
    sentinel::Sentinels,
    slot::HashSlot,
};
use crate::{
    error::Error,
    transport::redis::{connection::Connection, error, response::Value},
};

/// The time between two regular look-ups of the servers. They are needed since a server that is cut
/// off does not know that another one is the primary now.
const LOOK: Duration = Duration::from_secs(5);

/// The servers of one URL, and the login to them.
pub(super) struct Servers {
    pub(super) login: Login,
    pub(super) topology: Topology,
}

pub(super) enum Topology {
    Server(Address),
    Sentinel(Box<Sentinels>),
    Cluster(Cluster),
}

/// The server that a connection is made to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// The primary; on a cluster, any primary.
    Any,
    /// The primary of a slot of a cluster.
    Slot(HashSlot),
    /// This node of a cluster, whatever it serves.
    Node(Address),
    /// This node of a cluster, as long as it serves a slot.
    Primary(Address),
}

/// Resolves when a connection's server is not the primary of its place any more.
pub(in crate::transport::redis) type Departure = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

impl Servers {
    /// Connects to the server at a place, and logs in.
    pub(super) async fn connection(
        &self,
        place: &Place,
        purpose: Purpose,
    ) -> Result<(Address, Connection), Error> {
        let address = self.find(place).await?;
        let mut connection = self.login.connection(&address, purpose).await?;
        if let Topology::Sentinel(_) = self.topology {
            self.check_role(&address, &mut connection).await?;
        }
        if let Some(departure) = self.departure(place, address.clone()) {
            connection.ends_with(departure);
        }
        Ok((address, connection))
    }

    /// The address of the server at a place, found anew.
    async fn find(&self, place: &Place) -> Result<Address, Error> {
        match (&self.topology, place) {
            (Topology::Server(address), _) => Ok(address.clone()),
            (Topology::Sentinel(sentinels), _) => sentinels.find().await,
            (Topology::Cluster(_), Place::Node(address) | Place::Primary(address)) => {
                Ok(address.clone())
            }
            (Topology::Cluster(cluster), place) => {
                cluster.refresh(&self.login).await?;
                Ok(match place {
                    Place::Slot(slot) => cluster.owner(*slot),
                    _ => cluster.owner(HashSlot::by_chance()),
                })
            }
        }
    }

    /// Looks the servers up again. Without an answer, the known servers stay.
    pub(super) async fn refresh(&self) {
        let found = match &self.topology {
            Topology::Server(_) => Ok(()),
            Topology::Sentinel(sentinels) => sentinels.find().await.map(drop),
            Topology::Cluster(cluster) => cluster.refresh(&self.login).await,
        };
        if let Err(error) = found {
            tracing::debug!(error = error.chain(), "the servers could not be looked up");
        }
    }

    /// Checks that a server is a primary: Sentinels may name a replica that is not promoted yet.
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

    /// The last known address of the server at a place, for texts.
    pub(super) fn described(&self, place: &Place) -> String {
        match (&self.topology, place) {
            (Topology::Server(address), _)
            | (_, Place::Node(address) | Place::Primary(address)) => address.to_string(),
            (Topology::Sentinel(sentinels), _) => match &*sentinels.last().borrow() {
                Some(primary) => format!("{primary} (`{}`)", sentinels.name),
                None => format!("`{}`", sentinels.name),
            },
            (Topology::Cluster(cluster), Place::Slot(slot)) => {
                let map = cluster.map();
                let known = map.owner(*slot).map(ToString::to_string);
                known.unwrap_or_else(|| cluster.described())
            }
            (Topology::Cluster(cluster), Place::Any) => cluster.described(),
        }
    }

    pub(super) fn departure(&self, place: &Place, address: Address) -> Option<Departure> {
        match (&self.topology, place) {
            (Topology::Server(_), _) | (_, Place::Node(_)) => None,
            (Topology::Sentinel(sentinels), _) => {
                let is_elsewhere =
                    move |last: &Option<Address>| last.as_ref().is_some_and(|it| *it != address);
                Some(Box::pin(until(sentinels.last(), is_elsewhere)))
            }
            (Topology::Cluster(cluster), Place::Primary(address)) => {
                let address = address.clone();
                let serves_none = move |map: &Map| !map.is_primary(&address);
                Some(Box::pin(until(cluster.changes(), serves_none)))
            }
            (Topology::Cluster(cluster), Place::Slot(slot)) => {
                let slot = *slot;
                let is_elsewhere =
                    move |map: &Map| map.owner(slot).is_some_and(|it| **it != address);
                Some(Box::pin(until(cluster.changes(), is_elsewhere)))
            }
            (Topology::Cluster(cluster), Place::Any) => {
                // The connection may stay on a replica, since every node of a cluster passes events
                // on. Just after a failover the other nodes do not list the demoted node, so the
                // map is checked again.
                let changes = cluster.changes();
                Some(Box::pin(async move {
                    loop {
                        until(changes.clone(), |map: &Map| !map.is_node(&address)).await;
                        sleep(LOOK).await;
                        if !changes.borrow().is_node(&address) {
                            return;
                        }
                    }
                }))
            }
        }
    }

    /// Looks the servers up from time to time, until the handle is dropped.
    pub(super) async fn keep_current(servers: Weak<Self>) {
        loop {
            sleep(LOOK.mul_f64(1.0 + fastrand::f64() / 5.0)).await;
            match servers.upgrade() {
                Some(servers) => servers.refresh().await,
                None => return,
            }
        }
    }
}

/// Resolves when `is_elsewhere` is `true` for the value.
async fn until<T>(mut last: watch::Receiver<T>, is_elsewhere: impl FnMut(&T) -> bool) {
    if last.wait_for(is_elsewhere).await.is_err() {
        // The handle and all that it has opened were dropped.
        std::future::pending::<()>().await;
    }
}

/// Returns `true` if the response to `ROLE` is that of a replica. An error, such as that for a
/// missing permission, is taken for the response of a primary.
/// <https://redis.io/docs/latest/commands/role/>
pub(in crate::transport::redis) fn is_replica(role: &Value) -> bool {
    let Value::Array(parts) = role else {
        return false;
    };
    matches!(parts.first(), Some(Value::Text(role)) if role == "slave")
}
