//! Replies to reliable requests: stored and acknowledged in one step, many in one call.

use std::sync::Arc;

use futures_util::future::join_all;
use redis::Value;
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
    while gather(&mut queue, &mut batch, BATCH, &worker.closed).await {
        let (main, retry) = batch
            .drain(..)
            .partition::<Vec<_>, _>(|reply: &StoredReply| reply.delivery.grip.key.0 == Lane::Main);
        let lanes = [(Lane::Main, main), (Lane::Retry, retry)];
        let calls = lanes.into_iter().filter(|(_, batch)| !batch.is_empty());
        join_all(calls.map(|(lane, batch)| store(&worker, lane, batch))).await;
    }
}

async fn store(worker: &Worker, lane: Lane, mut batch: Vec<StoredReply>) {
    // Ascending, so that one look at the range shows which of them are still ours.
    batch.sort_unstable_by_key(|reply| reply.delivery.grip.key.1);
    let streams = batch.iter().map(|reply| reply.stream.as_str());
    let keys: Vec<_> = [worker.key_of(lane)].into_iter().chain(streams).collect();
    let args = |cmd: &mut redis::Cmd| {
        cmd.arg(worker.keys.group.as_str())
            .arg(&worker.consumer)
            .arg(lane.flag());
        for reply in &batch {
            cmd.arg(reply.delivery.grip.key.1).arg(&reply.envelope);
        }
    };
    let script = &scripts::REPLY;
    let answer = worker
        .insist(|| {
            worker
                .link
                .submit_script(script, &keys, args, Retry::UntilAnswered)
        })
        .await;
    let results = match answer.and_then(|answer| read(answer, batch.len())) {
        Ok(results) => results,
        Err(error) => {
            for reply in batch {
                reply.delivery.confirm(Err(&error));
            }
            return;
        }
    };
    for (reply, result) in batch.into_iter().zip(results) {
        match result {
            1 => worker.counters.done.increment(),
            0 => {
                worker.counters.done.increment();
                worker.unanswerable(reply.origin);
            }
            _ => reply.delivery.grip.fenced_out(reply.origin),
        }
        reply.delivery.confirm(Ok(()));
    }
}

/// What became of each of so many replies.
pub(super) fn read(answer: Value, count: usize) -> Result<Vec<i64>, Error> {
    let results = array(answer)?;
    if results.len() != count {
        return Err(miscounted(count, results.len()));
    }
    results.iter().map(integer).collect()
}
