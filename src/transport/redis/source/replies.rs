//! Replies to reliable requests: stored and acknowledged in one step, many in one call.

use std::sync::Arc;

use futures_util::future::join_all;
use redis::Cmd;
use tokio::sync::mpsc;

use super::{
    entry::{EntryId, Lane},
    queued::{Queued, gather},
    scripts,
    worker::Worker,
};
use crate::{
    error::Error,
    transport::redis::{
        link::Retry,
        value::{Value, array, integer, miscounted},
    },
};

/// How many replies one call stores: a server does nothing else meanwhile.
pub(super) const BATCH: usize = 64;

/// A request that is done.
#[derive(Debug)]
pub(super) struct StoredReply {
    pub(super) delivery: Queued,
    pub(super) origin: EntryId,
    /// The client's reply stream.
    pub(super) stream: String,
    pub(super) envelope: Vec<u8>,
}

/// Stores replies until the source is closed.
pub(super) async fn run(worker: Arc<Worker>, mut queue: mpsc::UnboundedReceiver<StoredReply>) {
    let mut batch = Vec::with_capacity(BATCH);
    let others = || worker.held.has_open();
    while gather(&mut queue, &mut batch, BATCH, &worker.closed, others).await {
        let (main, retry) = batch
            .drain(..)
            .partition::<Vec<_>, _>(|reply: &StoredReply| reply.delivery.grip.key.0 == Lane::Main);
        let lanes = [(Lane::Main, main), (Lane::Retry, retry)];
        let calls = lanes.into_iter().filter(|(_, batch)| !batch.is_empty());
        join_all(calls.map(|(lane, batch)| store(&worker, lane, batch))).await;
    }
}

async fn store(worker: &Worker, lane: Lane, mut batch: Vec<StoredReply>) {
    let shipment = Shipment::new(lane, &mut batch);
    let submit = || {
        let (script, keys) = (&scripts::REPLY, shipment.keys(worker));
        let args = |cmd: &mut Cmd| shipment.args(worker, cmd);
        worker
            .link
            .submit_script(script, &keys, args, Retry::UntilAnswered)
    };
    let answer = worker.insist(submit).await;
    if let Err((batch, error)) = shipment.stored(worker, batch, answer) {
        for reply in batch {
            reply.delivery.fail(&error);
        }
    }
}

/// What is sent to store a batch of replies by one call.
pub(super) struct Shipment {
    lane: Lane,
    parcels: Vec<Parcel>,
}

/// What one client gets in one call.
struct Parcel {
    stream: String,
    ids: Vec<EntryId>,
    /// One line each: an envelope holds no line break.
    envelopes: Vec<u8>,
}

impl Shipment {
    /// The batch is sorted for it.
    pub(super) fn new(lane: Lane, batch: &mut [StoredReply]) -> Self {
        batch.sort_by(|a, b| a.stream.cmp(&b.stream));
        let parcels = by_client(batch).map(Parcel::new).collect();
        Self { lane, parcels }
    }

    fn keys<'a>(&'a self, worker: &'a Worker) -> Vec<&'a str> {
        let streams = self.parcels.iter().map(|parcel| parcel.stream.as_str());
        [worker.key_of(self.lane)]
            .into_iter()
            .chain(streams)
            .collect()
    }

    fn args(&self, worker: &Worker, cmd: &mut Cmd) {
        cmd.arg(worker.keys.group.as_str()).arg(self.lane.flag());
        for parcel in &self.parcels {
            cmd.arg(parcel.ids.len())
                .arg(&parcel.ids)
                .arg(&parcel.envelopes[..]);
        }
    }

    /// The call, for a server that knows the script.
    pub(super) fn call(&self, worker: &Worker) -> Cmd {
        scripts::REPLY.call(&self.keys(worker), |cmd| self.args(worker, cmd))
    }

    /// What the server says to it. The replies come back where it has not stored them.
    pub(super) fn stored(
        self,
        worker: &Worker,
        batch: Vec<StoredReply>,
        answer: Result<Value, Error>,
    ) -> Result<(), (Vec<StoredReply>, Error)> {
        let results = match answer.and_then(|answer| read(answer, self.parcels.len())) {
            Ok(results) => results,
            Err(error) => return Err((batch, error)),
        };
        for (replies, result) in by_client(&batch).zip(results) {
            if result == 0 {
                for reply in replies {
                    worker.unanswerable(reply.origin);
                }
            }
        }
        let batch = batch.into_iter().map(|reply| reply.delivery);
        Queued::confirm(worker, batch.collect());
        Ok(())
    }
}

impl Parcel {
    fn new(replies: &[StoredReply]) -> Self {
        let envelopes: Vec<_> = replies.iter().map(|reply| &reply.envelope[..]).collect();
        let ids = replies.iter().map(|reply| reply.delivery.grip.key.1);
        Self {
            stream: replies[0].stream.clone(),
            ids: ids.collect(),
            envelopes: envelopes.join(&b'\n'),
        }
    }
}

fn by_client(sorted: &[StoredReply]) -> impl Iterator<Item = &[StoredReply]> {
    sorted.chunk_by(|a, b| a.stream == b.stream)
}

/// What became of the replies of so many clients.
pub(super) fn read(answer: Value, clients: usize) -> Result<Vec<i64>, Error> {
    let results = array(answer)?;
    if results.len() != clients {
        return Err(miscounted(clients, results.len()));
    }
    results.iter().map(integer).collect()
}
