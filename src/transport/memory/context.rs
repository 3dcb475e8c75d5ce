//! The parts of a broker that its groups use.

use std::sync::Arc;

use super::{
    clock::BrokerClock, control::Pauses, log::LogEntry, observer::ObserverSlot, records::Records,
    request::Requests,
};
use crate::{
    error::RpcError,
    reply::Reply,
    transport::{Counters, codec},
};

/// The clock, the counters, the requests, the observer, the records of tasks and the pauses of a
/// broker.
#[derive(Debug)]
pub(super) struct GroupContext {
    pub(super) clock: BrokerClock,
    pub(super) counters: Counters,
    pub(super) requests: Arc<Requests>,
    pub(super) observation: ObserverSlot,
    pub(super) records: Records,
    pub(super) pauses: Pauses,
}

impl GroupContext {
    pub(super) fn new() -> Self {
        Self {
            clock: BrokerClock::new(),
            counters: Counters::default(),
            requests: Arc::default(),
            observation: ObserverSlot::default(),
            records: Records::default(),
            pauses: Pauses::default(),
        }
    }

    /// Sends the reply if the entry is a request. Does not call `make_answer` otherwise.
    pub(super) fn answer(
        &self,
        entry: &LogEntry,
        make_answer: impl FnOnce() -> Result<Reply, RpcError>,
    ) {
        if entry.field("type").is_none_or(|kind| kind != "rpc") {
            return;
        }
        let address = entry.field(codec::REPLY_TO);
        let correlation_id = entry
            .field(codec::CORRELATION_ID)
            .and_then(|id| std::str::from_utf8(id).ok());
        match (address, correlation_id) {
            (Some(address), Some(id)) if Requests::is_allowed(address) => {
                let envelope = codec::encode_reply(id, &make_answer());
                self.requests.receive(&envelope, &self.counters);
            }
            _ => {
                self.counters.unanswerable.increment();
                tracing::warn!(id = %entry.id, "a reply was not sent: the request names no reply channel, or one that is not allowed");
            }
        }
    }
}
