//! Follows a registry of streams: finds streams that senders have registered, and retires unused
//! streams.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use redis::Cmd;
use tokio::{sync::Notify, time::Instant};

use super::{blocked::BlockedRead, streams::StreamSet, upkeep_connection::UpkeepConnection};
use crate::{
    error::Error,
    message::Name,
    sync::lock,
    transport::redis::{response::integer, scripts},
};

/// A stream that was not registered again within this time may be retired. Senders register their
/// streams every 30 s.
const UNUSED_AFTER: Duration = Duration::from_secs(90);
/// The time between two reads of the whole registry. In between, only new registrations are read.
const FULL_READ_PERIOD: Duration = Duration::from_secs(30);
/// The time between two attempts to retire the same stream.
const RETIRE_RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// The maximum number of streams that one tick tries to retire.
const MAX_RETIRED: usize = 8;

/// A change of the served streams.
#[derive(Debug)]
pub(super) enum RegistryChange {
    /// A stream was registered.
    Found(Name),
    /// A stream was removed from the registry.
    Retired(Name),
}

/// The changes that the fetch has not applied yet.
#[derive(Debug, Default)]
pub(super) struct RegistryChanges {
    waiting: Mutex<Vec<RegistryChange>>,
    arrived: Notify,
}

impl RegistryChanges {
    pub(super) fn take(&self) -> Vec<RegistryChange> {
        std::mem::take(&mut *lock(&self.waiting))
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.waiting).is_empty()
    }

    /// Waits until changes have arrived. May wake spuriously.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }
}

/// Follows a registry for the upkeep: announces new streams to the fetch, and retires unused
/// streams.
pub(super) struct RegistryReader {
    key: String,
    streams: Arc<StreamSet>,
    changes: Arc<RegistryChanges>,
    /// The fetch's blocked read. Each change ends the read, so that the fetch applies the change
    /// immediately.
    blocked: Arc<BlockedRead>,
    known: HashMap<Name, KnownStream>,
    /// All registrations before this time are known. In milliseconds on Redis's clock.
    since: i64,
    /// The time of the last read of the whole registry.
    last_full_read: Option<Instant>,
}

/// A registered stream.
#[derive(Debug)]
struct KnownStream {
    /// The time of the last registration, in milliseconds on Redis's clock.
    registered_at: i64,
    /// The time at which this reader last tried to retire the stream, or saw a registration.
    tried_at: Instant,
}

impl RegistryReader {
    pub(super) fn new(
        key: String,
        streams: Arc<StreamSet>,
        changes: Arc<RegistryChanges>,
        blocked: Arc<BlockedRead>,
    ) -> Self {
        Self {
            key,
            streams,
            changes,
            blocked,
            known: HashMap::new(),
            since: 0,
            last_full_read: None,
        }
    }

    /// Returns the registry's arguments of a tick: its key, and the time from which registrations
    /// are listed.
    pub(super) fn request(&mut self) -> (String, i64) {
        let look_at_all = self
            .last_full_read
            .is_none_or(|last| last.elapsed() >= FULL_READ_PERIOD);
        if look_at_all {
            self.last_full_read = Some(Instant::now());
        }
        (self.key.clone(), if look_at_all { 0 } else { self.since })
    }

    /// Records the registrations that a tick has listed.
    pub(super) fn registered(&mut self, now: i64, registered: Vec<(Name, i64)>) {
        // The next tick reads this millisecond again: more streams may be registered in it.
        self.since = now - 1;
        let mut found = Vec::new();
        for (stream, time) in registered {
            let known = KnownStream {
                registered_at: time,
                tried_at: Instant::now(),
            };
            if self.known.insert(stream.clone(), known).is_none() {
                found.push(RegistryChange::Found(stream));
            }
        }
        self.announce(found);
    }

    /// Retires streams that no sender has registered lately and that hold no entries.
    pub(super) async fn retire(
        &mut self,
        server: &UpkeepConnection,
        now: i64,
    ) -> Result<(), Error> {
        let unused = UNUSED_AFTER.as_millis() as i64;
        let mut candidates: Vec<_> = (self.known.iter_mut())
            .filter(|(_, it)| {
                now - it.registered_at >= unused && it.tried_at.elapsed() >= RETIRE_RETRY_INTERVAL
            })
            .collect();
        candidates.truncate(MAX_RETIRED);
        let streams = self.streams.all();
        let mut retired = Vec::new();
        for (name, known) in candidates {
            known.tried_at = Instant::now();
            let found = streams.iter().find(|it| it.keys.stream == *name);
            let Some(stream) = found else { continue };
            let keys = [&*self.key, &stream.keys.stream_key, &stream.keys.stream_due];
            let response = server.script(&scripts::RETIRE, &keys, |cmd: &mut Cmd| {
                cmd.arg(name.as_str()).arg(unused).arg(stream.keys.base());
            });
            if integer(&response.await?)? == 1 {
                retired.push(name.clone());
            }
        }
        for name in &retired {
            self.known.remove(name);
        }
        self.announce(retired.into_iter().map(RegistryChange::Retired).collect());
        Ok(())
    }

    /// Passes changes to the fetch, and wakes it.
    fn announce(&self, changes: Vec<RegistryChange>) {
        if !changes.is_empty() {
            lock(&self.changes.waiting).extend(changes);
            self.changes.arrived.notify_one();
            self.blocked.end_once();
        }
    }
}
