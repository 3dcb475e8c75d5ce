//! Receives sharded events from one node of a cluster, on the channels of its slots.

use std::{collections::HashMap, sync::Arc};

use redis::RedisError;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender},
    time::{Instant, timeout},
};

use super::{
    event_sink::{EventChannels, EventSink},
    events::CONFIRMATION_LIMIT,
};
use crate::{
    error::Error,
    transport::redis::{
        connection::{Notice, PubSub},
        error,
        server::{Address, Connector, HashSlot, parse_redirection},
    },
};

/// A slot whose channels have had no subscription since the time `since`.
#[derive(Debug, Clone, Copy)]
pub(super) struct LostSlot {
    pub(super) slot: HashSlot,
    pub(super) since: Instant,
}

/// A report about the slots of a node.
pub(super) enum ShardReport {
    /// The subscriptions were lost, for this reason.
    Lost(Vec<LostSlot>, String),
    /// The subscriptions could not be restored.
    Failed(Vec<LostSlot>, Error),
    Restored(Vec<LostSlot>),
}

/// The sharded channels of a source on a cluster.
pub(super) struct ShardChannels {
    pub(super) connector: Connector,
    /// The channels of each slot.
    pub(super) by_slot: HashMap<HashSlot, Vec<Vec<u8>>>,
}

impl ShardChannels {
    pub(super) fn new(connector: Connector, channels: &EventChannels) -> Self {
        let mut by_slot = HashMap::<_, Vec<_>>::new();
        for channel in channels.sharded.keys() {
            let slot = HashSlot::of(channel);
            by_slot.entry(slot).or_default().push(channel.clone());
        }
        Self { connector, by_slot }
    }

    /// Connects to a node.
    pub(super) async fn connect(&self, address: &Address) -> Result<PubSub, Error> {
        self.connector.for_primary(address.clone()).pubsub().await
    }

    /// Subscribes to the channels of a slot at the node with this address. The inner error is a
    /// refusal, after which the connection can still be used.
    pub(super) async fn subscribe(
        &self,
        connection: &mut PubSub,
        address: &Address,
        slot: HashSlot,
    ) -> Result<Result<(), Error>, Error> {
        let channels: Vec<_> = self.by_slot[&slot].iter().map(|name| &name[..]).collect();
        let node = address.to_string();
        let refusal =
            match timeout(CONFIRMATION_LIMIT, connection.subscribe_sharded(&channels)).await {
                Ok(Ok(())) => return Ok(Ok(())),
                Ok(Err(error)) if error.code().is_none() => {
                    return Err(error::unanswered(&node).with_source(error));
                }
                Ok(Err(refusal)) => refusal,
                Err(_) => return Err(error::unreachable(&node)),
            };
        if let Some((slot, owner)) = moved_to(&refusal, address) {
            self.connector.learn(slot, &owner);
        }
        Ok(Err(error::subscription_refused(&node, refusal)))
    }
}

/// Returns the slot and its owner from the refusal `MOVED` of a node. `None` for other refusals.
fn moved_to(refusal: &RedisError, from: &Address) -> Option<(HashSlot, Address)> {
    let is_moved = refusal.code() == Some("MOVED");
    parse_redirection(refusal.detail().filter(|_| is_moved)?, from)
}

/// The task that reads the connection to a node.
pub(super) struct ShardNode {
    pub(super) channels: Arc<ShardChannels>,
    pub(super) address: Address,
    pub(super) sink: EventSink,
    /// The slots with subscriptions at this node.
    pub(super) slots: Vec<HashSlot>,
    /// Receives the slots to subscribe to.
    pub(super) orders: UnboundedReceiver<Vec<LostSlot>>,
    pub(super) reports: UnboundedSender<ShardReport>,
}

impl ShardNode {
    /// Runs until the connection is lost, or has no subscription any more. Connects first if
    /// `connection` is `None`.
    pub(super) async fn run(mut self, connection: Option<PubSub>) {
        let error = match connection {
            Some(connection) => self.receive(connection).await,
            None => match self.channels.connect(&self.address).await {
                Ok(connection) => self.receive(connection).await,
                Err(error) => error,
            },
        };
        // Orders that were not carried out are reported as failed, so that `Assigner` assigns their
        // slots again.
        self.orders.close();
        let mut rest = Vec::new();
        while let Some(order) = self.orders.recv().await {
            rest.extend(order);
        }
        if !rest.is_empty() {
            self.report(ShardReport::Failed(rest, error));
        }
    }

    /// Runs until the connection is lost or has no subscription. Returns the reason.
    async fn receive(&mut self, mut connection: PubSub) -> Error {
        loop {
            tokio::select! {
                biased;
                Some(order) = self.orders.recv() => {
                    if let Err(error) = self.carry_out(order, &mut connection).await {
                        self.report_lost(&error.chain().to_string());
                        return error;
                    }
                }
                notice = connection.notice() => match notice {
                    Ok(Notice::Published(event)) => self.sink.hand_over(event, &mut connection),
                    Ok(Notice::Ended(channel)) => self.handle_end(&channel),
                    Err(error) => {
                        self.report_lost(&error.to_string());
                        return error::unanswered(&self.address.to_string()).with_source(error);
                    }
                },
            }
            if self.slots.is_empty() && self.orders.is_empty() {
                return Error::disconnected("the node has no slot with sharded channels any more");
            }
        }
    }

    /// Subscribes to the channels of these slots.
    async fn carry_out(
        &mut self,
        order: Vec<LostSlot>,
        connection: &mut PubSub,
    ) -> Result<(), Error> {
        let (mut restored, mut failed) = (Vec::new(), Vec::new());
        let (mut refusal, mut outcome) = (None, Ok(()));
        for lost in order {
            // Once the connection is lost, the rest of the order fails.
            if outcome.is_ok() {
                let (channels, address) = (&self.channels, &self.address);
                match channels.subscribe(connection, address, lost.slot).await {
                    Ok(Ok(())) => {
                        self.slots.push(lost.slot);
                        restored.push(lost);
                        continue;
                    }
                    Ok(Err(error)) => refusal = Some(error),
                    Err(error) => outcome = Err(error),
                }
            }
            failed.push(lost);
        }
        if !restored.is_empty() {
            self.report(ShardReport::Restored(restored));
        }
        if !failed.is_empty() {
            let lost = || error::unanswered(&self.address.to_string());
            self.report(ShardReport::Failed(failed, refusal.unwrap_or_else(lost)));
        }
        outcome
    }

    /// Handles the end of a subscription: the slot of the channel has moved to another node. The
    /// server sends a notice for each channel of the slot, and the first notice removes the slot.
    fn handle_end(&mut self, channel: &[u8]) {
        let slot = HashSlot::of(channel);
        if let Some(position) = self.slots.iter().position(|known| *known == slot) {
            self.slots.swap_remove(position);
            let since = Instant::now();
            let reason = "the slot has moved to another node".to_owned();
            self.report(ShardReport::Lost(vec![LostSlot { slot, since }], reason));
        }
    }

    fn report_lost(&mut self, reason: &str) {
        let since = Instant::now();
        let slots = self.slots.drain(..);
        let slots: Vec<_> = slots.map(|slot| LostSlot { slot, since }).collect();
        if !slots.is_empty() {
            self.report(ShardReport::Lost(slots, reason.to_owned()));
        }
    }

    fn report(&self, report: ShardReport) {
        // The send fails only if the source is closed.
        let _ = self.reports.send(report);
    }
}
