//! Fetches entries again whose response was lost, and drops entries whose response came too late.

use std::{collections::HashSet, convert::Infallible, sync::Arc};

use futures_util::future::join_all;
use redis::Cmd;
use tokio::time::{Instant, sleep};

use crate::{
    error::Error,
    transport::redis::{
        connection::Progress,
        consumer::{
            in_flight::InFlightTable,
            member::Member,
            report::Report,
            streams::{ServedStream, StreamSet},
        },
        entry::{self, Entry, StreamEntryId, WhichStream},
        pipeline::{Pipeline, Resend},
        scripts,
    },
};

/// The most pending entries that one step reads.
pub(super) const MAX_LOOKED_AT: usize = 100;

/// Fetches entries again that are *lost*: pending for this consumer and not in flight. It searches
/// several times, since the server may run a read after the connection that sent it was lost.
pub(in crate::transport::redis::consumer) struct Recovery {
    member: Arc<Member>,
    streams: Arc<StreamSet>,
    pipeline: Pipeline,
    in_flight: Arc<InFlightTable>,
    report: Arc<Report>,
    schedule: Option<Schedule>,
}

/// The times of the steps of a recovery.
#[derive(Clone, Copy)]
struct Schedule {
    next: Instant,
    /// The end of the recovery: two leases after the first step that succeeded.
    until: Option<Instant>,
}

impl Recovery {
    pub(in crate::transport::redis::consumer) fn new(
        member: Arc<Member>,
        streams: Arc<StreamSet>,
        pipeline: Pipeline,
        in_flight: Arc<InFlightTable>,
        report: Arc<Report>,
    ) -> Self {
        Self {
            member,
            streams,
            pipeline,
            in_flight,
            report,
            schedule: None,
        }
    }

    /// Starts a recovery, after a response was lost that may have had entries.
    pub(super) fn begin(&mut self) {
        self.schedule = Some(Schedule {
            next: Instant::now(),
            until: None,
        });
    }

    /// Returns the time of the next step; `None` if no recovery runs.
    pub(super) fn next(&self) -> Option<Instant> {
        self.schedule.map(|schedule| schedule.next)
    }

    pub(super) fn is_due(&self) -> bool {
        self.next().is_some_and(|next| next <= Instant::now())
    }

    /// Runs one step: fetches at most `room` lost entries again, and plans the next step.
    pub(super) async fn recover(&mut self, room: usize) -> Result<Vec<Entry>, Error> {
        let mut found = Vec::new();
        let streams = self.streams.all();
        let both = streams
            .iter()
            .flat_map(|stream| stream.both().map(|which| (stream, which)));
        // Searches all streams concurrently, and fetches only as much as there is room for.
        let lost = join_all(both.map(async |(stream, which)| {
            let lost = self.lost(stream, which, room).await;
            lost.map(|lost| (stream, which, lost))
        }));
        for lost in lost.await {
            let (stream, which, mut lost) = lost?;
            lost.truncate(room - found.len());
            if !lost.is_empty() {
                found.extend(self.fetch_again(stream, which, &lost).await?);
            }
            if found.len() >= room {
                // There may be more; the next fetch continues.
                return Ok(found);
            }
        }
        let (now, lease) = (Instant::now(), self.member.lease);
        let until = self.schedule.and_then(|schedule| schedule.until);
        let until = until.unwrap_or(now + 2 * lease);
        self.schedule = (now < until).then_some(Schedule {
            next: now + lease / 3,
            until: Some(until),
        });
        Ok(found)
    }

    /// Renews entries whose response came late, and drops those that now belong to other consumers.
    /// A response comes late if this process was suspended. Other workers may have handled the
    /// entries meanwhile.
    pub(super) async fn still_ours(
        &mut self,
        mut entries: Vec<Entry>,
    ) -> Result<Vec<Entry>, Error> {
        let mut lost = HashSet::new();
        for of_stream in entries.chunk_by(|a, b| a.which == b.which) {
            let which = of_stream[0].which;
            let Some(stream) = self.streams.get(which.index()) else {
                continue;
            };
            let ids: Vec<_> = of_stream.iter().map(|entry| entry.id).collect();
            for ids in ids.chunks(MAX_LOOKED_AT) {
                match self.renew(&stream, which, ids).await {
                    Ok(ids) => lost.extend(ids.into_iter().map(|id| (which, id))),
                    Err(error) => {
                        self.begin();
                        return Err(error);
                    }
                }
            }
        }
        entries.retain(|entry| !lost.contains(&(entry.which, entry.id)));
        for (_, id) in lost {
            let message = "a delivery was lost to another worker before it arrived";
            self.report.lost(id, || (), message);
        }
        Ok(entries)
    }

    /// Renews the entries of a response while it arrives, since they are pending for this consumer
    /// and not in the in-flight table yet. Never returns.
    pub(super) async fn renew_arriving(&self, progress: &Progress) -> Infallible {
        let before = progress.bytes();
        loop {
            sleep(self.member.lease / 3).await;
            if progress.bytes() == before {
                continue;
            }
            for stream in self.streams.all().iter() {
                for which in stream.both() {
                    let renewed = async {
                        let ids = self.lost(stream, which, MAX_LOOKED_AT).await?;
                        self.renew(stream, which, &ids).await
                    };
                    if let Err(error) = renewed.await {
                        let error = error.chain();
                        tracing::debug!(error, "entries that are arriving could not be renewed");
                    }
                }
            }
        }
    }

    /// Returns the lost entries on a primary or a retry stream. Stops searching after about `max`
    /// entries.
    async fn lost(
        &self,
        stream: &ServedStream,
        which: WhichStream,
        max: usize,
    ) -> Result<Vec<StreamEntryId>, Error> {
        let (mut lost, mut from) = (Vec::new(), "-".to_owned());
        loop {
            let pending = match self.pending(stream, which, &from).await {
                // Entries of a stream that cannot be read cannot be fetched again.
                Err(_) if stream.is_failing() => return Ok(lost),
                pending => pending?,
            };
            let looked_at = pending.len();
            if let Some(last) = pending.last() {
                from = format!("({last}");
            }
            let is_lost = |id: &StreamEntryId| !self.in_flight.contains((which, *id));
            lost.extend(pending.into_iter().filter(is_lost));
            if looked_at < MAX_LOOKED_AT || lost.len() >= max {
                return Ok(lost);
            }
        }
    }

    /// Returns the ids of entries that are pending for this consumer, from `from` on, at most
    /// [`MAX_LOOKED_AT`].
    async fn pending(
        &self,
        stream: &ServedStream,
        which: WhichStream,
        from: &str,
    ) -> Result<Vec<StreamEntryId>, Error> {
        let mut cmd = redis::cmd("XPENDING");
        cmd.arg(stream.key_of(which))
            .arg(self.member.group.as_str())
            .arg(from)
            .arg("+")
            .arg(MAX_LOOKED_AT)
            .arg(&self.member.consumer);
        entry::pending(self.pipeline.command(cmd, Resend::Never).await?)
    }

    /// Renews the leases of these entries. Returns the entries that belong to other consumers.
    async fn renew(
        &self,
        stream: &ServedStream,
        which: WhichStream,
        ids: &[StreamEntryId],
    ) -> Result<Vec<StreamEntryId>, Error> {
        let (keys, args) = ([stream.key_of(which)], self.member.renewal(ids));
        let answer = (self.pipeline)
            .script(&scripts::RENEW, &keys, args, Resend::Never)
            .await?;
        Ok(entry::renewed(answer)?.1)
    }

    /// Fetches these entries again, without counting an attempt.
    async fn fetch_again(
        &self,
        stream: &ServedStream,
        which: WhichStream,
        ids: &[StreamEntryId],
    ) -> Result<Vec<Entry>, Error> {
        let args = |cmd: &mut Cmd| {
            cmd.arg(self.member.group.as_str())
                .arg(&self.member.consumer)
                .arg(which.flag());
            for id in ids {
                cmd.arg(*id);
            }
        };
        let keys = [stream.key_of(which)];
        let answer = (self.pipeline)
            .script(&scripts::RECOVER, &keys, args, Resend::Never)
            .await?;
        entry::claimed(answer, which)
    }
}
