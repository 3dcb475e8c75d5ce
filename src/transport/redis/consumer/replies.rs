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
        error::LEAST_SIZE_LIMIT,
        pipeline::Retry,
        response::{Value, array, integer, miscounted},
    },
};

/// How many replies one call stores: a server does nothing else meanwhile.
pub(super) const BATCH: usize = 64;

/// How many bytes of replies one call stores, unless one alone has more. The replies of one client are
/// one value, and no server refuses a value of this size.
const BYTES: usize = LEAST_SIZE_LIMIT / 2;

/// A reply of more bytes does not go along with a read.
pub(super) const SMALL: usize = BYTES / BATCH;

/// A request that is done.
#[derive(Debug)]
pub(super) struct StoredReply {
    pub(super) delivery: Queued,
    pub(super) origin: EntryId,
    /// The client's reply stream.
    pub(super) stream: String,
    pub(super) envelope: Vec<u8>,
    /// What the client is told where the server does not take a reply of this size. Such a size is
    /// at least [`LEAST_SIZE_LIMIT`]; for smaller ones there is none.
    pub(super) too_large: Option<Vec<u8>>,
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
        let calls = lanes
            .into_iter()
            .flat_map(|(lane, batch)| parts(batch).into_iter().map(move |part| (lane, part)));
        join_all(calls.map(|(lane, batch)| store(&worker, lane, batch))).await;
    }
}

/// The batch in parts of at most [`BYTES`], or of one reply.
fn parts(batch: Vec<StoredReply>) -> Vec<Vec<StoredReply>> {
    let mut parts: Vec<Vec<StoredReply>> = Vec::new();
    let mut room = 0;
    for reply in batch {
        let bytes = reply.envelope.len() + 1;
        match parts.last_mut() {
            Some(part) if bytes <= room => {
                room -= bytes;
                part.push(reply);
            }
            _ => {
                room = BYTES.saturating_sub(bytes);
                parts.push(vec![reply]);
            }
        }
    }
    parts
}

/// Stores a batch. Where the server refuses that, each reply is tried alone: one that it does not
/// take must not fail the others.
async fn store(worker: &Worker, lane: Lane, batch: Vec<StoredReply>) {
    let Err((batch, error)) = try_to_store(worker, lane, batch).await else {
        return;
    };
    if !error.is_refused() {
        batch.into_iter().for_each(|it| it.delivery.fail(&error));
        return;
    }
    let several = batch.len() > 1;
    join_all(batch.into_iter().map(async |mut reply| {
        let mut refusal = None;
        if several {
            match try_to_store(worker, lane, vec![reply]).await {
                Ok(()) => return,
                Err((batch, error)) => {
                    reply = batch.into_iter().next().expect("the one that was tried");
                    refusal = Some(error);
                }
            }
        }
        let refusal = refusal.as_ref().unwrap_or(&error);
        let Some(too_large) = reply.too_large.take() else {
            return reply.delivery.fail(refusal);
        };
        tracing::warn!(
            id = %reply.origin,
            bytes = reply.envelope.len(),
            error = refusal.chain(),
            "Redis does not take the reply to a request; its client is told that"
        );
        reply.envelope = too_large;
        if let Err((batch, error)) = try_to_store(worker, lane, vec![reply]).await {
            batch.into_iter().for_each(|it| it.delivery.fail(&error));
        }
    }))
    .await;
}

async fn try_to_store(
    worker: &Worker,
    lane: Lane,
    mut batch: Vec<StoredReply>,
) -> Result<(), (Vec<StoredReply>, Error)> {
    let shipment = Shipment::new(lane, &mut batch);
    let submit = || {
        let (script, keys) = (&scripts::REPLY, shipment.keys(worker));
        let args = |cmd: &mut Cmd| shipment.args(worker, cmd);
        worker
            .pipeline
            .submit_script(script, &keys, args, Retry::UntilAnswered)
    };
    let answer = worker.insist(submit).await;
    shipment.stored(worker, batch, answer)
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
            if result == 2 {
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
