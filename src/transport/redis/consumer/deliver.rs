//! From entries to deliveries.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    answer::Address,
    entry::{Entry, EntryId, Lane, value_of},
    settle::{RedisSettle, Ticket},
    worker::{Grip, Suspect, Worker},
};
use crate::{
    error::RpcError,
    message::{Attempt, Deadline, Lease, MessageId},
    transport::{
        Delivery, SettleDelivery, Verdict,
        codec::{self, Decoded},
        redis::{connection::copy_if_small, msgpack},
    },
};

impl Worker {
    /// Makes deliveries of what a command that was sent at `asked` has fetched, and holds them.
    pub(super) fn deliver(
        self: &Arc<Self>,
        entries: Vec<Entry>,
        asked: Instant,
    ) -> Vec<Delivery<RedisSettle>> {
        let leases: Vec<_> = entries.iter().map(|_| Lease::new()).collect();
        let keys = entries.iter().map(|entry| (entry.lane, entry.id));
        self.held.add(keys.zip(leases.iter().cloned()), asked);
        // In one piece: to grow a list of this size moves much memory.
        let mut deliveries = Vec::with_capacity(entries.len());
        let held = entries.into_iter().zip(leases);
        deliveries.extend(held.filter_map(|(entry, lease)| self.delivery(entry, lease)));
        deliveries
    }

    fn delivery(self: &Arc<Self>, entry: Entry, lease: Lease) -> Option<Delivery<RedisSettle>> {
        let Entry {
            lane,
            id,
            text,
            deliveries,
            fields,
        } = entry;
        let grip = Grip::new(self, (lane, id), lease);
        let (text, origin, before) = match lane {
            Lane::Main => (text, id, 0),
            Lane::Retry => origin(&fields, text, id),
        };
        let mut ticket = Ticket {
            grip,
            origin,
            attempt: before.saturating_add(deliveries),
            address: None,
            _suspect: super::take_over::is_suspect(deliveries).then(|| Suspect::new(self)),
        };
        let fields = match lane {
            Lane::Main => fields,
            Lane::Retry => msgpack::unpacked(fields),
        };
        if ticket.attempt > self.settings.max_deliveries {
            // Not decoded: it may be what ends its workers.
            ticket.address = Address::of_fields(&fields).map(Box::new);
            self.give_up(ticket);
            return None;
        }
        match codec::decode(fields) {
            Ok(mut decoded) => {
                ticket.address = Address::of(&mut decoded).map(Box::new);
                let lease = ticket.grip.lease.clone();
                let attempt = ticket.attempt;
                let settle = RedisSettle::entry(ticket);
                let given = decoded.id.take();
                let mut message = self.dated(decoded, origin);
                copy_if_small(message.payload_mut());
                let parts = message.parts_mut();
                parts.stream = Some(self.keys.stream.clone());
                parts.group = Some(self.keys.group.clone());
                parts.id = given.or_else(|| MessageId::from_utf8(&text).ok());
                parts.attempt = Attempt(attempt);
                parts.lease = Some(lease);
                Some(Delivery::new(Ok(message), settle))
            }
            Err(undecodable) => {
                self.counters.undecodable.increment();
                ticket.address = Address::of_fields(&undecodable.fields).map(Box::new);
                Some(Delivery::new(Err(undecodable), RedisSettle::entry(ticket)))
            }
        }
    }

    /// Puts on what depends on Redis's clock.
    fn dated(&self, decoded: Decoded, origin: EntryId) -> crate::Message {
        let mut message = decoded.message;
        let parts = message.parts_mut();
        let accepted = Duration::from_millis(origin.milliseconds);
        parts.accepted_at = SystemTime::UNIX_EPOCH.checked_add(accepted);
        parts.deadline = decoded.time_to_live.map(|life| {
            // Counted from when the server took the message, on the server's own clock.
            Deadline::after(life.saturating_sub(self.clock.since(origin.milliseconds)))
        });
        message
    }

    /// Makes a dead letter of what was delivered too often.
    fn give_up(self: &Arc<Self>, ticket: Ticket) {
        let verdict = Verdict::Dead {
            reason: format!("delivered {} times and never settled", ticket.attempt - 1),
            answer: Some(RpcError::unavailable("the request could not be handled")),
        };
        let id = ticket.origin;
        tokio::spawn(async move {
            if let Err(error) = RedisSettle::entry(ticket).settle(verdict).await {
                tracing::warn!(%id, error = error.chain(), "a message could not be made a dead letter");
            }
        });
    }
}

/// What a retry stream's entry says about where its message comes from, and how often it was
/// delivered before.
fn origin(fields: &[(Bytes, Bytes)], text: Bytes, id: EntryId) -> (Bytes, EntryId, u32) {
    let before = value_of(fields, codec::ATTEMPTS)
        .and_then(|attempts| std::str::from_utf8(attempts).ok()?.parse().ok())
        .unwrap_or(0);
    let origin = value_of(fields, codec::ORIGIN)
        .and_then(|origin| Some((origin.clone(), EntryId::parse(origin)?)));
    let (text, id) = origin.unwrap_or((text, id));
    (text, id, before)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_origin_is_an_id_and_otherwise_the_entrys_own(
            fields in prop::collection::vec(("~[oax]", "[-0-9a]{0,24}"), 0..4),
        ) {
            let own = EntryId::parse(b"7-1").unwrap();
            let fields = fields.into_iter().map(|(field, value)| (field.into(), value.into()));
            let fields: Vec<(Bytes, Bytes)> = fields.collect();
            let (text, id, before) = origin(&fields, "7-1".into(), own);
            prop_assert_eq!(EntryId::parse(&text), Some(id));
            let first = |field| value_of(&fields, field).map(|value| std::str::from_utf8(value).unwrap());
            if first("~o").is_none_or(|origin| EntryId::parse(origin.as_bytes()).is_none()) {
                prop_assert_eq!(id, own);
            }
            prop_assert_eq!(before, first("~a").and_then(|before| before.parse().ok()).unwrap_or(0));
        }
    }
}
