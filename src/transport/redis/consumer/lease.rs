//! Renews the leases of what is in flight.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    health::{ClockReading, Health},
    in_flight::InFlightTable,
    member::Member,
    report::Report,
    upkeep::UpkeepConnection,
};
use crate::{
    error::Error,
    transport::redis::{
        entry::{self, EntryId, Lane},
        scripts,
    },
};

/// The most leases that one call renews.
const MAX_RENEWED: usize = 500;

pub(super) struct LeaseRenewer {
    pub(super) member: Arc<Member>,
    pub(super) in_flight: Arc<InFlightTable>,
    pub(super) health: Arc<Health>,
    pub(super) report: Arc<Report>,
}

/// The leases that are old enough to be renewed, oldest entry first.
pub(super) struct Due([(Lane, Vec<EntryId>); 2]);

impl Due {
    /// The leases that a tick renews: on the retry stream, and on the stream.
    pub(super) fn first(&self) -> [&[EntryId]; 2] {
        let [(_, retry), (_, main)] = &self.0;
        let on_retry = retry.len().min(MAX_RENEWED);
        let on_main = main.len().min(MAX_RENEWED - on_retry);
        [&retry[..on_retry], &main[..on_main]]
    }

    fn rest(&self) -> impl Iterator<Item = (Lane, &[EntryId])> {
        let renewed = self.first().map(<[_]>::len);
        let lanes = self.0.iter().zip(renewed);
        lanes.flat_map(|((lane, ids), from)| {
            let chunks = ids[from..].chunks(MAX_RENEWED);
            chunks.map(|ids| (*lane, ids))
        })
    }
}

impl LeaseRenewer {
    /// The leases that were not renewed for a third of the lease.
    pub(super) fn due(&self) -> Due {
        let age = self.member.lease / 3;
        Due(Lane::BOTH.map(|lane| (lane, self.in_flight.older_than(age, lane))))
    }

    /// Notes what a tick has renewed, and renews the rest.
    pub(super) async fn ticked(
        &self,
        server: &UpkeepConnection,
        due: &Due,
        reading: ClockReading,
        lost: Vec<(Lane, EntryId)>,
    ) -> Result<(), Error> {
        for (lane, ids) in Lane::BOTH.into_iter().zip(due.first()) {
            self.in_flight.renewed(lane, ids, reading.asked);
        }
        self.lose(lost);
        for (lane, ids) in due.rest() {
            let asked = Instant::now();
            let (keys, args) = ([self.member.key_of(lane)], self.member.renewal(ids));
            let answer = server.script(&scripts::RENEW, &keys, args).await?;
            let lost = entry::renewed(answer)?.1;
            self.in_flight.renewed(lane, ids, asked);
            self.lose(lost.into_iter().map(|id| (lane, id)));
        }
        let max_between = self.member.max_between_renewals();
        let tick = self.member.interval();
        self.health.renewed(reading, max_between, tick);
        Ok(())
    }

    fn lose(&self, lost: impl IntoIterator<Item = (Lane, EntryId)>) {
        for (lane, id) in lost {
            if let Some(lease) = self.in_flight.lose((lane, id)) {
                let message = "a delivery was lost to another worker";
                self.report.lost(id, || lease.lose(), message);
            }
        }
    }
}
