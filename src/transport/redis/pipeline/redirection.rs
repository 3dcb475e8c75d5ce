//! The answers of a cluster's node that sends commands to another one.

use redis::ServerError;

use crate::transport::redis::server::{Address, HashSlot, redirection};

/// A node's answer that another one serves a slot.
pub(super) enum Redirection {
    /// The slot belongs to another node.
    Moved(HashSlot, Address),
    /// The key is on another node, which is about to take over the slot.
    Ask(Address),
}

impl Redirection {
    /// Reads an error of the node at `from`; `None` if it is another one.
    pub(super) fn read(error: &ServerError, from: &Address) -> Option<Self> {
        let (slot, address) = redirection(error.details()?, from)?;
        match error.code() {
            "MOVED" => Some(Self::Moved(slot, address)),
            "ASK" => Some(Self::Ask(address)),
            _ => None,
        }
    }
}
