//! Replies to reliable requests: stored and acknowledged in one step, many in one call.

use std::sync::Arc;

use futures_util::future::join_all;
use redis::{Cmd, Value};
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
        value::{array, integer, miscounted},
    },
};

/// How many replies one call stores: a server does nothing else meanwhile.
const BATCH: usize = 64;

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

/// What one client gets in one call.
struct Parcel {
    stream: String,
    ids: Vec<EntryId>,
    /// One line each: an envelope holds no line break.
    envelopes: Vec<u8>,
}

impl Parcel {
    fn new(replies: &[StoredReply]) -> Self {
        let envelopes: Vec<_> = replies.iter().map(|reply| &reply.envelope[..]).collect();
        Self {
            stream: replies[0].stream.clone(),
            ids: replies
                .iter()
                .map(|reply| reply.delivery.grip.key.1)
                .collect(),
            envelopes: envelopes.join(&b'\n'),
        }
    }
}

async fn store(worker: &Worker, lane: Lane, mut batch: Vec<StoredReply>) {
    batch.sort_by(|a, b| a.stream.cmp(&b.stream));
    let clients = batch.chunk_by(|a, b| a.stream == b.stream);
    let parcels: Vec<_> = clients.map(Parcel::new).collect();
    let streams = parcels.iter().map(|parcel| parcel.stream.as_str());
    let keys: Vec<_> = [worker.key_of(lane)].into_iter().chain(streams).collect();
    let args = |cmd: &mut Cmd| {
        cmd.arg(worker.keys.group.as_str()).arg(lane.flag());
        for parcel in &parcels {
            cmd.arg(parcel.ids.len())
                .arg(&parcel.ids)
                .arg(&parcel.envelopes[..]);
        }
    };
    let submit = || {
        let script = &scripts::REPLY;
        worker
            .link
            .submit_script(script, &keys, args, Retry::UntilAnswered)
    };
    let answer = worker.insist(submit).await;
    let results = match answer.and_then(|answer| read(answer, parcels.len())) {
        Ok(results) => results,
        Err(error) => {
            for reply in batch {
                reply.delivery.confirm(Err(&error));
            }
            return;
        }
    };
    for (replies, result) in batch.chunk_by(|a, b| a.stream == b.stream).zip(results) {
        if result == 0 {
            for reply in replies {
                worker.unanswerable(reply.origin);
            }
        }
    }
    worker.counters.done.add(batch.len() as u64);
    for reply in batch {
        reply.delivery.confirm(Ok(()));
    }
}

/// What became of the replies of so many clients.
pub(super) fn read(answer: Value, clients: usize) -> Result<Vec<i64>, Error> {
    let results = array(answer)?;
    if results.len() != clients {
        return Err(miscounted(clients, results.len()));
    }
    results.iter().map(integer).collect()
}
