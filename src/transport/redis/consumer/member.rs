//! This consumer's membership in the group: the names that its commands carry.

use std::time::Duration;

use redis::Cmd;

use crate::transport::redis::{
    entry::{EntryId, Lane},
    ids::unique,
    keys::Keys,
};

/// The first part of our consumers' names. A consumer with any other name renews no leases. The lease
/// by which a consumer renews follows: a claim is judged by that one (`scripts/holder.lua`).
pub(in crate::transport::redis) const CONSUMER_PREFIX: &str = "campanile-";

/// A consumer of a group.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) keys: Keys,
    /// The consumer's name, which no other consumer has.
    pub(super) consumer: String,
    pub(super) lease: Duration,
}

impl Member {
    pub(super) fn new(keys: Keys, lease: Duration) -> Self {
        Self {
            keys,
            consumer: consumer(lease),
            lease,
        }
    }

    /// The key of one of the group's two streams.
    pub(super) fn key_of(&self, lane: Lane) -> &str {
        match lane {
            Lane::Main => &self.keys.stream,
            Lane::Retry => &self.keys.retry,
        }
    }

    /// The time between two looks at the pending entries of others, and the longest time for which a
    /// read blocks: a second, or less with a short lease.
    pub(super) fn interval(&self) -> Duration {
        (self.lease / 10).clamp(Duration::from_millis(20), Duration::from_secs(1))
    }

    /// The longest time between two renewals with which a consumer counts as healthy.
    pub(super) fn max_between_renewals(&self) -> Duration {
        self.lease / 3 + self.interval()
    }

    /// The arguments of `renew.lua` for these entries.
    pub(super) fn renewal(&self, ids: &[EntryId]) -> impl FnOnce(&mut Cmd) {
        move |cmd| {
            cmd.arg(self.keys.group.as_str()).arg(&self.consumer);
            for id in ids {
                cmd.arg(*id);
            }
        }
    }

    /// `XREADGROUP` for this consumer, of pairs of a stream and an id.
    pub(super) fn read_group(
        &self,
        count: usize,
        block: Option<Duration>,
        streams: &[(&str, &str)],
    ) -> Cmd {
        let mut cmd = redis::cmd("XREADGROUP");
        cmd.arg("GROUP")
            .arg(self.keys.group.as_str())
            .arg(&self.consumer);
        cmd.arg("COUNT").arg(count);
        if let Some(block) = block {
            cmd.arg("BLOCK").arg(block.as_millis().max(1) as u64);
        }
        cmd.arg("STREAMS");
        for (stream, _) in streams {
            cmd.arg(stream);
        }
        for (_, from) in streams {
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
