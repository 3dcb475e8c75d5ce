//! Decodes redirections: the errors by which a node of a cluster names another node.

use redis::ServerError;

use crate::transport::redis::server::{Address, HashSlot, parse_redirection};

/// An error that names the node to which a command must be sent.
pub(super) enum Redirection {
    /// The slot belongs to another node.
    Moved(HashSlot, Address),
    /// The slot is about to move, and the key is already on another node.
    Ask(Address),
}

impl Redirection {
    /// Decodes an error of the node at `from`; `None` if the error is no redirection.
    pub(super) fn decode(error: &ServerError, from: &Address) -> Option<Self> {
        let (slot, address) = parse_redirection(error.details()?, from)?;
        match error.code() {
            "MOVED" => Some(Self::Moved(slot, address)),
            "ASK" => Some(Self::Ask(address)),
            _ => None,
        }
    }
}
