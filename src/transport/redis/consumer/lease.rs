//! Renews the leases of deliveries in flight.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    health::{ClockReading, RenewalHealth},
    in_flight::InFlightTable,
    member::Member,
    report::Report,
    streams::{ServedStream, StreamSet},
    upkeep_connection::UpkeepConnection,
};
use crate::{
    error::Error,
    transport::{
        TaskState,
        redis::{
            entry::{self, StreamEntryId, WhichStream},
            response::{bytes, fixed_array},
            scripts,
        },
    },
};

/// The maximum number of leases that one command renews.
const MAX_RENEWED: usize = 500;

/// Renews the leases of one consumer's deliveries.
pub(super) struct LeaseRenewer {
    pub(super) member: Arc<Member>,
    pub(super) streams: Arc<StreamSet>,
    pub(super) in_flight: Arc<InFlightTable>,
    pub(super) health: Arc<RenewalHealth>,
    pub(super) report: Arc<Report>,
}

/// The leases that are due to be renewed, grouped by stream and sorted by entry id.
pub(super) struct DueLeases(Vec<(WhichStream, Vec<StreamEntryId>)>);

impl DueLeases {
    /// Splits the leases: returns those that one command renews, and the rest.
    pub(super) fn split(self) -> (Self, Self) {
        let (mut first, mut rest, mut room) = (Vec::new(), Vec::new(), MAX_RENEWED);
        for (which, mut ids) in self.0 {
            let behind = ids.split_off(ids.len().min(room));
            room -= ids.len();
            for (part, ids) in [(&mut first, ids), (&mut rest, behind)] {
                if !ids.is_empty() {
                    part.push((which, ids));
                }
            }
        }
        (Self(first), Self(rest))
    }

    /// Returns `true` if there are leases on this stream.
    pub(super) fn has(&self, stream: &ServedStream) -> bool {
        let both = stream.both_streams();
        self.0.iter().any(|(which, _)| both.contains(which))
    }

    /// Returns the leases on a primary or a retry stream.
    pub(super) fn on_stream(&self, which: WhichStream) -> &[StreamEntryId] {
        let found = self.0.iter().find(|(of, _)| *of == which);
        found.map_or(&[], |(_, ids)| ids)
    }
}

impl LeaseRenewer {
    /// Returns the leases to renew now. The lease of a task whose status is recorded is always due.
    pub(super) fn due(&self) -> DueLeases {
        DueLeases(self.in_flight.due_for_renewal(self.member.lease / 3))
    }

    /// Records the leases that a tick of the upkeep has renewed, and renews the rest.
    pub(super) async fn handle_tick(
        &self,
        server: &UpkeepConnection,
        (renewed, rest): (DueLeases, DueLeases),
        reading: ClockReading,
        lost: Vec<(WhichStream, StreamEntryId)>,
    ) -> Result<(), Error> {
        for (which, ids) in &renewed.0 {
            self.in_flight.mark_renewed(*which, ids, reading.sent_at);
        }
        self.report_lost(server, lost).await;
        for (which, ids) in rest.0 {
            let Some(stream) = self.streams.get(which.index()) else {
                continue;
            };
            for page in ids.chunks(MAX_RENEWED) {
                let sent_at = Instant::now();
                let (keys, args) = ([stream.key_of(which)], self.member.renewal_args(page));
                let response = server.script(&scripts::RENEW, &keys, args).await?;
                let lost = entry::decode_renewed(response)?.1;
                self.in_flight.mark_renewed(which, page, sent_at);
                let lost = lost.into_iter().map(|id| (which, id));
                self.report_lost(server, lost).await;
            }
        }
        let max_between = self.member.max_between_renewals();
        let tick = self.member.interval();
        self.health.renewed(reading, max_between, tick);
        Ok(())
    }

    /// Reports deliveries that are no longer pending for this consumer, as cancelled or as lost.
    async fn report_lost(
        &self,
        server: &UpkeepConnection,
        lost: impl IntoIterator<Item = (WhichStream, StreamEntryId)>,
    ) {
        for (which, id) in lost {
            let Some((lease, task)) = self.in_flight.lose((which, id)) else {
                continue;
            };
            let cancelled = match (task, self.streams.get(which.index())) {
                (Some(task), Some(stream)) => cancel_reason(server, &stream, &task).await,
                _ => None,
            };
            match cancelled {
                Some(reason) => {
                    tracing::info!(%id, reason, "a running task was cancelled");
                    lease.cancel(reason);
                }
                None => {
                    let message = "a delivery was lost to another worker";
                    self.report.lost(id, || lease.lose(), message);
                }
            }
        }
    }
}

/// Returns the reason why a task was cancelled. `None` if it was not cancelled, or if the server
/// does not answer in time.
async fn cancel_reason(
    server: &UpkeepConnection,
    stream: &ServedStream,
    task: &str,
) -> Option<String> {
    let mut record = redis::cmd("HMGET");
    record
        .arg(stream.keys.task(task))
        .arg("state")
        .arg("reason");
    let [state, reason] = fixed_array(server.command(record).await.ok()?).ok()?;
    let text = |value| Some(String::from_utf8_lossy(&bytes(value).ok()?).into_owned());
    (text(state)? == TaskState::Cancelled.as_str()).then_some(text(reason)?)
}
