//! Counters of messages and deliveries.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The numbers of messages, deliveries and events in this process since the handle was
        /// created. The clones of a handle share these counts.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counts {
            /// Returns every count with the name of its field, for exporters.
            pub fn by_name(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }
        }

        /// The counters that [`Counts`] is a snapshot of.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Counts {
                Counts {
                    $($name: self.$name.0.load(Ordering::Relaxed),)*
                }
            }
        }
    };
}

counters! {
    /// Messages that the server has accepted from this process.
    sent,
    /// Deliveries of tasks and requests.
    delivered,
    /// Deliveries that were acknowledged as handled.
    done,
    /// Deliveries that were scheduled for redelivery.
    redelivered,
    /// Deliveries that were scheduled for redelivery and did not count as attempts, for example
    /// because of overload.
    uncounted,
    /// Deliveries that were parked. They wait for a permit of a shared limit, or until a paused
    /// message name is resumed.
    parked,
    /// Deliveries that were released before they were started.
    released,
    /// Messages that became dead letters.
    dead,
    /// Dead letters that were dropped because the group had more than `max_dead_letters`.
    dead_dropped,
    /// Messages that were discarded by a handler or a layer.
    discarded,
    /// Messages that expired before they were started.
    expired,
    /// Messages without a route that were left to the other groups of the stream.
    ignored,
    /// Entries that could not be decoded.
    undecodable,
    /// Entries that were deleted from the stream before they were settled.
    deleted,
    /// Deliveries that were claimed from another worker.
    claimed,
    /// Deliveries of this process that another worker has claimed.
    lost_leases,
    /// Received events.
    events,
    /// Events that were dropped because the buffer was full.
    events_dropped,
    /// Replies that could not be sent, because the request has no reply channel, or its reply
    /// channel is not allowed.
    unanswerable,
    /// Replies for which no request waits: late, duplicate or foreign ones.
    stray_replies,
    /// Replies that could not be decoded.
    bad_replies,
    /// New connections after a connection was lost.
    reconnects,
}

/// A counter.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn increment(&self) {
        self.add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_count_has_the_name_of_its_field() {
        let counters = Counters::default();
        counters.sent.increment();
        counters.reconnects.add(2);
        let counts = counters.snapshot();
        let by_name: Vec<_> = counts.by_name().collect();
        assert_eq!(by_name.first(), Some(&("sent", 1)));
        assert_eq!(by_name.last(), Some(&("reconnects", 2)));
        // The number of names is the number of fields.
        assert_eq!(by_name.len() * size_of::<u64>(), size_of::<Counts>());
    }
}
