//! The keeper: renews leases, and looks after what is due and what can go.
//!
//! It runs on a thread, a runtime and a connection of its own, so that a handler that blocks the
//! application's runtime does not lose its lease.

use std::{sync::Arc, thread, time::Duration};

use bytes::Bytes;
use redis::Cmd;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::{
    entry::{self, EntryId, Lane},
    scripts,
    worker::{CONSUMER_PREFIX, Reading, Worker},
};
use crate::{
    error::Error,
    transport::redis::{
        pipeline::{Pipeline, Retry, SILENCE},
        producer::schedule::{MOVED_AT_ONCE, MOVED_BYTES, Promoted},
        response::{Value, array, bytes},
        scripts::Script,
    },
};

/// How many leases are renewed by one call.
const RENEWED_AT_ONCE: usize = 500;
/// How often Redis's clock is read.
const CLOCK: Duration = Duration::from_secs(10);
/// How often handled entries are trimmed, by whichever worker comes first.
const TRIM: Duration = Duration::from_secs(1);
/// How often it is reported that a foreign consumer prevents trimming.
const BLOCKED: Duration = Duration::from_secs(600);
/// How often the group is searched for consumers that are gone.
const REAP: Duration = Duration::from_secs(30);
/// Where a consumer's history ends: after that there is nothing to be delivered. One id less than the
/// greatest, which is another word for `>` to the server.
const END: &str = "18446744073709551615-18446744073709551614";
/// For how long a consumer with nothing pending has been silent when it is removed.
const GONE: Duration = Duration::from_secs(60);

/// Starts the keeper. It ends when the source is closed.
pub(super) fn start(worker: Arc<Worker>) -> Result<(), Error> {
    #[cfg(test)]
    if let Some(runtime) = worker.connector.keepers_runtime() {
        runtime.spawn(async { Keeper::new(worker).run().await });
        return Ok(());
    }
    let failed = |error: std::io::Error| {
        Error::config("the thread that renews leases could not be started").with_source(error)
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let keeper = move || runtime.block_on(async { Keeper::new(worker).run().await });
    thread::Builder::new()
        .name("campanile-lease".into())
        .spawn(keeper)
        .map_err(failed)?;
    Ok(())
}

struct Keeper {
    worker: Arc<Worker>,
    pipeline: Pipeline,
    clock_read: Instant,
    heard_of: Instant,
    trimmed: Instant,
    reaped: Instant,
    /// The consumer that prevents trimming, and when that was reported.
    blocked: Option<(Bytes, Instant)>,
}

impl Keeper {
    fn new(worker: Arc<Worker>) -> Self {
        let now = Instant::now();
        let (connector, counters) = (worker.connector.clone(), worker.counters.clone());
        // A connection that is dead and not closed is replaced while the leases still hold: they are
        // up to a third old, and a tick each passes before the loss is met and made good.
        let silence = (worker.settings.lease / 5).clamp(Duration::from_millis(250), SILENCE);
        Self {
            pipeline: Pipeline::with_patience(connector, None, counters, silence),
            worker,
            clock_read: now,
            heard_of: now,
            trimmed: now,
            reaped: now,
            blocked: None,
        }
    }

    async fn run(mut self) {
        let worker = self.worker.clone();
        let _ended = worker.upkeep_ended.clone().drop_guard();
        let mut ticks = interval(worker.interval());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What was due while no worker ran is due now.
        worker.alarm.set(Duration::ZERO);
        loop {
            tokio::select! {
                biased;
                () = worker.closed.cancelled() => return,
                () = worker.leaving.cancelled() => return,
                _ = ticks.tick() => self.tick().await,
                () = worker.alarm.ring() => self.promote().await,
            }
        }
    }

    async fn tick(&mut self) {
        match self.renew().await {
            Ok(reading) => {
                let worker = &self.worker;
                let most_between = worker.most_between_ticks();
                worker
                    .health
                    .healthy(reading, most_between, worker.interval());
            }
            Err(error) => {
                self.worker.health.unhealthy();
                tracing::warn!(
                    error = error.chain(),
                    "leases could not be renewed; trying again"
                );
                return;
            }
        }
        self.worker.report_dropped(0);
        // Another worker may have scheduled something and be gone.
        self.promote().await;
        if let Err(error) = self.tidy().await {
            tracing::warn!(
                error = error.chain(),
                "housekeeping failed; trying again later"
            );
        }
    }

    /// Renews what was not renewed for a third of the lease. It asks the server even when there is
    /// nothing to renew: that is how this worker knows that it reaches it. Returns when the first
    /// were renewed, on Redis's clock.
    async fn renew(&self) -> Result<Reading, Error> {
        let worker = &self.worker;
        let mut first = None;
        for lane in Lane::BOTH {
            let ids = worker.held.older_than(worker.settings.lease / 3, lane);
            let mut chunks = ids.chunks(RENEWED_AT_ONCE).peekable();
            if chunks.peek().is_none() && lane == Lane::Main {
                let time = self.renew_some(lane, &[]).await?;
                first.get_or_insert(time);
            }
            for ids in chunks {
                let time = self.renew_some(lane, ids).await?;
                first.get_or_insert(time);
            }
        }
        Ok(first.expect("the stream's own lane is always asked for"))
    }

    async fn renew_some(&self, lane: Lane, ids: &[EntryId]) -> Result<Reading, Error> {
        let worker = &self.worker;
        let asked = Instant::now();
        let key = worker.key_of(lane);
        let keys = [key];
        let answer = self.script(&scripts::RENEW, &keys, worker.renewal(ids));
        let (on_server, lost) = entry::renewed(answer.await?)?;
        let answered = Instant::now();
        worker.held.renewed(lane, ids, asked);
        for id in lost {
            let Some(lease) = worker.held.lose((lane, id)) else {
                continue;
            };
            // Counted first: whoever hears of it finds it counted.
            worker.counters.lost_leases.increment();
            lease.lose();
            tracing::warn!(%id, "a delivery was lost to another worker");
        }
        Ok(Reading {
            asked,
            answered,
            on_server,
        })
    }

    /// Moves what is due, to the retry stream and, where its sender has delayed it, to the stream.
    async fn promote(&self) {
        let keys = &self.worker.keys;
        self.move_due([&keys.due, &keys.bodies, &keys.retry]).await;
        self.move_due([&keys.stream_due, &keys.stream_bodies, &keys.stream])
            .await;
    }

    /// Moves what is due, and sets the alarm for the next. It is one slice of a long list: between
    /// two the leases are renewed.
    async fn move_due(&self, keys: [&str; 3]) {
        let worker = &self.worker;
        let end = Instant::now() + worker.interval() / 4;
        loop {
            let answer = self.script(&scripts::PROMOTE, &keys, |cmd| {
                cmd.arg(MOVED_AT_ONCE).arg(MOVED_BYTES);
            });
            let promoted = match answer.await.and_then(Promoted::read) {
                Ok(promoted) => promoted,
                Err(error) => {
                    // The next tick tries again.
                    tracing::warn!(error = error.chain(), "what is due could not be delivered");
                    return;
                }
            };
            if promoted.lost > 0 {
                worker.deleted(promoted.lost);
            }
            let next = promoted.next;
            if let Some(wait) = next.filter(|wait| !wait.is_zero()) {
                // A millisecond later: Redis counts whole ones.
                worker.alarm.set(wait + Duration::from_millis(1));
            }
            if promoted.moved < MOVED_AT_ONCE as u64 && next != Some(Duration::ZERO) {
                return;
            }
            if Instant::now() >= end {
                worker.alarm.set(Duration::ZERO);
                return;
            }
        }
    }

    async fn tidy(&mut self) -> Result<(), Error> {
        let worker = &self.worker;
        if self.clock_read.elapsed() >= CLOCK {
            self.clock_read = Instant::now();
            let time = self.pipeline.command(redis::cmd("TIME"), Retry::Never);
            worker.clock.set(self.answer(time).await?)?;
        }
        if self.heard_of.elapsed() >= worker.settings.lease / 3 && !worker.inbox.is_stopped() {
            self.heard_of = Instant::now();
            // A read that waits in vain is no sign of life to every server: this consumer would look
            // like one that is gone.
            let sign = worker.reading(1, None, &[(&worker.keys.stream, END)]);
            // It fails without the group, which the reader makes again.
            let _ = self.answer(self.pipeline.command(sign, Retry::Never)).await;
            let mut groups = redis::cmd("XINFO");
            groups.arg("GROUPS").arg(worker.keys.stream.as_str());
            if let Ok(groups) = self
                .answer(self.pipeline.command(groups, Retry::Never))
                .await
            {
                let last = entry::last_delivered(groups, worker.keys.group.as_str())?;
                last.into_iter()
                    .for_each(|last| worker.note_delivered(last));
            }
        }
        if self.trimmed.elapsed() >= TRIM {
            self.trimmed = Instant::now();
            let gate = worker.keys.gate("trim");
            let keys = [&*worker.keys.stream, &gate];
            let answer = self.script(&scripts::TRIM, &keys, |cmd| {
                cmd.arg(&worker.consumer)
                    .arg(CONSUMER_PREFIX)
                    .arg(TRIM.as_millis() as u64 * 9 / 10)
                    .arg(u8::from(worker.options.trim_beside_foreign))
                    .arg(worker.options.foreign_lease.as_millis() as u64);
            });
            let blocked = blocked(answer.await?)?;
            self.report_blocked(blocked);
        }
        let worker = &self.worker;
        // After the server's clock has stepped forward every consumer looks gone.
        let healthy = worker.health.lasts(worker.most_between_ticks()) >= worker.settings.lease;
        if healthy && self.reaped.elapsed() >= REAP {
            self.reaped = Instant::now();
            let gate = worker.keys.gate("reap");
            let keys = [&*worker.keys.stream, &worker.keys.retry, &gate];
            self.script(&scripts::REAP, &keys, |cmd| {
                cmd.arg(worker.keys.group.as_str())
                    .arg(&worker.consumer)
                    .arg(CONSUMER_PREFIX)
                    .arg(GONE.as_millis() as u64)
                    .arg(REAP.as_millis() as u64 * 9 / 10);
            })
            .await?;
        }
        Ok(())
    }

    /// Names the consumer that prevents trimming, now and then: the stream grows.
    fn report_blocked(&mut self, by: Option<(Bytes, Bytes)>) {
        let Some((group, consumer)) = by else { return };
        let known = |(known, at): &(Bytes, Instant)| *known == consumer && at.elapsed() < BLOCKED;
        if self.blocked.as_ref().is_some_and(known) {
            return;
        }
        tracing::warn!(
            stream = %self.worker.keys.stream,
            group = %group.escape_ascii(),
            consumer = %consumer.escape_ascii(),
            "the stream is not trimmed: this consumer is of another library, and it holds entries or \
             was active within `foreign_lease`; allow it with `trim_beside_foreign_groups`, or remove \
             the consumer with XGROUP DELCONSUMER"
        );
        self.blocked = Some((consumer, Instant::now()));
    }

    async fn script(
        &self,
        script: &'static Script,
        keys: &[&str],
        args: impl FnOnce(&mut Cmd),
    ) -> Result<Value, Error> {
        self.answer(self.pipeline.script(script, keys, args, Retry::Never))
            .await
    }

    /// An answer that takes longer than a third of the lease is no good: the leases are tried again
    /// then.
    async fn answer(
        &self,
        answer: impl Future<Output = Result<Value, Error>>,
    ) -> Result<Value, Error> {
        let patience = (self.worker.settings.lease / 3).max(Duration::from_millis(100));
        timeout(patience, answer).await.unwrap_or_else(|_| {
            let address = self.worker.connector.address();
            let error = Error::disconnected(format!("Redis at {address} does not answer in time"));
            Err(match self.pipeline.cause() {
                Some(cause) => error.with_source(cause),
                None => error,
            })
        })
    }
}

/// The group and the consumer that prevent trimming, from the script's answer: `[dropped]`, or
/// `[0, group, consumer]`.
pub(super) fn blocked(answer: Value) -> Result<Option<(Bytes, Bytes)>, Error> {
    let mut answer = array(answer)?.into_iter().skip(1);
    let (group, consumer) = (answer.next(), answer.next());
    group
        .zip(consumer)
        .map(|(group, consumer)| Ok((bytes(group)?, bytes(consumer)?)))
        .transpose()
}
