//! Identifies this consumer in its commands, by group and name. Derives its time limits from the
//! lease.

use std::time::Duration;

use redis::Cmd;

use super::in_flight::DeliveryKey;
use crate::{
    message::Name,
    transport::{
        Interest, host_name,
        redis::{entry::StreamEntryId, ids::random_id, keys::CONSUMER_PREFIX},
    },
};

/// A consumer of a group. The names of the group and of the consumer are the same on each stream.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) group: Name,
    /// The consumer's unique name.
    pub(super) consumer: String,
    pub(super) lease: Duration,
    pub(super) versions: KnownVersions,
}

/// The versions of payloads that the application knows, as `parking.lua` reads them.
#[derive(Debug, Clone)]
pub(super) struct KnownVersions {
    /// The highest version of any name. 0 if there is none.
    pub(super) newest_version: u32,
    /// Each name and its version, each followed by a line feed.
    pub(super) lines: String,
}

impl KnownVersions {
    pub(super) fn of(interest: &Interest) -> Self {
        let versions = interest.versions.iter();
        let lines = versions
            .clone()
            .map(|(name, version)| format!("{name}\n{version}\n"));
        Self {
            newest_version: versions.map(|(_, version)| *version).max().unwrap_or(0),
            lines: lines.collect(),
        }
    }
}

impl Member {
    pub(super) fn new(group: Name, lease: Duration, versions: KnownVersions) -> Self {
        Self {
            group,
            consumer: unique_consumer_name(lease),
            lease,
            versions,
        }
    }

    /// Returns the time between two scans of the pending entries, two ticks of the upkeep, or two
    /// heartbeats: a tenth of the lease, between 20 ms and a second.
    pub(super) fn interval(&self) -> Duration {
        (self.lease / 10).clamp(Duration::from_millis(20), Duration::from_secs(1))
    }

    /// Returns the longest time for which a read blocks.
    pub(super) fn max_block(&self) -> Duration {
        2 * self.interval()
    }

    /// Returns the longest time between two renewals of a healthy consumer.
    pub(super) fn max_between_renewals(&self) -> Duration {
        self.lease / 3 + self.interval()
    }

    /// Appends the arguments with which a script checks that a delivery is pending for this
    /// consumer.
    pub(super) fn add_fence_args<'a>(
        &self,
        cmd: &'a mut Cmd,
        (which, id): DeliveryKey,
    ) -> &'a mut Cmd {
        cmd.arg(self.group.as_str())
            .arg(&self.consumer)
            .arg(id)
            .arg(which.flag())
    }

    /// Returns a function that appends the arguments of `renew.lua` for these entries.
    pub(super) fn renewal_args(&self, ids: &[StreamEntryId]) -> impl FnOnce(&mut Cmd) {
        move |cmd| {
            cmd.arg(self.group.as_str()).arg(&self.consumer);
            for id in ids {
                cmd.arg(*id);
            }
        }
    }

    /// Makes an `XREADGROUP` of this consumer. If `from` is `>`, it reads new entries of each
    /// stream. If not, it reads the entries behind `from` that are pending for this consumer.
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

/// Makes a unique name from the lease, the host, the process and a random id. The `=` marks a name
/// that contains a lease, since no host name contains a `=`.
fn unique_consumer_name(lease: Duration) -> String {
    let host = host_name();
    let (process, id) = (std::process::id(), random_id());
    let lease = lease.as_millis();
    format!("{CONSUMER_PREFIX}lease={lease}ms-{host}-{process}-{id}")
}
