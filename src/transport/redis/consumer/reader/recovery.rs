//! What came with an answer that was lost, and what came too late.

use std::collections::HashSet;

use redis::Cmd;
use tokio::time::Instant;

use super::{
    super::{
        entry::{self, Entry, EntryId, Lane},
        scripts,
        worker::Worker,
    },
    Reader,
};
use crate::{error::Error, transport::redis::pipeline::Retry};

/// How many pending entries are looked at in one step.
const STEP: usize = 100;

/// The looks for entries that are pending for this worker and not known to it. One is not enough:
/// a read that was on its way when its connection was lost may be carried out after it.
#[derive(Clone, Copy)]
pub(super) struct Recovery {
    pub(super) next: Instant,
    /// How long they go on: two leases from the first that the server has answered.
    until: Option<Instant>,
}

impl Reader {
    /// Looks for lost entries where nobody asks for any: what it finds is given back.
    pub(super) async fn look_unasked(&mut self) {
        let asked = Instant::now();
        match self.recover(STEP).await {
            Ok(entries) => {
                let found = self.worker.deliver(entries, asked);
                self.worker.inbox.put(found);
            }
            Err(error) => self.overcome(error).await,
        }
    }

    /// Whether it is time to look for lost entries.
    pub(super) fn must_look(&self) -> bool {
        let now = Instant::now();
        self.recovery.is_some_and(|recovery| recovery.next <= now)
    }

    /// Those of the entries that no other worker has taken over. An answer comes late when this
    /// process stood still: what it brings may have been handled by others meanwhile.
    pub(super) async fn still_ours(
        &mut self,
        mut entries: Vec<Entry>,
    ) -> Result<Vec<Entry>, Error> {
        let mut lost = HashSet::new();
        for lane in Lane::BOTH {
            let of_lane = entries.iter().filter(|entry| entry.lane == lane);
            let ids: Vec<_> = of_lane.map(|entry| entry.id).collect();
            for ids in ids.chunks(STEP) {
                match self.worker.renew(lane, ids).await {
                    Ok(ids) => lost.extend(ids.into_iter().map(|id| (lane, id))),
                    Err(error) => {
                        self.look_for_lost();
                        return Err(error);
                    }
                }
            }
        }
        entries.retain(|entry| !lost.contains(&(entry.lane, entry.id)));
        for (_, id) in lost {
            self.worker.counters.lost_leases.increment();
            tracing::warn!(%id, "a delivery was lost to another worker before it arrived");
        }
        Ok(entries)
    }

    /// An answer was lost, and perhaps entries with it.
    pub(super) fn look_for_lost(&mut self) {
        self.recovery = Some(Recovery {
            next: Instant::now(),
            until: None,
        });
    }

    /// Fetches again what is pending for this worker and not held by it: the answer that brought
    /// it was lost.
    pub(super) async fn recover(&mut self, room: usize) -> Result<Vec<Entry>, Error> {
        let worker = self.worker.clone();
        let room = room.min(self.part());
        let mut found = Vec::new();
        for lane in Lane::BOTH {
            let mut from = "-".to_owned();
            loop {
                let pending = worker.pending(lane, &from).await?;
                let looked_at = pending.len();
                if let Some(last) = pending.last() {
                    from = format!("({last}");
                }
                let unheld = pending
                    .into_iter()
                    .filter(|id| !worker.held.holds((lane, *id)));
                let unheld: Vec<_> = unheld.take(room - found.len()).collect();
                if !unheld.is_empty() {
                    found.extend(worker.fetch_again(lane, &unheld).await?);
                }
                if found.len() >= room {
                    // There may be more; the next fetch goes on.
                    return Ok(found);
                }
                if looked_at < STEP {
                    break;
                }
            }
        }
        let (now, lease) = (Instant::now(), worker.settings.lease);
        let until = self.recovery.and_then(|recovery| recovery.until);
        let until = until.unwrap_or(now + 2 * lease);
        self.recovery = (now < until).then_some(Recovery {
            next: now + lease / 3,
            until: Some(until),
        });
        Ok(found)
    }
}

impl Worker {
    /// The ids of some entries that are pending for this consumer.
    pub(super) async fn pending(&self, lane: Lane, from: &str) -> Result<Vec<EntryId>, Error> {
        let mut cmd = redis::cmd("XPENDING");
        cmd.arg(self.key_of(lane))
            .arg(self.keys.group.as_str())
            .arg(from)
            .arg("+")
            .arg(STEP)
            .arg(&self.consumer);
        entry::pending(self.pipeline.command(cmd, Retry::Never).await?)
    }

    /// Renews the leases of these entries. Returns those that are not ours.
    pub(super) async fn renew(&self, lane: Lane, ids: &[EntryId]) -> Result<Vec<EntryId>, Error> {
        let (keys, args) = ([self.key_of(lane)], self.renewal(ids));
        let answer = self
            .pipeline
            .script(&scripts::RENEW, &keys, args, Retry::Never)
            .await?;
        Ok(entry::renewed(answer)?.1)
    }

    pub(super) async fn fetch_again(
        &self,
        lane: Lane,
        ids: &[EntryId],
    ) -> Result<Vec<Entry>, Error> {
        let args = |cmd: &mut Cmd| {
            cmd.arg(self.keys.group.as_str())
                .arg(&self.consumer)
                .arg(lane.flag());
            for id in ids {
                cmd.arg(*id);
            }
        };
        let keys = [self.key_of(lane)];
        let answer = self
            .pipeline
            .script(&scripts::RECOVER, &keys, args, Retry::Never)
            .await?;
        entry::claimed(answer, lane)
    }
}
