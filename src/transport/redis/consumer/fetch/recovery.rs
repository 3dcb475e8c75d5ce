//! Recovers entries after a response of Redis was lost or came too late.
//!
//! Redis makes an entry pending for this consumer when it runs the read. If the response is lost,
//! the entry is *unheld*: pending for this consumer and not in flight. A recovery fetches unheld
//! entries again. If the response comes late, other workers may have claimed the entries in the
//! meantime, and those entries are dropped.

use std::{collections::HashSet, convert::Infallible, sync::Arc};

use futures_util::future::join_all;
use redis::Cmd;
use tokio::time::{Instant, sleep};

use super::has_code;
use crate::{
    error::Error,
    transport::redis::{
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

/// The number of pending entries in a full page. A search ends with the first page that is not
/// full.
pub(super) const PAGE_LEN: usize = 100;

/// Fetches unheld entries again. A recovery searches in several steps, because the server may still
/// run a read after the connection that sent it was lost.
pub(in crate::transport::redis::consumer) struct Recovery {
    member: Arc<Member>,
    streams: Arc<StreamSet>,
    pipeline: Pipeline,
    in_flight: Arc<InFlightTable>,
    report: Arc<Report>,
    /// `None` if no recovery runs.
    times: Option<RecoveryTimes>,
}

/// The times of a recovery.
#[derive(Clone, Copy)]
struct RecoveryTimes {
    /// The time of the next step.
    next_at: Instant,
    /// Two leases after the first step that has searched all streams. The recovery ends with the
    /// first step after this time. `None` before all streams were searched.
    ends_at: Option<Instant>,
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
            times: None,
        }
    }

    /// Begins or restarts a recovery. Called if a response was lost that may have contained
    /// entries.
    pub(super) fn begin(&mut self) {
        self.times = Some(RecoveryTimes {
            next_at: Instant::now(),
            ends_at: None,
        });
    }

    /// Returns the time of the next step, or `None` if no recovery runs.
    pub(super) fn next(&self) -> Option<Instant> {
        self.times.map(|times| times.next_at)
    }

    pub(super) fn is_due(&self) -> bool {
        self.next().is_some_and(|next_at| next_at <= Instant::now())
    }

    /// Runs one step: fetches at most `room` unheld entries again, and sets the time of the next
    /// step.
    ///
    /// A step that fails, or that fetches `room` entries, leaves the times unchanged. So the
    /// next step is due immediately, and continues the search.
    pub(super) async fn recover(&mut self, room: usize) -> Result<Vec<Entry>, Error> {
        let mut found = Vec::new();
        let streams = self.streams.all();
        let both = streams
            .iter()
            .flat_map(|stream| stream.both_streams().map(|which| (stream, which)));
        // Searches all streams concurrently.
        let searches = join_all(both.map(async |(stream, which)| {
            let ids = self.unheld(stream, which, room).await;
            ids.map(|ids| (stream, which, ids))
        }));
        for unheld in searches.await {
            let (stream, which, mut ids) = unheld?;
            ids.truncate(room - found.len());
            if !ids.is_empty() {
                found.extend(self.fetch_again(stream, which, &ids).await?);
            }
            if found.len() >= room {
                return Ok(found);
            }
        }
        let (now, lease) = (Instant::now(), self.member.lease);
        let ends_at = self.times.and_then(|times| times.ends_at);
        let ends_at = ends_at.unwrap_or(now + 2 * lease);
        self.times = (now < ends_at).then_some(RecoveryTimes {
            next_at: now + lease / 3,
            ends_at: Some(ends_at),
        });
        Ok(found)
    }

    /// Renews the entries of a late response, and drops those that other workers have claimed. A
    /// response comes late, for example, if this process was suspended.
    pub(super) async fn retain_owned(
        &mut self,
        mut entries: Vec<Entry>,
    ) -> Result<Vec<Entry>, Error> {
        let mut claimed = HashSet::new();
        for stream_entries in entries.chunk_by(|a, b| a.which == b.which) {
            let which = stream_entries[0].which;
            let Some(stream) = self.streams.get(which.index()) else {
                continue;
            };
            let ids: Vec<_> = stream_entries.iter().map(|entry| entry.id).collect();
            for page in ids.chunks(PAGE_LEN) {
                match self.renew(&stream, which, page).await {
                    Ok(lost) => claimed.extend(lost.into_iter().map(|id| (which, id))),
                    Err(error) => {
                        self.begin();
                        return Err(error);
                    }
                }
            }
        }
        entries.retain(|entry| !claimed.contains(&(entry.which, entry.id)));
        for (_, id) in claimed {
            let message = "a delivery was lost to another worker before it arrived";
            self.report.lost(id, || (), message);
        }
        Ok(entries)
    }

    /// Renews unheld entries while a large response arrives. The entries of the response are
    /// already pending for this consumer, but get into the in-flight table only when the response
    /// is complete. So nothing else renews them. `has_begun` returns `true` if the response may
    /// have begun. Never returns.
    pub(super) async fn renew_arriving(&self, has_begun: impl Fn() -> bool) -> Infallible {
        loop {
            sleep(self.member.lease / 3).await;
            // Before the first bytes of the response, there is nothing to renew.
            if !has_begun() {
                continue;
            }
            for stream in self.streams.all().iter() {
                for which in stream.both_streams() {
                    let renewed = async {
                        let ids = self.unheld(stream, which, PAGE_LEN).await?;
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

    /// Returns the ids of the unheld entries on a primary or a retry stream. The search ends after
    /// the page with the `max`-th unheld id, so there may be more than `max` ids.
    async fn unheld(
        &self,
        stream: &ServedStream,
        which: WhichStream,
        max: usize,
    ) -> Result<Vec<StreamEntryId>, Error> {
        let (mut unheld, mut from) = (Vec::new(), "-".to_owned());
        loop {
            let pending = match self.pending(stream, which, &from).await {
                // A failing stream is skipped, so that it does not delay the other streams.
                Err(_) if stream.is_failing() => return Ok(unheld),
                // Without a group nothing is pending. The next read creates the group again.
                Err(error) if has_code(&error, "NOGROUP") => return Ok(unheld),
                pending => pending?,
            };
            let page_len = pending.len();
            if let Some(last) = pending.last() {
                from = format!("({last}");
            }
            let is_unheld = |id: &StreamEntryId| !self.in_flight.contains((which, *id));
            unheld.extend(pending.into_iter().filter(is_unheld));
            if page_len < PAGE_LEN || unheld.len() >= max {
                return Ok(unheld);
            }
        }
    }

    /// Returns a page of the ids of the entries that are pending for this consumer. `from` is the
    /// start of the page, as `XPENDING` takes it.
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
            .arg(PAGE_LEN)
            .arg(&self.member.consumer);
        entry::decode_pending(self.pipeline.command(cmd, Resend::Never).await?)
    }

    /// Renews the leases of these entries. Returns the ids of those that are no longer pending for
    /// this consumer.
    async fn renew(
        &self,
        stream: &ServedStream,
        which: WhichStream,
        ids: &[StreamEntryId],
    ) -> Result<Vec<StreamEntryId>, Error> {
        let (keys, args) = ([stream.key_of(which)], self.member.renewal_args(ids));
        let response = (self.pipeline)
            .script(&scripts::RENEW, &keys, args, Resend::Never)
            .await?;
        Ok(entry::decode_renewed(response)?.1)
    }

    /// Fetches these entries again. This does not count as a further attempt.
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
        let response = (self.pipeline)
            .script(&scripts::RECOVER, &keys, args, Resend::Never)
            .await?;
        entry::decode_claimed(response, which)
    }
}
