//! The slot map of a Redis Cluster: the primary of each slot.
//! <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::{
    sync::{Mutex, watch},
    time::Instant,
};

use super::{
    address::{self, Address},
    login::{Login, Purpose, info_text},
    race,
    slot::{HashSlot, SLOTS},
};
use crate::{
    error::Error,
    transport::redis::{
        error,
        response::{Value, array, bytes, integer, unexpected},
    },
};

/// The minimum time between two attempts to read the map.
const MIN_READ_INTERVAL: Duration = Duration::from_millis(200);

/// A cluster: the nodes in its URL, and the slot map that a node last returned.
pub(super) struct Cluster {
    /// The nodes in the URL. Some of them may be down.
    seeds: Vec<Address>,
    map: watch::Sender<SlotMap>,
    /// The time of the last attempt to read the map. Locked during an attempt, so that concurrent
    /// callers wait for the attempt and use its result.
    last_read_at: Mutex<Option<Instant>>,
}

/// The primary of each slot, and all replicas.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct SlotMap {
    primaries: Vec<Arc<Address>>,
    replicas: Vec<Address>,
    /// For each slot, the position of its owner in `primaries`. Empty until the first owner is
    /// known.
    owners: Vec<Option<u16>>,
}

impl SlotMap {
    /// Returns the primary of a slot, or `None` if it is not known.
    pub(super) fn owner(&self, slot: HashSlot) -> Option<&Arc<Address>> {
        let position = (*self.owners.get(usize::from(slot.0))?)?;
        self.primaries.get(usize::from(position))
    }

    /// Returns `true` if the node at `address` is known as a primary.
    pub(super) fn is_primary(&self, address: &Address) -> bool {
        self.primaries.iter().any(|it| **it == *address)
    }

    /// Returns `true` if the node at `address` is known as a primary or a replica. A replica that
    /// has failed is not known, because `CLUSTER SLOTS` does not list it.
    pub(super) fn is_node(&self, address: &Address) -> bool {
        self.is_primary(address) || self.replicas.contains(address)
    }

    fn set_owner(&mut self, slot: HashSlot, address: Address) {
        let known = self.primaries.iter().position(|it| **it == address);
        let position = known.unwrap_or_else(|| {
            self.primaries.push(Arc::new(address));
            self.primaries.len() - 1
        });
        self.owners.resize(usize::from(SLOTS), None);
        self.owners[usize::from(slot.0)] = u16::try_from(position).ok();
    }
}

impl Cluster {
    pub(super) fn new(seeds: Vec<Address>) -> Self {
        Self {
            seeds,
            map: watch::Sender::new(SlotMap::default()),
            last_read_at: Mutex::new(None),
        }
    }

    pub(super) fn map(&self) -> watch::Ref<'_, SlotMap> {
        self.map.borrow()
    }

    pub(super) fn changes(&self) -> watch::Receiver<SlotMap> {
        self.map.subscribe()
    }

    /// Returns the primary of a slot. If the primary is unknown, returns any node: that node
    /// redirects commands to the primary.
    pub(super) fn owner(&self, slot: HashSlot) -> Address {
        let map = self.map();
        let known = map.owner(slot).or_else(|| map.primaries.first());
        known.map_or_else(|| self.seeds[0].clone(), |it| (**it).clone())
    }

    /// Records the node at `address` as the owner of a slot, after a redirection.
    pub(super) fn learn(&self, slot: HashSlot, address: &Address) {
        self.map.send_if_modified(|map| {
            let is_new = map.owner(slot).is_none_or(|known| **known != *address);
            if is_new {
                map.set_owner(slot, address.clone());
            }
            is_new
        });
    }

    /// Reads the map, unless the last attempt was less than [`MIN_READ_INTERVAL`] ago. Asks the
    /// known primaries and the seeds, one shortly after the other, and uses the first success. If
    /// all nodes fail, the known map stays in use.
    ///
    /// # Errors
    /// If all nodes fail and no map is known.
    pub(super) async fn refresh(&self, login: &Login) -> Result<(), Error> {
        let mut last_read_at = self.last_read_at.lock().await;
        if last_read_at.is_some_and(|at| at.elapsed() < MIN_READ_INTERVAL) {
            return Ok(());
        }
        let nodes = self.nodes_to_ask();
        let attempts = nodes.iter().map(|node| read_map(login, node).boxed());
        let result = race::first(attempts.collect()).await;
        *last_read_at = Some(Instant::now());
        match result {
            Ok(map) => {
                self.map.send_if_modified(|known| {
                    let is_new = *known != map;
                    *known = map;
                    is_new
                });
                Ok(())
            }
            Err(_) if !self.map().primaries.is_empty() => Ok(()),
            Err(errors) => {
                let seeds = self.list_seeds();
                let unreachable = format!("no node of the Redis Cluster answers at {seeds}");
                Err(race::combine_errors(errors, unreachable))
            }
        }
    }

    /// Returns the nodes to ask: the known primaries in random order, then the seeds that are not
    /// among them.
    fn nodes_to_ask(&self) -> Vec<Address> {
        let map = self.map();
        let mut nodes: Vec<_> = map.primaries.iter().map(|it| (**it).clone()).collect();
        drop(map);
        fastrand::shuffle(&mut nodes);
        let seeds = self.seeds.iter().filter(|it| !nodes.contains(it));
        let seeds: Vec<_> = seeds.cloned().collect();
        nodes.extend(seeds);
        nodes
    }

    /// Formats the seeds as a comma-separated list, for errors and log lines.
    pub(super) fn list_seeds(&self) -> String {
        address::comma_separated(&self.seeds)
    }
}

/// Reads the map from one node. Fails if the node reports that the cluster is down: the node may be
/// cut off from the other nodes, and then its map is old.
async fn read_map(login: &Login, node: &Address) -> Result<SlotMap, Error> {
    let mut connection = login.connection(node, Purpose::Commands).await?;
    let info = redis::cmd("CLUSTER").arg("INFO").to_owned();
    match login.ask(node, &mut connection, &info).await? {
        Value::ServerError(refusal) if refusal.code() == "ERR" => {
            return Err(Error::config(format!(
                "Redis at {node} is no node of a cluster; let the URL begin with redis:// or \
                 rediss://"
            ))
            .with_source(redis::RedisError::from(refusal)));
        }
        // Without permission for `CLUSTER INFO` the check is skipped.
        Value::ServerError(_) => {}
        info if info_text(info.clone()).contains("cluster_state:fail") => {
            return Err(Error::disconnected(format!(
                "the Redis Cluster is down, as its node at {node} says; `redis-cli --cluster check \
                 {node}` shows the reason"
            )));
        }
        _ => {}
    }
    let slots = redis::cmd("CLUSTER").arg("SLOTS").to_owned();
    let response = login.ask(node, &mut connection, &slots).await?;
    let map = decode_slots(error::check(response)?, node)?;
    if map.primaries.is_empty() {
        return Err(Error::disconnected(format!(
            "no node of the Redis Cluster at {node} serves a slot yet"
        )));
    }
    Ok(map)
}

/// Decodes the response to `CLUSTER SLOTS` from the node at `node`. It is a list of ranges of
/// slots: the first slot, the last slot, the primary, and the replicas.
/// <https://redis.io/docs/latest/commands/cluster-slots/>
pub(super) fn decode_slots(response: Value, node: &Address) -> Result<SlotMap, Error> {
    let mut map = SlotMap::default();
    for range in array(response)? {
        let mut parts = array(range)?.into_iter();
        let mut part = || {
            parts
                .next()
                .ok_or_else(|| unexpected("a range", "a part of one"))
        };
        let (first, last) = (integer(&part()?)?, integer(&part()?)?);
        let primary = node_address(part()?, node)?;
        let slot = |number: i64| u16::try_from(number).ok().filter(|it| *it < SLOTS);
        let (Some(first), Some(last)) = (slot(first), slot(last)) else {
            return Err(unexpected("numbers of slots", "other numbers"));
        };
        // The slots of an unknown primary stay without an owner.
        if let Some(primary) = primary {
            for slot in first..=last {
                map.set_owner(HashSlot(slot), primary.clone());
            }
        }
        for replica in parts {
            let replica = node_address(replica, node)?;
            let is_new = |it: &Address| !map.replicas.contains(it);
            map.replicas.extend(replica.filter(is_new));
        }
    }
    Ok(map)
}

/// Decodes the address of a node in a response from the node at `from`. Returns `None` if the
/// response marks the host as unknown.
fn node_address(node: Value, from: &Address) -> Result<Option<Address>, Error> {
    let mut parts = array(node)?.into_iter();
    let host = match parts.next().unwrap_or_default() {
        // Like an empty host, nil stands for the host of the node that has responded.
        Value::Nil => String::new(),
        host => String::from_utf8_lossy(&bytes(host)?).into_owned(),
    };
    let port = integer(&parts.next().unwrap_or_default())?;
    let port = u16::try_from(port).map_err(|_| unexpected("a port", "another number"))?;
    Ok(match &host[..] {
        "?" => None,
        "" => Some(Address::tcp(from.host(), port)),
        host => Some(Address::tcp(host, port)),
    })
}

/// Parses the slot and the address in a `MOVED` or `ASK` error from the node at `from`. Returns
/// `None` if the error is malformed.
pub(in crate::transport::redis) fn parse_redirection(
    details: &str,
    from: &Address,
) -> Option<(HashSlot, Address)> {
    let (slot, address) = details.trim().split_once(' ')?;
    let slot = slot.parse().ok().filter(|it| *it < SLOTS)?;
    match Address::parse(address)? {
        Address::Tcp(host, port) if host.is_empty() => {
            Some((HashSlot(slot), Address::tcp(from.host(), port)))
        }
        address => Some((HashSlot(slot), address)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::Text(bytes::Bytes::copy_from_slice(text.as_bytes()))
    }

    fn range(first: i64, last: i64, host: Value, port: i64) -> Value {
        let node = vec![host, Value::Int(port), text("id")];
        Value::Array(vec![
            Value::Int(first),
            Value::Int(last),
            Value::Array(node),
        ])
    }

    fn asked() -> Address {
        Address::tcp("here", 1)
    }

    #[test]
    fn each_slot_has_the_primary_of_its_range() {
        let response = Value::Array(vec![
            range(0, 99, text("a"), 7000),
            range(100, 16_383, text("b"), 7001),
        ]);
        let map = decode_slots(response, &asked()).unwrap();
        let owner = |slot| map.owner(HashSlot(slot)).map(ToString::to_string);
        assert_eq!(owner(99).as_deref(), Some("a:7000"));
        assert_eq!(owner(100).as_deref(), Some("b:7001"));
        assert!(map.is_primary(&Address::tcp("b", 7001)));
        assert!(!map.is_primary(&Address::tcp("b", 7000)));
    }

    #[test]
    fn replicas_are_nodes_without_a_slot() {
        let replica = Value::Array(vec![text("r"), Value::Int(7002), text("id")]);
        let Value::Array(mut parts) = range(0, 99, text("a"), 7000) else {
            unreachable!("it is a list")
        };
        parts.push(replica);
        let map = decode_slots(Value::Array(vec![Value::Array(parts)]), &asked()).unwrap();
        let replica = Address::tcp("r", 7002);
        assert!(map.is_node(&replica) && !map.is_primary(&replica));
        assert!(map.is_node(&Address::tcp("a", 7000)));
        assert!(!map.is_node(&Address::tcp("r", 7000)));
    }

    #[test]
    fn a_node_without_a_host_is_at_the_host_that_was_asked() {
        let response = Value::Array(vec![
            range(0, 0, Value::Nil, 7000),
            range(1, 1, text(""), 7001),
            range(2, 2, text("?"), 7002),
        ]);
        let map = decode_slots(response, &asked()).unwrap();
        let owner = |slot| map.owner(HashSlot(slot)).map(ToString::to_string);
        assert_eq!(owner(0).as_deref(), Some("here:7000"));
        assert_eq!(owner(1).as_deref(), Some("here:7001"));
        assert_eq!(owner(2), None);
    }

    #[test]
    fn a_response_of_another_form_is_an_error() {
        for response in [
            Value::Int(1),
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![range(0, 16_384, text("a"), 1)]),
            Value::Array(vec![range(0, 1, text("a"), 65_536)]),
            Value::Array(vec![Value::Array(vec![Value::Int(0), Value::Int(1)])]),
        ] {
            assert!(decode_slots(response, &asked()).is_err());
        }
    }

    #[test]
    fn a_redirection_names_a_slot_and_a_node() {
        let read = |details| parse_redirection(details, &asked());
        assert_eq!(
            read("3999 127.0.0.1:6381"),
            Some((HashSlot(3999), Address::tcp("127.0.0.1", 6381)))
        );
        assert_eq!(
            read("3999 :6381"),
            Some((HashSlot(3999), Address::tcp("here", 6381)))
        );
        assert_eq!(read("3999"), None);
        assert_eq!(read("16384 a:1"), None);
    }

    #[test]
    fn a_moved_slot_is_learnt_and_others_stay() {
        let cluster = Cluster::new(vec![asked()]);
        cluster.learn(HashSlot(5), &Address::tcp("a", 1));
        cluster.learn(HashSlot(6), &Address::tcp("b", 2));
        let mut changes = cluster.changes();
        cluster.learn(HashSlot(5), &Address::tcp("a", 1));
        assert!(!changes.has_changed().unwrap());
        cluster.learn(HashSlot(5), &Address::tcp("b", 2));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        assert_eq!(cluster.owner(HashSlot(5)), Address::tcp("b", 2));
        assert_eq!(cluster.owner(HashSlot(6)), Address::tcp("b", 2));
    }
}
