//! Fetches entries again whose answer was lost, and drops entries whose answer came too late.

use std::{collections::HashSet, sync::Arc};

use redis::Cmd;
use tokio::time::Instant;

use crate::{
    error::Error,
    transport::redis::{
        consumer::{in_flight::InFlightTable, member::Member, report::Report},
        entry::{self, Entry, EntryId, Lane},
        pipeline::{Pipeline, Retry},
        scripts,
    },
};

/// The most pending entries that one step looks at.
pub(super) const MAX_LOOKED_AT: usize = 100;

/// Looks for entries that are pending for this consumer and not in flight. One look is not enough: a
/// read that was on its way when its connection was lost may be carried out after it.
pub(in crate::transport::redis::consumer) struct Recovery {
    member: Arc<Member>,
    pipeline: Pipeline,
    in_flight: Arc<InFlightTable>,
    report: Arc<Report>,
    looks: Option<Looks>,
}

#[derive(Clone, Copy)]
struct Looks {
    next: Instant,
    /// The end of the looks: two leases after the first that the server has answered.
    until: Option<Instant>,
}

impl Recovery {
    pub(in crate::transport::redis::consumer) fn new(
        member: Arc<Member>,
        pipeline: Pipeline,
        in_flight: Arc<InFlightTable>,
        report: Arc<Report>,
    ) -> Self {
        Self {
            member,
            pipeline,
            in_flight,
            report,
            looks: None,
        }
    }

    /// Begins to look: an answer was lost, and perhaps entries with it.
    pub(super) fn begin(&mut self) {
        self.looks = Some(Looks {
            next: Instant::now(),
            until: None,
        });
    }

    /// The time of the next look, if there is one.
    pub(super) fn next(&self) -> Option<Instant> {
        self.looks.map(|looks| looks.next)
    }

    pub(super) fn is_due(&self) -> bool {
        self.next().is_some_and(|next| next <= Instant::now())
    }

    /// Fetches again what is pending for this consumer and not in flight, at most `room` entries: the
    /// answer that brought them was lost.
    pub(super) async fn recover(&mut self, room: usize) -> Result<Vec<Entry>, Error> {
        let mut found = Vec::new();
        for lane in Lane::BOTH {
            let mut from = "-".to_owned();
            loop {
                let pending = self.pending(lane, &from).await?;
                let looked_at = pending.len();
                if let Some(last) = pending.last() {
                    from = format!("({last}");
                }
                let lost = pending
                    .into_iter()
                    .filter(|id| !self.in_flight.contains((lane, *id)));
                let lost: Vec<_> = lost.take(room - found.len()).collect();
                if !lost.is_empty() {
                    found.extend(self.fetch_again(lane, &lost).await?);
                }
                if found.len() >= room {
                    // There may be more; the next fetch goes on.
                    return Ok(found);
                }
                if looked_at < MAX_LOOKED_AT {
                    break;
                }
            }
        }
        let (now, lease) = (Instant::now(), self.member.lease);
        let until = self.looks.and_then(|looks| looks.until);
        let until = until.unwrap_or(now + 2 * lease);
        self.looks = (now < until).then_some(Looks {
            next: now + lease / 3,
            until: Some(until),
        });
        Ok(found)
    }

    /// Renews entries whose answer came late, and drops those that other consumers have by now: this
    /// process stood still, and they may have been handled meanwhile.
    pub(super) async fn still_ours(
        &mut self,
        mut entries: Vec<Entry>,
    ) -> Result<Vec<Entry>, Error> {
        let mut lost = HashSet::new();
        for lane in Lane::BOTH {
            let of_lane = entries.iter().filter(|entry| entry.lane == lane);
            let ids: Vec<_> = of_lane.map(|entry| entry.id).collect();
            for ids in ids.chunks(MAX_LOOKED_AT) {
                match self.renew(lane, ids).await {
                    Ok(ids) => lost.extend(ids.into_iter().map(|id| (lane, id))),
                    Err(error) => {
                        self.begin();
                        return Err(error);
                    }
                }
            }
        }
        entries.retain(|entry| !lost.contains(&(entry.lane, entry.id)));
        for (_, id) in lost {
            let message = "a delivery was lost to another worker before it arrived";
            self.report.lost(id, || (), message);
        }
        Ok(entries)
    }

    /// The ids of some entries that are pending for this consumer.
    async fn pending(&self, lane: Lane, from: &str) -> Result<Vec<EntryId>, Error> {
        let member = &self.member;
        let mut cmd = redis::cmd("XPENDING");
        cmd.arg(member.key_of(lane))
            .arg(member.keys.group.as_str())
            .arg(from)
            .arg("+")
            .arg(MAX_LOOKED_AT)
            .arg(&member.consumer);
        entry::pending(self.pipeline.command(cmd, Retry::Never).await?)
    }

    /// Renews the leases of these entries. Returns those that are not ours.
    async fn renew(&self, lane: Lane, ids: &[EntryId]) -> Result<Vec<EntryId>, Error> {
        let (keys, args) = ([self.member.key_of(lane)], self.member.renewal(ids));
        let answer = (self.pipeline)
            .script(&scripts::RENEW, &keys, args, Retry::Never)
            .await?;
        Ok(entry::renewed(answer)?.1)
    }

    async fn fetch_again(&self, lane: Lane, ids: &[EntryId]) -> Result<Vec<Entry>, Error> {
        let member = &self.member;
        let args = |cmd: &mut Cmd| {
            cmd.arg(member.keys.group.as_str())
                .arg(&member.consumer)
                .arg(lane.flag());
            for id in ids {
                cmd.arg(*id);
            }
        };
        let keys = [member.key_of(lane)];
        let answer = (self.pipeline)
            .script(&scripts::RECOVER, &keys, args, Retry::Never)
            .await?;
        entry::claimed(answer, lane)
    }
}
