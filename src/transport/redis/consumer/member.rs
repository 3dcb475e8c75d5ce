//! This consumer's membership in the group: the names that its commands carry.

use std::time::Duration;

use redis::Cmd;

use crate::{
    message::Name,
    transport::redis::{entry::EntryId, ids::unique},
};

/// The first part of our consumers' names. A consumer with any other name renews no leases. The lease
/// by which a consumer renews follows: a claim is judged by that one (`scripts/holder.lua`).
pub(in crate::transport::redis) const CONSUMER_PREFIX: &str = "campanile-";

/// A consumer of a group. On each stream that it serves the group and the consumer have the same names.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) group: Name,
    /// The consumer's name, which no other consumer has.
    pub(super) consumer: String,
    pub(super) lease: Duration,
}

impl Member {
    pub(super) fn new(group: Name, lease: Duration) -> Self {
        Self {
            group,
            consumer: consumer(lease),
            lease,
        }
    }

    /// The time between two looks at the pending entries of others: a second, or less with a short lease.
    pub(super) fn interval(&self) -> Duration {
        (self.lease / 10).clamp(Duration::from_millis(20), Duration::from_secs(1))
    }

    /// The longest time for which a read blocks, and the time between two ticks of the upkeep while the
    /// group has nothing pending.
    pub(super) fn max_block(&self) -> Duration {
        2 * self.interval()
    }

    /// The longest time between two renewals with which a consumer counts as healthy.
    pub(super) fn max_between_renewals(&self) -> Duration {
        self.lease / 3 + self.interval()
    }

    /// The arguments of `renew.lua` for these entries.
    pub(super) fn renewal(&self, ids: &[EntryId]) -> impl FnOnce(&mut Cmd) {
        move |cmd| {
            cmd.arg(self.group.as_str()).arg(&self.consumer);
            for id in ids {
                cmd.arg(*id);
            }
        }
    }

    /// `XREADGROUP` for this consumer: of each stream what is behind `from`, `>` for new entries.
    pub(super) fn read_group<'a>(
        &self,
        count: usize,
        block: Option<Duration>,
        streams: impl IntoIterator<Item = &'a str>,
        from: &str,
    ) -> Cmd {
        let mut count_of_streams = 0;
        let mut cmd = redis::cmd("XREADGROUP");
        cmd.arg("GROUP")
            .arg(self.group.as_str())
            .arg(&self.consumer);
        cmd.arg("COUNT").arg(count);
        if let Some(block) = block {
            cmd.arg("BLOCK").arg(block.as_millis().max(1) as u64);
        }
        cmd.arg("STREAMS");
        for stream in streams {
            cmd.arg(stream);
            count_of_streams += 1;
        }
        for _ in 0..count_of_streams {
            cmd.arg(from);
        }
        cmd
    }
}

/// A name that no other consumer has: the lease by which it renews, the host, the process, and a UUID
/// for consumers that these do not tell apart. No host's name has a `=`, so names without a lease are
/// recognised.
fn consumer(lease: Duration) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok());
    let host = host
        .as_deref()
        .map(str::trim)
        .filter(|host| !host.is_empty());
    let (process, id) = (std::process::id(), unique());
    let (lease, host) = (lease.as_millis(), host.unwrap_or("host"));
    format!("{CONSUMER_PREFIX}lease={lease}ms-{host}-{process}-{id}")
}
