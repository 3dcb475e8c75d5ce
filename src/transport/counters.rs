//! What happened to deliveries, counted: nothing is dropped in silence.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// How often each thing happened in this process since the handle was made. The clones of a
        /// handle count together.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counts {
            /// Each of them with its field's name: for exporters, which so miss none.
            pub fn by_name(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }
        }

        /// The live form of [`Counts`].
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
    /// Messages that the server took from this process.
    sent,
    /// Deliveries from the stream.
    delivered,
    /// Deliveries that were acknowledged as handled.
    done,
    /// Deliveries that were scheduled for redelivery.
    redelivered,
    /// Deliveries that were given back before they were started.
    given_back,
    /// Messages that became dead letters.
    dead,
    /// Dead letters that were dropped to make room for newer ones.
    dead_dropped,
    /// Messages that were dropped because a handler or a layer asked for it.
    discarded,
    /// Messages that were dropped because their deadline had passed before they were started.
    expired,
    /// Messages of unknown names that were left to the stream's other groups.
    ignored,
    /// Entries that were no message.
    undecodable,
    /// Entries that were deleted from the stream before they were settled.
    deleted,
    /// Deliveries that were taken over from a worker that was not heard of.
    taken_over,
    /// Deliveries that were lost to another worker.
    lost_leases,
    /// Events received.
    events,
    /// Events that were dropped because too many waited.
    events_dropped,
    /// Replies that could not be sent: no address, or one that is not allowed.
    unanswerable,
    /// Replies that no request waited for: too late, sent twice, or not ours.
    stray_replies,
    /// Replies that were not understood.
    bad_replies,
    /// Connections that were made again.
    reconnects,
}

/// One count.
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
    fn each_count_is_there_by_its_name() {
        let counters = Counters::default();
        counters.sent.increment();
        counters.reconnects.add(2);
        let counts = counters.snapshot();
        let by_name: Vec<_> = counts.by_name().collect();
        assert_eq!(by_name.first(), Some(&("sent", 1)));
        assert_eq!(by_name.last(), Some(&("reconnects", 2)));
        // As many as there are fields.
        assert_eq!(by_name.len() * size_of::<u64>(), size_of::<Counts>());
    }
}
