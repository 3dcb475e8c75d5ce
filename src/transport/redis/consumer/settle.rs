//! The right to settle one delivery.

use std::{
    future::{self, Future},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    acks::Ack,
    answer::{Address, Route},
    entry::EntryId,
    queued::{Queued, Then},
    replies::StoredReply,
    riders::Rider,
    scripts,
    worker::{Grip, Suspect, Worker},
};
use crate::{
    error::{Error, RpcError},
    message::Shown,
    reply::Reply,
    transport::{
        Discarded, SettleDelivery, Verdict,
        redis::{
            error,
            pipeline::Retry,
            response::{integer, integers},
        },
    },
};

/// The right to settle one delivery from Redis. Dropping it leaves the delivery to its lease.
#[derive(Debug)]
pub struct RedisSettle(Inner);

#[derive(Debug)]
enum Inner {
    /// Nothing is owed for an event on Pub/Sub.
    Event,
    Entry(Ticket),
}

/// What is known about a delivery from the stream.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) grip: Grip,
    /// The entry that its message came with at first.
    pub(super) origin: EntryId,
    pub(super) attempt: u32,
    pub(super) address: Option<Box<Address>>,
    /// Lets the next suspect in when this one is settled.
    pub(super) _suspect: Option<Suspect>,
}

impl RedisSettle {
    pub(super) fn event() -> Self {
        Self(Inner::Event)
    }

    pub(super) fn entry(ticket: Ticket) -> Self {
        Self(Inner::Entry(ticket))
    }

    /// Whether the server waits for a verdict.
    pub(super) fn is_owed(&self) -> bool {
        matches!(self.0, Inner::Entry(_))
    }
}

impl SettleDelivery for RedisSettle {
    async fn settle(self, verdict: Verdict) -> Result<(), Error> {
        let (done, confirmed) = oneshot::channel();
        self.settle_then(verdict, move |settled| drop(done.send(settled)))
            .await;
        // A queue that is closed has dropped the other end.
        confirmed.await.unwrap_or_else(|_| Err(Error::closed()))
    }

    fn settle_then(
        self,
        verdict: Verdict,
        then: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) -> impl Future<Output = ()> + Send {
        match self.0 {
            Inner::Event => then(Ok(())),
            Inner::Entry(ticket) => ticket.settle(verdict, Box::new(then)),
        }
        future::ready(())
    }
}

/// How a delivery ends that is not just acknowledged.
#[derive(Debug)]
enum End {
    Dead(String),
    Discarded(Discarded),
}

impl Ticket {
    /// Sees to it that the verdict is carried out and `then` is told.
    fn settle(self, verdict: Verdict, then: Then) {
        let worker = &self.grip.worker;
        worker.held.settling(&self.grip.lease);
        if self.grip.lease.is_lost() && !matches!(verdict, Verdict::Done(_)) {
            // Somebody else has it, perhaps another handler of this very worker, which the fence
            // would not tell apart from us. That it is done still counts: the first to finish wins.
            return then(Ok(()));
        }
        match verdict {
            Verdict::Done(answer) => self.done(answer, then),
            Verdict::Redeliver {
                counted: true,
                reason,
                ..
            } if self.attempt >= worker.settings.max_deliveries => {
                let answer = RpcError::unavailable("the request could not be handled");
                self.carry_out(then, |it| it.end(End::Dead(reason), Some(Err(answer))))
            }
            Verdict::Redeliver { after, counted, .. } => {
                let after = after.unwrap_or_else(|| worker.settings.backoff.after(self.attempt));
                let attempts = self.attempt - u32::from(!counted);
                let count = |worker: &Worker| worker.counters.redelivered.increment();
                self.carry_out(then, move |it| it.again(Some(after), attempts, count))
            }
            Verdict::Dead { reason, answer } => {
                self.carry_out(then, |it| it.end(End::Dead(reason), answer.map(Err)))
            }
            Verdict::Discard { reason, answer } => {
                self.carry_out(then, |it| it.end(End::Discarded(reason), answer.map(Err)))
            }
            Verdict::GiveBack => {
                let attempts = self.attempt - 1;
                let count = |worker: &Worker| worker.counters.given_back.increment();
                self.carry_out(then, move |it| it.again(None, attempts, count))
            }
        }
    }

    /// Carries a verdict out in a task of its own, so that nobody has to wait for it.
    fn carry_out<W>(mut self, then: Then, work: impl FnOnce(Self) -> W)
    where
        W: Future<Output = Result<(), Error>> + Send + 'static,
    {
        self.grip.take_off();
        let work = work(self);
        tokio::spawn(async move { then(work.await) });
    }

    fn done(self, answer: Result<Reply, RpcError>, then: Then) {
        let worker = &self.grip.worker;
        let mut publish = None;
        if let Some(address) = &self.address {
            match address.route(&worker.keys, &worker.options.allowed_reply_prefixes) {
                Route::Store(stream) => {
                    let envelope = address.envelope(&answer);
                    let too_large = (envelope.len() >= error::LEAST_SIZE_LIMIT).then(|| {
                        let text = "the reply is too large for the Redis server of the worker";
                        address.envelope(&Err(RpcError::internal(text)))
                    });
                    return self.store(stream, envelope, too_large, then);
                }
                Route::Publish(channel) => publish = Some((channel, address.envelope(&answer))),
                Route::Nowhere => worker.unanswerable(self.origin),
            }
        }
        let worker = worker.clone();
        let delivery = Queued::new(self.grip, then);
        worker.finish(Rider::Ack(Ack { delivery, publish }));
    }

    /// Keeps the reply for a client that reads it when it can.
    fn store(self, stream: String, envelope: Vec<u8>, too_large: Option<Vec<u8>>, then: Then) {
        let worker = self.grip.worker.clone();
        worker.finish(Rider::Reply(StoredReply {
            delivery: Queued::new(self.grip, then),
            origin: self.origin,
            stream,
            envelope,
            too_large,
        }));
    }

    /// Delivers it again, now or after a while.
    async fn again(
        self,
        after: Option<Duration>,
        attempts: u32,
        count: impl FnOnce(&Worker) + Send + 'static,
    ) -> Result<(), Error> {
        let after = after.filter(|after| !after.is_zero());
        let worker = &self.grip.worker;
        let (lane, id) = self.grip.key;
        let delay = after.map(|after| after.as_millis().max(1).to_string());
        let answer = worker
            .insist(|| {
                let keys = [
                    worker.key_of(lane),
                    &worker.keys.retry,
                    &worker.keys.due,
                    &worker.keys.bodies,
                ];
                let args = |cmd: &mut redis::Cmd| {
                    cmd.arg(worker.keys.group.as_str())
                        .arg(&worker.consumer)
                        .arg(id)
                        .arg(lane.flag())
                        .arg(self.origin)
                        .arg(attempts)
                        .arg(delay.as_deref().unwrap_or_default());
                };
                let script = &scripts::REDELIVER;
                worker
                    .pipeline
                    .submit_script(script, &keys, args, Retry::UntilAnswered)
            })
            .await?;
        match integer(&answer)? {
            1 => {
                count(worker);
                if let Some(after) = after {
                    worker.alarm.set(after);
                }
            }
            2 => worker.deleted(1),
            _ => self.grip.fenced_out(self.origin),
        }
        Ok(())
    }

    /// Ends it, with the answer where it is a request that has an address.
    async fn end(self, end: End, answer: Option<Result<Reply, RpcError>>) -> Result<(), Error> {
        let worker = &self.grip.worker;
        let answered = self.address.as_ref().zip(answer.as_ref());
        let (route, envelope) = match answered {
            Some((address, answer)) => (
                address.route(&worker.keys, &worker.options.allowed_reply_prefixes),
                address.envelope(answer),
            ),
            None => (Route::Nowhere, Vec::new()),
        };
        let ended = worker
            .insist(|| self.submit_end(&end, &route, &envelope))
            .await?;
        let [ended @ 1..=2, dropped, sent] = integers(ended)? else {
            self.grip.fenced_out(self.origin);
            return Ok(());
        };
        if answered.is_some() && sent == 0 {
            worker.unanswerable(self.origin);
        }
        let counters = &worker.counters;
        match end {
            // Nothing is left that could be a dead letter.
            End::Dead(_) if ended == 2 => worker.deleted(1),
            End::Dead(reason) => {
                worker.buried(self.origin, self.attempt, &reason);
                worker.report_dropped(dropped.unsigned_abs());
            }
            End::Discarded(Discarded::Expired) => counters.expired.increment(),
            End::Discarded(Discarded::Asked) => counters.discarded.increment(),
            End::Discarded(Discarded::Ignored) => counters.ignored.increment(),
        }
        Ok(())
    }

    fn submit_end(
        &self,
        end: &End,
        route: &Route,
        envelope: &[u8],
    ) -> crate::transport::redis::pipeline::Submit {
        let worker = &self.grip.worker;
        let (lane, id) = self.grip.key;
        let mut keys = vec![worker.key_of(lane), &worker.keys.dead];
        let mut channel = &b""[..];
        match route {
            Route::Store(stream) => keys.push(stream),
            Route::Publish(name) => channel = name,
            Route::Nowhere => {}
        }
        let args = |cmd: &mut redis::Cmd| {
            cmd.arg(worker.keys.group.as_str())
                .arg(&worker.consumer)
                .arg(id)
                .arg(lane.flag())
                .arg(envelope)
                .arg(channel);
            if let End::Dead(reason) = end {
                cmd.arg(self.origin)
                    .arg(self.attempt)
                    .arg(reason)
                    .arg(worker.settings.max_dead_letters);
            }
        };
        let script = &scripts::FINISH;
        worker
            .pipeline
            .submit_script(script, &keys, args, Retry::UntilAnswered)
    }
}

impl Worker {
    pub(super) fn unanswerable(&self, id: EntryId) {
        self.counters.unanswerable.increment();
        tracing::warn!(%id, "the answer to a request could not be sent: nobody waits for it, or not at an allowed address");
    }

    /// Entries that somebody deleted from the stream before they were settled.
    pub(super) fn deleted(&self, entries: u64) {
        self.counters.deleted.add(entries);
        tracing::warn!(entries, "pending entries had been deleted from the stream");
    }

    pub(super) fn buried(&self, id: EntryId, attempts: u32, reason: &str) {
        self.counters.dead.increment();
        let reason = Shown::new(reason).at_most(2048);
        tracing::warn!(%id, attempts, %reason, "a message became a dead letter");
    }

    /// Counts dead letters that made room for newer ones, and reports the number now and then.
    pub(super) fn report_dropped(&self, dropped: u64) {
        self.counters.dead_dropped.add(dropped);
        self.dropped.report(dropped, &self.settings);
    }
}
