//! Carries settlements out: from a settlement to a confirmed command.
//!
//! One task takes settlements from a queue, and another those that store a reply: these wait where a
//! server takes no writes, and acknowledgements do not. Acknowledgements are coalesced into few `XACK`s, and
//! replies that are stored into few calls of one script; every other settlement is a script of its own.
//! The next batch gathers while others are on their way, so a batch is as large as the load makes it,
//! and a lone settlement is not delayed.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, try_join_all},
    stream::FuturesUnordered,
};
use redis::Cmd;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    alarm::Alarm,
    in_flight::InFlightTable,
    member::Member,
    replies,
    reply_to::ReplyRoute,
    report::Report,
    settle::{Effect, End, OnSettled, Settlement, Unsettled},
};
use crate::{
    error::{Error, ErrorKind},
    sync::lock,
    transport::{
        Counters, Discarded,
        redis::{
            connection::Commands,
            entry::{EntryId, Lane},
            error,
            pipeline::{CompletionHandler, Pipeline, Retry, Submit},
            producer::Publish,
            response::{Value, integer, integers},
            scripts,
            server::Limit,
        },
    },
};

/// The most settlements that are taken from a queue at once.
const MAX_TAKEN: usize = 512;
/// The most batches of acknowledgements on their way. A fast reply is published with its
/// acknowledgement, and should not wait until others are confirmed.
pub(super) const MAX_ACKNOWLEDGING: usize = 4;
/// The most batches of stored replies on their way.
pub(super) const MAX_REPLYING: usize = 1;
/// The wait before a command is sent again that the server refuses because it takes no writes.
const WITHOUT_WRITES: Duration = Duration::from_secs(1);
/// The approximate number of bytes of an entry's id.
const ID_BYTES: usize = 20;

/// A delivery whose settlement is on its way, and the callback for its confirmation.
pub(super) struct Settling {
    pub(super) delivery: Unsettled,
    on_settled: OnSettled,
}

/// An acknowledgement that waits for its batch.
struct Acknowledgement {
    settling: Settling,
    /// The reply to publish before it: channel and envelope.
    publish: Option<(Bytes, Vec<u8>)>,
}

/// Carries out the settlements of one consumer.
pub(super) struct Settler {
    pub(super) member: Arc<Member>,
    pub(super) pipeline: Pipeline,
    pub(super) in_flight: Arc<InFlightTable>,
    pub(super) report: Arc<Report>,
    /// Rings when the next delayed message is due.
    pub(super) due: Arc<Alarm>,
    pub(super) max_dead_letters: usize,
    /// Ends the repetition of commands that the server refuses.
    pub(super) closed: CancellationToken,
    published: Arc<Published>,
    refusals: std::sync::Mutex<Limit>,
}

/// A part of a queue that was carried out.
#[derive(PartialEq)]
enum Finished {
    Batch,
    Single,
}

impl Settler {
    pub(super) fn new(
        member: Arc<Member>,
        pipeline: Pipeline,
        in_flight: Arc<InFlightTable>,
        report: Arc<Report>,
        due: Arc<Alarm>,
        max_dead_letters: usize,
        closed: CancellationToken,
    ) -> Self {
        let published = Arc::new(Published(report.counters.clone()));
        Self {
            member,
            pipeline,
            in_flight,
            report,
            due,
            max_dead_letters,
            closed,
            published,
            refusals: Default::default(),
        }
    }

    /// Carries out what comes from a queue, with at most `max_batches` on their way, until nothing can be
    /// put into it any more.
    pub(super) async fn run(
        self: Arc<Self>,
        mut queue: mpsc::UnboundedReceiver<Settlement>,
        max_batches: usize,
    ) {
        let settler = &*self;
        let mut taken = Vec::new();
        let (mut batches, mut open) = (0, true);
        let mut running: FuturesUnordered<BoxFuture<'_, Finished>> = FuturesUnordered::new();
        while open || !running.is_empty() {
            tokio::select! {
                biased;
                Some(finished) = running.next() => {
                    batches -= usize::from(finished == Finished::Batch);
                }
                // While enough is on its way nobody wakes this task for more.
                count = queue.recv_many(&mut taken, MAX_TAKEN), if open && batches < max_batches => {
                    open = count > 0;
                    settler.in_flight.mark_settling(taken.iter().map(|it| &it.delivery.guard));
                    // Handlers that are about to end get a turn: their settlements join this batch.
                    if settler.in_flight.has_running() {
                        tokio::task::yield_now().await;
                    }
                    let marked = taken.len();
                    while taken.len() < MAX_TAKEN && let Ok(next) = queue.try_recv() {
                        taken.push(next);
                    }
                    let rest = taken[marked..].iter();
                    settler.in_flight.mark_settling(rest.map(|it| &it.delivery.guard));
                    let (mut acknowledgements, mut replies) = (Vec::new(), Vec::new());
                    for Settlement { delivery, effect, on_settled } in taken.drain(..) {
                        let settling = Settling { delivery, on_settled };
                        match effect {
                            Effect::Acknowledge(publish) => {
                                acknowledgements.push(Acknowledgement { settling, publish });
                            }
                            Effect::Reply(reply) => replies.push((settling, reply)),
                            effect => running.push(settler.carry_out(settling, effect).boxed()),
                        }
                    }
                    if !acknowledgements.is_empty() {
                        batches += 1;
                        running.push(settler.acknowledge(acknowledgements).boxed());
                    }
                    if !replies.is_empty() {
                        batches += 1;
                        running.push(settler.store_replies(replies).boxed());
                    }
                }
            }
        }
    }

    /// Acknowledges deliveries, after the replies to fast requests among them were published.
    async fn acknowledge(&self, mut batch: Vec<Acknowledgement>) -> Finished {
        for acknowledgement in &mut batch {
            if let Some((channel, envelope)) = acknowledgement.publish.take() {
                // Before the acknowledgement: a request whose worker ends in between is answered twice
                // rather than never.
                let publish = Publish::new(&channel[..], &envelope);
                let (retry, listener) = (Retry::UntilAnswered, &self.published);
                self.pipeline.post(publish, retry, listener, 0).await;
            }
        }
        let of_lane = |lane| {
            let keys = batch.iter().map(|it| it.settling.delivery.guard.key);
            let ids = keys.filter(|(on, _)| *on == lane).map(|(_, id)| id);
            (lane, ids.collect::<Vec<_>>())
        };
        let lanes = Lane::BOTH.map(of_lane).into_iter();
        let acknowledged = try_join_all(
            lanes
                .filter(|(_, ids)| !ids.is_empty())
                .map(async |(lane, ids)| self.insist(|| self.submit_ack(lane, &ids)).await),
        );
        let acknowledged = acknowledged.await;
        let batch = batch.into_iter().map(|it| it.settling);
        match acknowledged {
            Ok(_) => self.confirm_done(batch.collect()),
            Err(error) => batch.for_each(|it| it.fail(&error)),
        }
        Finished::Batch
    }

    /// The commands that acknowledge deliveries of the stream, for a connection that is the caller's.
    pub(super) fn acknowledging(&self, batch: &[Settlement]) -> Commands {
        self.in_flight
            .mark_settling(batch.iter().map(|it| &it.delivery.guard));
        let mut commands = Commands::default();
        for settlement in batch {
            let Effect::Acknowledge(Some((channel, envelope))) = &settlement.effect else {
                continue;
            };
            if commands.len() == 0 {
                // Redis writes first to the client that was the last to get an answer. With one of our
                // own before them, those who wait for the replies come before us.
                commands.push(redis::cmd("PING"));
            }
            commands.push(Publish::new(&channel[..], envelope));
        }
        let ids = batch.iter().map(|it| it.delivery.guard.key.1);
        commands.push(self.xack(Lane::Main, &ids.collect::<Vec<_>>()));
        commands
    }

    /// Whether the server has carried out the commands that [`acknowledging`](Self::acknowledging) gives.
    pub(super) fn has_acknowledged(&self, mut answers: Vec<Value>) -> bool {
        let acknowledged = answers.pop().is_some_and(|it| error::code(&it).is_none());
        for answer in answers.into_iter().skip(1).filter(|_| acknowledged) {
            self.published.answered(0, Ok(answer));
        }
        acknowledged
    }

    /// The server has confirmed that these are done.
    pub(super) fn confirm(&self, batch: Vec<Settlement>) {
        let settling = |it: Settlement| Settling {
            delivery: it.delivery,
            on_settled: it.on_settled,
        };
        self.confirm_done(batch.into_iter().map(settling).collect());
    }

    async fn store_replies(&self, batch: Vec<replies::Reply>) -> Finished {
        replies::store(self, batch).await;
        Finished::Batch
    }

    /// Carries out a settlement that is a script of its own.
    async fn carry_out(&self, settling: Settling, effect: Effect) -> Finished {
        let Settling {
            delivery,
            on_settled,
        } = settling;
        let settled = match effect {
            Effect::Redeliver {
                after,
                attempts,
                released,
            } => self.redeliver(&delivery, after, attempts, released).await,
            Effect::End { end, reply } => self.end(&delivery, end, reply).await,
            Effect::Acknowledge(_) | Effect::Reply(_) => unreachable!("these are batched"),
        };
        drop(delivery);
        on_settled(settled);
        Finished::Single
    }

    async fn redeliver(
        &self,
        delivery: &Unsettled,
        after: Option<Duration>,
        attempts: u32,
        released: bool,
    ) -> Result<(), Error> {
        let (member, counters) = (&*self.member, &self.report.counters);
        let (lane, id) = delivery.guard.key;
        let delay = after.map(|after| after.as_millis().max(1).to_string());
        let keys = &member.keys;
        let keys = [member.key_of(lane), &keys.retry, &keys.due, &keys.bodies];
        let submit = || {
            let args = |cmd: &mut Cmd| {
                cmd.arg(member.keys.group.as_str())
                    .arg(&member.consumer)
                    .arg(id)
                    .arg(lane.flag())
                    .arg(delivery.origin)
                    .arg(attempts)
                    .arg(delay.as_deref().unwrap_or_default());
            };
            let (script, retry) = (&scripts::REDELIVER, Retry::UntilAnswered);
            self.pipeline.submit_script(script, &keys, args, retry)
        };
        match integer(&self.insist(submit).await?)? {
            1 => {
                match released {
                    true => counters.given_back.increment(),
                    false => counters.redelivered.increment(),
                }
                if let Some(after) = after {
                    self.due.set(after);
                }
            }
            2 => self.report.deleted(1),
            _ => self.fenced_out(delivery),
        }
        Ok(())
    }

    async fn end(
        &self,
        delivery: &Unsettled,
        end: End,
        reply: Option<(ReplyRoute, Vec<u8>)>,
    ) -> Result<(), Error> {
        let submit = || self.submit_end(delivery, &end, reply.as_ref());
        let [ended @ 1..=2, dropped, answered] = integers(self.insist(submit).await?)? else {
            self.fenced_out(delivery);
            return Ok(());
        };
        if reply.is_some() && answered == 0 {
            self.report.unanswerable(delivery.origin);
        }
        let counters = &self.report.counters;
        match end {
            // The entry had been deleted, so nothing is left for a dead letter.
            End::Dead(_) if ended == 2 => self.report.deleted(1),
            End::Dead(reason) => {
                let (origin, attempt) = (delivery.origin, delivery.attempt);
                self.report.buried(origin, attempt, &reason);
                self.report.letters_dropped(dropped.unsigned_abs());
            }
            End::Discarded(Discarded::Expired) => counters.expired.increment(),
            End::Discarded(Discarded::Asked) => counters.discarded.increment(),
            End::Discarded(Discarded::Ignored) => counters.ignored.increment(),
        }
        Ok(())
    }

    fn submit_end(
        &self,
        delivery: &Unsettled,
        end: &End,
        reply: Option<&(ReplyRoute, Vec<u8>)>,
    ) -> Submit {
        let member = &*self.member;
        let (lane, id) = delivery.guard.key;
        let mut keys = vec![member.key_of(lane), &member.keys.dead];
        let (mut channel, mut envelope) = (&b""[..], &b""[..]);
        if let Some((route, bytes)) = reply {
            envelope = bytes;
            match route {
                ReplyRoute::Store(stream) => keys.push(stream),
                ReplyRoute::Publish(name) => channel = name,
                ReplyRoute::Nowhere => {}
            }
        }
        let args = |cmd: &mut Cmd| {
            cmd.arg(member.keys.group.as_str())
                .arg(&member.consumer)
                .arg(id)
                .arg(lane.flag())
                .arg(envelope)
                .arg(channel);
            if let End::Dead(reason) = end {
                cmd.arg(delivery.origin)
                    .arg(delivery.attempt)
                    .arg(reason)
                    .arg(self.max_dead_letters);
            }
        };
        let (script, retry) = (&scripts::FINISH, Retry::UntilAnswered);
        self.pipeline.submit_script(script, &keys, args, retry)
    }

    /// The one place that builds `XACK`.
    fn xack(&self, lane: Lane, ids: &[EntryId]) -> Cmd {
        let (key, group) = (self.member.key_of(lane), self.member.keys.group.as_str());
        let mut cmd = Cmd::with_capacity(3 + ids.len(), 128 + ID_BYTES * ids.len());
        cmd.arg("XACK").arg(key).arg(group).arg(ids);
        cmd
    }

    /// Acknowledges entries of one of the group's streams.
    fn submit_ack(&self, lane: Lane, ids: &[EntryId]) -> Submit {
        let (key, group) = (self.member.key_of(lane), self.member.keys.group.as_str());
        match lane {
            Lane::Main => {
                let xack = self.xack(lane, ids);
                self.pipeline.submit(xack, Retry::UntilAnswered)
            }
            Lane::Retry => {
                let args = |cmd: &mut Cmd| {
                    cmd.arg(group).arg(ids);
                };
                let (script, retry) = (&scripts::ACKNOWLEDGE, Retry::UntilAnswered);
                self.pipeline.submit_script(script, &[key], args, retry)
            }
        }
    }

    /// Submits a command again as long as the server refuses it because it takes no writes at the
    /// moment: it has no memory, or no disk. The pipeline repeats it over lost connections.
    pub(super) async fn insist(&self, submit: impl Fn() -> Submit) -> Result<Value, Error> {
        loop {
            let answer = submit().await?;
            match error::code(&answer) {
                Some(code) if error::is_without_writes(code) && !self.closed.is_cancelled() => {
                    if let Some(withheld) = lock(&self.refusals).admit() {
                        tracing::warn!(
                            stream = %self.member.keys.stream, code, withheld,
                            "Redis takes no writes; trying again"
                        );
                    }
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep(WITHOUT_WRITES) => {}
                        () = self.closed.cancelled() => {}
                    }
                }
                _ => return error::check(answer),
            }
        }
    }

    /// The server has confirmed that these are done.
    pub(super) fn confirm_done(&self, mut batch: Vec<Settling>) {
        // Counted first: whoever is told finds it counted.
        self.report.counters.done.add(batch.len() as u64);
        let guards = batch.iter_mut().map(|it| &mut it.delivery.guard);
        self.in_flight.release(guards);
        for Settling {
            delivery,
            on_settled,
        } in batch
        {
            drop(delivery);
            on_settled(Ok(()));
        }
    }

    /// The entry was not pending for this consumer any more, so nothing was done.
    fn fenced_out(&self, delivery: &Unsettled) {
        if delivery.guard.lose() {
            let message = "a delivery was lost to another worker; its verdict changes nothing";
            let lose = || delivery.guard.lease.lose();
            self.report.lost(delivery.origin, lose, message);
        }
    }
}

impl Settling {
    /// The settlement cannot be carried out.
    pub(super) fn fail(self, error: &Error) {
        drop(self.delivery);
        (self.on_settled)(Err(match error.is_closed() {
            true => Error::closed(),
            false => Error::new(ErrorKind::Refused, error.chain()),
        }));
    }
}

/// Counts and logs replies that the server did not take.
struct Published(Arc<Counters>);

impl CompletionHandler for Published {
    fn answered(&self, _: u128, answer: Result<Value, Error>) {
        if let Err(error) = answer.and_then(error::check) {
            self.0.unanswerable.increment();
            tracing::warn!(error = error.chain(), "a reply could not be published");
        }
    }

    fn is_gone(&self, _: u128) -> bool {
        // Once the pipeline is closed nothing more is sent for it.
        true
    }
}
