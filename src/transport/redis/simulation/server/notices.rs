//! Client tracking: the notices of written keys.
//! <https://redis.io/docs/latest/develop/reference/client-side-caching/>

use std::collections::{BTreeMap, BTreeSet};

use super::{ClientId, Reply};

/// The keys that connections have read, and the notices that are sent late or not at all. Times are
/// those of the simulation's clock.
#[derive(Default)]
pub(in super::super) struct Notices {
    /// The connections with tracking.
    tracking: BTreeSet<ClientId>,
    /// For each key the connections that have read it since it was last written.
    readers: BTreeMap<Vec<u8>, BTreeSet<ClientId>>,
    /// The notices that wait until `late_until`.
    late: Vec<(ClientId, Reply)>,
    pub(in super::super) lost_until: u64,
    pub(in super::super) late_until: u64,
    pub(in super::super) double_until: u64,
}

impl Notices {
    pub(super) fn track(&mut self, client: ClientId) {
        self.tracking.insert(client);
    }

    /// Records that a connection has read these keys.
    pub(super) fn remember(&mut self, client: ClientId, keys: &[Vec<u8>]) {
        if self.tracking.contains(&client) {
            for key in keys {
                self.readers.entry(key.clone()).or_default().insert(client);
            }
        }
    }

    /// Forgets who has read the written keys. Returns the notices that are sent at this time.
    pub(super) fn take(&mut self, written: BTreeSet<Vec<u8>>, now: u64) -> Vec<(ClientId, Reply)> {
        let mut notices = Vec::new();
        for key in written {
            for client in self.readers.remove(&key).unwrap_or_default() {
                let keys = Reply::List(vec![Reply::bulk(&key[..])]);
                let notice = Reply::Push(vec![Reply::bulk("invalidate"), keys]);
                match () {
                    () if now < self.lost_until => {}
                    () if now < self.late_until => self.late.push((client, notice)),
                    () => {
                        if now < self.double_until {
                            notices.push((client, notice.clone()));
                        }
                        notices.push((client, notice));
                    }
                }
            }
        }
        if now >= self.late_until {
            notices.append(&mut self.late);
        }
        notices
    }

    pub(super) fn forget(&mut self, clients: &BTreeSet<ClientId>) {
        let is_open = |client: &ClientId| !clients.contains(client);
        self.tracking.retain(is_open);
        self.late.retain(|(client, _)| is_open(client));
        self.readers.retain(|_, readers| {
            readers.retain(is_open);
            !readers.is_empty()
        });
    }

    pub(super) fn clear(&mut self) {
        self.tracking.clear();
        self.readers.clear();
        self.late.clear();
    }
}
