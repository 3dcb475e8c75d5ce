//! The connections of a pipeline: one, or on a cluster one to each primary in use.
//!
//! A command goes to the primary of its slot. If a node responds with `MOVED` or `ASK`, it has not
//! run the command. The node's task then forwards the command and its completion to the right node.
//! If a slot moves while its commands wait for a connection, they are forwarded, too.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use tokio::{runtime::Handle, sync::watch, time::Instant};

use super::{
    Status,
    batch::CommandBatch,
    queue::{Submitter, submit_queue},
    task::PipelineTask,
};
use crate::{
    sync::lock,
    transport::{
        ConnectionState, Counters,
        redis::{
            connection::Connection,
            server::{Address, Connector, HashSlot},
        },
    },
};

/// The connections of a pipeline.
pub(super) enum Nodes {
    /// The connection to the only server.
    One(Arc<Node>),
    /// The connections to the primaries of a cluster.
    Cluster(Arc<ClusterNodes>),
}

/// The submitting end of one connection.
pub(super) struct Node {
    pub(super) queue: Submitter,
    pub(super) status: watch::Receiver<Status>,
    pub(super) connector: Connector,
}

/// The connections to the nodes of a cluster.
pub(super) struct ClusterNodes {
    connector: Connector,
    counters: Arc<Counters>,
    max_silence: Duration,
    /// The runtime on which the task of a node starts when the node is first used.
    runtime: Handle,
    nodes: Mutex<HashMap<Address, Arc<Node>>>,
}

impl Nodes {
    /// Starts the connection to one server. On a cluster, each connection starts with its first
    /// command.
    pub(super) fn start(
        connector: Connector,
        first: Option<Connection>,
        counters: Arc<Counters>,
        max_silence: Duration,
    ) -> Self {
        if !connector.is_cluster() {
            let (node, task) = Node::new(connector, first.is_some(), counters, max_silence, None);
            tokio::spawn(task.run(first));
            return Self::One(Arc::new(node));
        }
        Self::Cluster(Arc::new(ClusterNodes {
            connector,
            counters,
            max_silence,
            runtime: Handle::current(),
            nodes: Mutex::default(),
        }))
    }

    /// Returns the connection for commands on keys of this slot.
    pub(super) fn for_slot(&self, slot: HashSlot) -> Arc<Node> {
        match self {
            Self::One(node) => node.clone(),
            Self::Cluster(nodes) => nodes.node_at(&nodes.owner(slot)),
        }
    }

    /// Returns the connections that exist.
    pub(super) fn all(&self) -> Vec<Arc<Node>> {
        match self {
            Self::One(node) => vec![node.clone()],
            Self::Cluster(nodes) => lock(&nodes.nodes).values().cloned().collect(),
        }
    }
}

impl Node {
    fn new(
        connector: Connector,
        is_connected: bool,
        counters: Arc<Counters>,
        max_silence: Duration,
        forwarding: Option<Forwarding>,
    ) -> (Self, PipelineTask) {
        let (queue, batches) = submit_queue();
        let (status_sender, status) = watch::channel(match is_connected {
            true => Status {
                state: ConnectionState::Connected,
                cause: None,
                down_since: None,
            },
            false => Status {
                state: ConnectionState::Reconnecting,
                cause: None,
                down_since: Some(Instant::now()),
            },
        });
        let task = PipelineTask::new(
            connector.clone(),
            counters,
            max_silence,
            batches,
            status_sender,
            forwarding,
        );
        let node = Self {
            queue,
            status,
            connector,
        };
        (node, task)
    }
}

impl ClusterNodes {
    fn owner(&self, slot: HashSlot) -> Address {
        self.connector.owner(slot)
    }

    /// Returns the connection to the node at `address`. Starts it if there is none.
    fn node_at(self: &Arc<Self>, address: &Address) -> Arc<Node> {
        let mut nodes = lock(&self.nodes);
        if let Some(node) = nodes.get(address) {
            return node.clone();
        }
        let forwarding = Forwarding {
            nodes: Arc::downgrade(self),
            address: address.clone(),
        };
        let connector = self.connector.for_node(address.clone());
        let (counters, max_silence) = (self.counters.clone(), self.max_silence);
        let (node, task) = Node::new(connector, false, counters, max_silence, Some(forwarding));
        self.runtime.spawn(task.run(None));
        let node = Arc::new(node);
        nodes.insert(address.clone(), node.clone());
        node
    }
}

/// Forwards commands from the task of one node to the other nodes of the cluster.
pub(super) struct Forwarding {
    /// Weak, so that the tasks do not keep the connections open after the last handle is dropped.
    nodes: Weak<ClusterNodes>,
    /// The address of the task's own node.
    pub(super) address: Address,
}

impl Forwarding {
    /// Records that a slot has moved.
    pub(super) fn learn(&self, slot: HashSlot, address: &Address) {
        if let Some(nodes) = self.nodes.upgrade() {
            nodes.connector.learn(slot, address);
        }
    }

    /// Returns `true` if the task's node owns this slot in the last known map of slots.
    pub(super) fn owns(&self, slot: HashSlot) -> bool {
        let nodes = self.nodes.upgrade();
        nodes.is_none_or(|nodes| nodes.owner(slot) == self.address)
    }

    /// Queues a batch of one command for the node that owns the command's slot.
    pub(super) fn forward(&self, batch: CommandBatch) {
        if let Some(nodes) = self.nodes.upgrade() {
            let owner = nodes.owner(batch.slot(0));
            nodes.node_at(&owner).queue.forward(batch);
        }
    }

    /// Queues a batch of one command for the node at `address`.
    pub(super) fn forward_to(&self, address: &Address, batch: CommandBatch) {
        if let Some(nodes) = self.nodes.upgrade() {
            nodes.node_at(address).queue.forward(batch);
        }
    }

    /// Removes the task's node if it no longer serves any slot. Returns `true` if it was removed.
    pub(super) fn retire(&self) -> bool {
        let Some(nodes) = self.nodes.upgrade() else {
            return false;
        };
        let is_unused = !nodes.connector.is_primary(&self.address);
        if is_unused {
            lock(&nodes.nodes).remove(&self.address);
        }
        is_unused
    }
}
