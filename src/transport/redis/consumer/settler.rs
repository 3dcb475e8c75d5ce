//! Carries out settlements.
//!
//! Acknowledgements on a primary stream share an `XACK`, and those on a retry stream share a script
//! call. Every fenced settlement is a separate script call.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use redis::Cmd;
use tokio_util::sync::CancellationToken;

use super::{
    due_timers::DueTimers,
    follow_ups::FollowUpContext,
    in_flight::InFlightTable,
    member::Member,
    reply_to::ReplyRoute,
    report::Report,
    settlement::{End, FencedEffect, PublishedReply, Settlement, Unsettled, task_args},
    streams::ServedStream,
};
use crate::{
    error::Error,
    message::PermitRequest,
    sync::lock,
    transport::{
        Counters, Discarded, PauseTarget, TaskOutcome,
        redis::{
            entry::{StreamEntryId, WhichStream},
            error,
            pipeline::{CompletionHandler, Pipeline, Resend, Submit},
            producer::PublishCommand,
            response::{Value, integer, integers},
            scripts,
            server::LogLimit,
        },
    },
};

/// The wait before a command is repeated while the server refuses writes.
const REFUSED_WAIT: Duration = Duration::from_secs(1);
/// The approximate size of an entry id in bytes.
const ID_BYTES: usize = 20;

/// Carries out the settlements of one consumer.
pub(super) struct Settler {
    pub(super) member: Arc<Member>,
    pub(super) pipeline: Pipeline,
    pub(super) in_flight: Arc<InFlightTable>,
    pub(super) report: Arc<Report>,
    /// Timers for the next due messages of the streams.
    pub(super) due_timers: Arc<DueTimers>,
    pub(super) follow_ups: Arc<FollowUpContext>,
    /// Cancelled to stop repeating commands that the server refuses.
    pub(super) closed: CancellationToken,
    publish_failures: Arc<PublishFailures>,
    /// Limits the warnings about refused writes.
    refusals: std::sync::Mutex<LogLimit>,
}

impl Settler {
    pub(super) fn new(
        member: Arc<Member>,
        pipeline: Pipeline,
        in_flight: Arc<InFlightTable>,
        report: Arc<Report>,
        due_timers: Arc<DueTimers>,
        follow_ups: Arc<FollowUpContext>,
        closed: CancellationToken,
    ) -> Self {
        let publish_failures = Arc::new(PublishFailures(report.counters.clone()));
        Self {
            member,
            pipeline,
            in_flight,
            report,
            due_timers,
            follow_ups,
            closed,
            publish_failures,
            refusals: Default::default(),
        }
    }

    /// Publishes the replies of deliveries, and then acknowledges the deliveries.
    pub(super) async fn acknowledge(&self, mut batch: Vec<Settlement<Option<PublishedReply>>>) {
        for settlement in &mut batch {
            if let Some((channel, envelope)) = settlement.effect.take() {
                // Published before the acknowledgement: if the worker crashes in between, the
                // request is answered twice instead of never.
                let publish = PublishCommand::new(&channel[..], &envelope);
                let (resend, listener) = (Resend::UntilAnswered, &self.publish_failures);
                self.pipeline
                    .submit_with_handler(publish, resend, listener, 0)
                    .await;
            }
        }
        // Sends one command for each stream, so that a stream that refuses acknowledgements does
        // not delay the others.
        let streams = by_stream(batch);
        join_all(streams.into_iter().map(async |batch| {
            let ids: Vec<_> = batch
                .iter()
                .map(|it| it.delivery.guard.delivery_key.1)
                .collect();
            let first = &batch[0].delivery;
            let (stream, which) = (&first.stream, first.guard.delivery_key.0);
            match self
                .retry_while_refused(stream, || self.submit_ack(stream, which, &ids))
                .await
            {
                Ok(_) => self.confirm_done(batch),
                Err(error) => batch.into_iter().for_each(|it| it.fail(&error)),
            }
        }))
        .await;
    }

    /// Handles the response to a `PUBLISH` of a reply.
    pub(super) fn handle_publish_response(&self, response: Value) {
        self.publish_failures.completed(0, Ok(response));
    }

    /// Carries out a settlement by one script call.
    pub(super) async fn carry_out(&self, settlement: Settlement<FencedEffect>) {
        let Settlement {
            delivery,
            effect,
            on_settled,
        } = settlement;
        let settled = match effect {
            FencedEffect::Redeliver {
                after,
                attempts,
                uncounted_redeliveries,
                released,
                reason,
            } => {
                let attempts = (attempts, uncounted_redeliveries, released);
                self.redeliver(&delivery, after, attempts, &reason).await
            }
            FencedEffect::Park(request) => self.park(&delivery, &request).await,
            FencedEffect::End {
                end,
                outcome,
                reply,
            } => self.end(&delivery, (end, &outcome), reply).await,
            FencedEffect::Complete {
                follow_ups,
                outcome,
                reply,
            } => {
                self.complete(&delivery, (*follow_ups, &outcome), reply)
                    .await
            }
        };
        // Without a confirmed settlement, the next delivery with the same key must not start.
        if let Some(turn) = delivery.turn.as_ref().filter(|_| settled.is_err()) {
            turn.order().break_off();
        }
        drop(delivery);
        on_settled(settled);
    }

    /// Moves a delivery to the retry stream, or to the delayed messages.
    async fn redeliver(
        &self,
        delivery: &Unsettled,
        after: Option<Duration>,
        (attempts, uncounted_redeliveries, released): (u32, u32, bool),
        reason: &str,
    ) -> Result<(), Error> {
        let (member, counters) = (&*self.member, &self.report.counters);
        let (which, _) = delivery.guard.delivery_key;
        let delay = after.map(|after| after.as_millis().max(1).to_string());
        let (stream, keys) = (&delivery.stream, &delivery.stream.keys);
        let keys = [
            stream.key_of(which),
            &keys.retry_key,
            &keys.due,
            &keys.bodies,
        ];
        let submit = || {
            let args = |cmd: &mut Cmd| {
                member
                    .add_fence_args(cmd, delivery.guard.delivery_key)
                    .arg(delivery.origin)
                    .arg(attempts)
                    .arg(delay.as_deref().unwrap_or_default())
                    .arg(reason)
                    .arg(uncounted_redeliveries);
            };
            let (script, resend) = (&scripts::REDELIVER, Resend::UntilAnswered);
            self.pipeline.submit_script(script, &keys, args, resend)
        };
        if !self.try_move(delivery, submit).await? {
            return Ok(());
        }
        match released {
            true => counters.released.increment(),
            false => counters.redelivered.increment(),
        }
        if !released && attempts < delivery.attempt {
            counters.uncounted.increment();
        }
        if let Some(after) = after {
            self.due_timers.set(delivery.stream.index, after);
        }
        Ok(())
    }

    /// Calls a script that moves a delivery to another key. Returns `false` if the script ended the
    /// delivery instead, or did nothing.
    async fn try_move(
        &self,
        delivery: &Unsettled,
        submit: impl Fn() -> Submit,
    ) -> Result<bool, Error> {
        match integer(&self.retry_while_refused(&delivery.stream, submit).await?)? {
            1 => return Ok(true),
            2 => self.report.deleted(1),
            // The task was cancelled while it waited.
            3 => {}
            _ => self.report_fenced_out(delivery),
        }
        Ok(false)
    }

    /// Parks a delivery: the message leaves its stream until it gets a permit, until the pause of
    /// its name ends, or until a worker knows its version. After that, the message is redelivered.
    async fn park(&self, delivery: &Unsettled, request: &PermitRequest) -> Result<(), Error> {
        let member = &*self.member;
        let (which, _) = delivery.guard.delivery_key;
        let stream = &delivery.stream;
        let keys = [stream.key_of(which), &stream.keys.retry_key];
        let paused = request
            .paused_name()
            .map(|name| PauseTarget::Name(name.into()));
        let paused = paused.map(|target| stream.keys.pause_field(&target));
        let permits = match (&paused, request.awaited_version()) {
            (Some(_), _) => String::new(),
            (None, Some(_)) => "newer".to_owned(),
            (None, None) => request.permits.to_string(),
        };
        let submit = || {
            let args = |cmd: &mut Cmd| {
                member
                    .add_fence_args(cmd, delivery.guard.delivery_key)
                    .arg(delivery.origin)
                    .arg(delivery.attempt - 1)
                    .arg(&request.key)
                    .arg(&permits)
                    .arg(member.lease.as_millis() as u64)
                    .arg(&request.holder)
                    .arg(paused.as_deref().unwrap_or_default());
            };
            let (script, resend) = (&scripts::PARK, Resend::UntilAnswered);
            self.pipeline.submit_script(script, &keys, args, resend)
        };
        if self.try_move(delivery, submit).await? {
            self.report.counters.parked.increment();
        }
        Ok(())
    }

    /// Ends a delivery: as done, as a dead letter, or discarded.
    pub(super) async fn end(
        &self,
        delivery: &Unsettled,
        (end, outcome): (End, &TaskOutcome),
        reply: Option<(ReplyRoute, Vec<u8>)>,
    ) -> Result<(), Error> {
        let submit = || self.submit_end(delivery, (&end, outcome), reply.as_ref());
        let [ended @ 1..=2, dropped, answered] =
            integers(self.retry_while_refused(&delivery.stream, submit).await?)?
        else {
            self.report_fenced_out(delivery);
            return Ok(());
        };
        if reply.is_some() && answered == 0 {
            self.report.unanswerable(delivery.origin);
        }
        let counters = &self.report.counters;
        match end {
            End::Done => counters.done.increment(),
            // The entry was deleted from the stream, so there is no content for a dead letter.
            End::DeadLetter(_) if ended == 2 => self.report.deleted(1),
            End::DeadLetter(_) => {
                counters.dead.increment();
                let dropped = dropped.unsigned_abs();
                self.report.letters_dropped(&delivery.stream, dropped);
            }
            End::Discarded(Discarded::Expired) => counters.expired.increment(),
            End::Discarded(Discarded::Requested) => counters.discarded.increment(),
            End::Discarded(Discarded::Ignored) => counters.ignored.increment(),
        }
        Ok(())
    }

    fn submit_end(
        &self,
        delivery: &Unsettled,
        (end, outcome): (&End, &TaskOutcome),
        reply: Option<&(ReplyRoute, Vec<u8>)>,
    ) -> Submit {
        let member = &*self.member;
        let (which, _) = delivery.guard.delivery_key;
        let stream = &delivery.stream;
        let mut keys = vec![stream.key_of(which), &stream.keys.dead];
        let (channel, envelope) = reply_args(reply, &mut keys);
        let idempotency = delivery.idempotency.as_deref();
        let idempotency = idempotency.filter(|_| end.frees_idempotency_key());
        let (key, sent_id) = idempotency.map_or(("", ""), |(key, id)| (key.as_str(), id.as_str()));
        let args = |cmd: &mut Cmd| {
            member
                .add_fence_args(cmd, delivery.guard.delivery_key)
                .arg(envelope)
                .arg(channel)
                .arg(end.state());
            task_args(delivery, outcome, cmd);
            cmd.arg(key).arg(sent_id);
            if let End::DeadLetter(reason) = end {
                cmd.arg(delivery.origin)
                    .arg(delivery.attempt)
                    .arg(reason)
                    .arg(self.report.max_dead_letters);
            }
        };
        let (script, resend) = (&scripts::FINISH, Resend::UntilAnswered);
        self.pipeline.submit_script(script, &keys, args, resend)
    }

    /// Submits the acknowledgement of entries on a primary or a retry stream.
    fn submit_ack(
        &self,
        stream: &ServedStream,
        which: WhichStream,
        ids: &[StreamEntryId],
    ) -> Submit {
        if !which.is_retry() {
            let xack = xack(stream, which, ids);
            return self.pipeline.submit(xack, Resend::UntilAnswered);
        }
        let args = |cmd: &mut Cmd| {
            cmd.arg(stream.keys.group.as_str()).arg(ids);
        };
        let (script, resend) = (&scripts::ACKNOWLEDGE, Resend::UntilAnswered);
        let keys = [stream.key_of(which)];
        self.pipeline.submit_script(script, &keys, args, resend)
    }

    /// Submits a command, and repeats it while the server refuses writes because its memory or its
    /// disk is full. Stops repeating when the source is closed. The pipeline itself repeats the
    /// command after a lost connection.
    pub(super) async fn retry_while_refused(
        &self,
        stream: &ServedStream,
        submit: impl Fn() -> Submit,
    ) -> Result<Value, Error> {
        loop {
            let response = submit().await?;
            match error::code(&response) {
                Some(code) if error::refuses_writes(code) && !self.closed.is_cancelled() => {
                    if let Some(withheld) = lock(&self.refusals).admit() {
                        tracing::warn!(
                            stream = %stream.keys.stream, code, withheld,
                            "Redis takes no writes; trying again"
                        );
                    }
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep(REFUSED_WAIT) => {}
                        () = self.closed.cancelled() => {}
                    }
                }
                _ => return error::check(response),
            }
        }
    }

    /// Completes settlements that the server has confirmed as done.
    pub(super) fn confirm_done<E>(&self, mut batch: Vec<Settlement<E>>) {
        // Counted before the callbacks run, since a callback may read the counters.
        self.report.counters.done.add(batch.len() as u64);
        let guards = batch.iter_mut().map(|it| &mut it.delivery.guard);
        self.in_flight.remove_all(guards);
        for Settlement {
            delivery,
            on_settled,
            ..
        } in batch
        {
            drop(delivery);
            on_settled(Ok(()));
        }
    }

    /// Reports that a settlement had no effect, since the entry was no longer pending for this
    /// consumer.
    pub(super) fn report_fenced_out(&self, delivery: &Unsettled) {
        if let Some(turn) = &delivery.turn {
            turn.order().break_off();
        }
        if delivery.guard.lose() {
            let message = "a delivery was lost to another worker; its verdict changes nothing";
            let lose = || delivery.guard.lease.lose();
            self.report.lost(delivery.origin, lose, message);
        }
    }
}

/// Returns the arguments for a reply: the channel on which it is published, and its envelope. If
/// the reply is stored, adds the key of its stream to `keys`.
pub(super) fn reply_args<'a>(
    reply: Option<&'a (ReplyRoute, Vec<u8>)>,
    keys: &mut Vec<&'a str>,
) -> (&'a [u8], &'a [u8]) {
    let Some((route, envelope)) = reply else {
        return (b"", b"");
    };
    let mut channel = &b""[..];
    match route {
        ReplyRoute::Store(stream) => keys.push(stream),
        ReplyRoute::Publish(name) => channel = name,
        ReplyRoute::Nowhere => {}
    }
    (channel, envelope)
}

/// Groups settlements by stream.
pub(super) fn by_stream<E>(mut batch: Vec<Settlement<E>>) -> Vec<Vec<Settlement<E>>> {
    let which = |it: &Settlement<E>| it.delivery.guard.delivery_key.0;
    batch.sort_by_key(which);
    let mut streams: Vec<Vec<Settlement<E>>> = Vec::new();
    for settlement in batch {
        match streams.last_mut() {
            Some(last) if which(&last[0]) == which(&settlement) => last.push(settlement),
            _ => streams.push(vec![settlement]),
        }
    }
    streams
}

/// Makes the `XACK` of entries on a primary or a retry stream.
pub(super) fn xack(stream: &ServedStream, which: WhichStream, ids: &[StreamEntryId]) -> Cmd {
    let (key, group) = (stream.key_of(which), stream.keys.group.as_str());
    let mut cmd = Cmd::with_capacity(3 + ids.len(), 128 + ID_BYTES * ids.len());
    cmd.arg("XACK").arg(key).arg(group).arg(ids);
    cmd
}

/// Counts and logs replies that could not be published.
struct PublishFailures(Arc<Counters>);

impl CompletionHandler for PublishFailures {
    fn completed(&self, _: u128, response: Result<Value, Error>) {
        if let Err(error) = response.and_then(error::check) {
            self.0.unanswerable.increment();
            tracing::warn!(error = error.chain(), "a reply could not be published");
        }
    }

    fn is_unwanted(&self, _: u128) -> bool {
        // No caller waits for the response, so a closed pipeline may drop the command.
        true
    }
}
