//! Sharded events on a cluster: subscriptions that follow their slots.
//!
//! For each node that serves sharded channels of the source, a task reads a connection to the node
//! ([`shard_node`](super::shard_node)). A slot is *lost* while no connection subscribes to its
//! channels. Another task assigns each lost slot to the node that serves the slot now.

use std::{collections::HashMap, sync::Arc};

use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    event_sink::{EventChannels, EventGaps, EventSink},
    shard_node::{LostSlot, ShardChannels, ShardNode, ShardReport},
};
use crate::{
    error::Error,
    transport::redis::{
        connection::PubSub,
        server::{Address, Connector, HashSlot, Outage},
    },
};

/// A connection with the subscriptions to the sharded channels of a node.
pub(super) struct ShardConnection {
    address: Address,
    connection: PubSub,
    slots: Vec<HashSlot>,
}

/// The subscriptions of a source to sharded channels of a cluster.
pub(super) struct ShardSubscriber {
    channels: Arc<ShardChannels>,
}

impl ShardSubscriber {
    /// Makes a subscriber. `None` if `connector` is not for a cluster, or if no channel is sharded.
    pub(super) fn new(connector: Connector, channels: &EventChannels) -> Option<Self> {
        let is_needed = !channels.sharded.is_empty() && connector.is_cluster();
        is_needed.then(|| Self {
            channels: Arc::new(ShardChannels::new(connector, channels)),
        })
    }

    /// Subscribes to all channels, and waits for the confirmations of all nodes.
    pub(super) async fn subscribe(&self) -> Result<Vec<ShardConnection>, Error> {
        let channels = &self.channels;
        channels.connector.refresh().await;
        let slots = channels.by_slot.keys().copied();
        let mut connections = Vec::new();
        for (address, slots) in by_owner(&channels.connector, slots, |slot| *slot) {
            let mut connection = channels.connect(&address).await?;
            for slot in &slots {
                let subscribing = channels.subscribe(&mut connection, &address, *slot);
                subscribing.await??;
            }
            connections.push(ShardConnection {
                address,
                connection,
                slots,
            });
        }
        Ok(connections)
    }

    /// Hands events to `sink`, and reports gaps, until `closed` is cancelled.
    pub(super) async fn run(
        self,
        first: Vec<ShardConnection>,
        sink: EventSink,
        gaps: EventGaps,
        closed: CancellationToken,
    ) {
        let (reports, received) = unbounded_channel();
        let mut assigner = Assigner {
            channels: self.channels,
            sink,
            gaps,
            reports,
            nodes: HashMap::new(),
            tasks: JoinSet::new(),
            waiting: Vec::new(),
            retry_at: Instant::now(),
            missing: 0,
            outage: Outage::default(),
        };
        for node in first {
            assigner.start(node.address, Some(node.connection), node.slots);
        }
        tokio::select! {
            biased;
            () = assigner.run(received) => {}
            () = closed.cancelled() => {}
        }
    }
}

/// Groups slots by the nodes that serve them in the last known map of the cluster.
fn by_owner<T>(
    connector: &Connector,
    slots: impl IntoIterator<Item = T>,
    slot_of: impl Fn(&T) -> HashSlot,
) -> HashMap<Address, Vec<T>> {
    let mut owners = HashMap::<_, Vec<_>>::new();
    for slot in slots {
        let owner = connector.owner(slot_of(&slot));
        owners.entry(owner).or_default().push(slot);
    }
    owners
}

/// Assigns slots without subscriptions to the nodes that serve them.
struct Assigner {
    channels: Arc<ShardChannels>,
    sink: EventSink,
    gaps: EventGaps,
    reports: UnboundedSender<ShardReport>,
    /// The channel to the task of each node. It is closed if the task has ended.
    nodes: HashMap<Address, UnboundedSender<Vec<LostSlot>>>,
    tasks: JoinSet<()>,
    /// The slots that are assigned to nodes at `retry_at`.
    waiting: Vec<LostSlot>,
    retry_at: Instant,
    /// The number of slots without subscriptions.
    missing: usize,
    outage: Outage,
}

impl Assigner {
    async fn run(&mut self, mut reports: UnboundedReceiver<ShardReport>) {
        loop {
            tokio::select! {
                biased;
                Some(report) = reports.recv() => self.handle_report(report),
                Some(_) = self.tasks.join_next() => {}
                () = sleep_until(self.retry_at), if !self.waiting.is_empty() => {
                    self.assign().await;
                }
            }
        }
    }

    fn handle_report(&mut self, report: ShardReport) {
        match report {
            ShardReport::Lost(slots, reason) => {
                self.missing += slots.len();
                self.gaps.begin(slots.len());
                let what = "a subscription to sharded events";
                self.outage
                    .record_loss(&self.address_of(&slots), what, &reason);
                self.retry_later(slots);
            }
            ShardReport::Failed(slots, error) => {
                let what = "subscribe to sharded events";
                self.outage
                    .record_failed_attempt(&self.address_of(&slots), what, &error);
                self.retry_later(slots);
            }
            ShardReport::Restored(slots) => {
                self.missing -= slots.len();
                if self.missing == 0 {
                    self.outage.record_success();
                }
                let longest = slots.iter().map(|lost| lost.since.elapsed()).max();
                self.gaps.end(slots.len(), longest.unwrap_or_default());
            }
        }
    }

    /// Returns the address of the node that serves the first of these slots, for log lines.
    fn address_of(&self, slots: &[LostSlot]) -> String {
        let connector = &self.channels.connector;
        let owner = slots.first().map(|lost| connector.owner(lost.slot));
        owner.map_or_else(|| connector.address(), |owner| owner.to_string())
    }

    fn retry_later(&mut self, slots: Vec<LostSlot>) {
        if self.waiting.is_empty() {
            self.retry_at = Instant::now() + self.outage.delay();
        }
        self.waiting.extend(slots);
    }

    async fn assign(&mut self) {
        let connector = self.channels.connector.clone();
        connector.refresh().await;
        let waiting = std::mem::take(&mut self.waiting);
        for (address, slots) in by_owner(&connector, waiting, |lost| lost.slot) {
            // If the task of the node runs, sends it the slots. If not, starts a task.
            let slots = match self
                .nodes
                .get(&address)
                .map(|node| node.send(slots.clone()))
            {
                Some(Ok(())) => continue,
                _ => slots,
            };
            self.start(address.clone(), None, Vec::new());
            // The task has just begun, so its channel is open.
            let _ = self.nodes[&address].send(slots);
        }
        self.nodes.retain(|_, node| !node.is_closed());
    }

    /// Starts the task of a node.
    fn start(&mut self, address: Address, connection: Option<PubSub>, slots: Vec<HashSlot>) {
        let (orders, receiver) = unbounded_channel();
        let node = ShardNode {
            channels: self.channels.clone(),
            address: address.clone(),
            sink: self.sink.clone(),
            slots,
            orders: receiver,
            reports: self.reports.clone(),
        };
        self.tasks.spawn(node.run(connection));
        self.nodes.insert(address, orders);
    }
}
