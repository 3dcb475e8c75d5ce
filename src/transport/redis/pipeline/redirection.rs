//! The errors with which a node of a cluster names another node.

use redis::ServerError;

use crate::transport::redis::server::{Address, HashSlot, redirection};

/// An error with which a node names another node for a command.
pub(super) enum Redirection {
    /// The slot belongs to another node.
    Moved(HashSlot, Address),
    /// The key is on another node, which is about to get the slot.
    Ask(Address),
}

impl Redirection {
    /// Decodes an error of the node at `from`; `None` if the error is no redirection.
    pub(super) fn read(error: &ServerError, from: &Address) -> Option<Self> {
        let (slot, address) = redirection(error.details()?, from)?;
        match error.code() {
            "MOVED" => Some(Self::Moved(slot, address)),
            "ASK" => Some(Self::Ask(address)),
            _ => None,
        }
    }
}
