//! Acknowledgements, many in one command.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;
use redis::{Cmd, Value};
use tokio::sync::mpsc;

use super::{
    entry::Lane,
    queued::{Queued, gather},
    worker::Worker,
};
use crate::{
    error::Error,
    transport::redis::{error, link::Retry},
};

/// How many are acknowledged at once.
const BATCH: usize = 512;

/// A delivery that is done.
#[derive(Debug)]
pub(super) struct Ack {
    pub(super) delivery: Queued,
    /// The answer to a request: channel and envelope.
    pub(super) publish: Option<(Bytes, Vec<u8>)>,
}

/// Acknowledges until the source is closed.
pub(super) async fn run(worker: Arc<Worker>, mut queue: mpsc::UnboundedReceiver<Ack>) {
    let mut batch = Vec::with_capacity(BATCH);
    while gather(&mut queue, &mut batch, BATCH, &worker.closed).await {
        let answer = acknowledge(&worker, &mut batch).await;
        for ack in batch.drain(..) {
            ack.delivery.confirm(answer.as_ref().copied());
        }
    }
}

async fn acknowledge(worker: &Worker, batch: &mut [Ack]) -> Result<(), Error> {
    let mut published = Vec::new();
    for ack in &mut *batch {
        if let Some((channel, envelope)) = ack.publish.take() {
            let mut cmd = redis::cmd("PUBLISH");
            cmd.arg(&channel[..]).arg(envelope);
            // In the same pipeline, before the acknowledgement: a request whose worker ends in
            // between is answered twice rather than never.
            published.push(worker.link.submit(cmd, Retry::UntilAnswered));
        }
    }
    let cmds = Lane::BOTH
        .into_iter()
        .flat_map(|lane| finishing(worker, batch, lane));
    try_join_all(
        cmds.map(|cmd| {
            worker.insist(move || worker.link.submit(cmd.clone(), Retry::UntilAnswered))
        }),
    )
    .await?;
    worker.counters.done.add(batch.len() as u64);
    for answer in published {
        if let Value::ServerError(refusal) = answer.await? {
            worker.counters.unanswerable.increment();
            let refusal = error::refused(refusal);
            tracing::warn!(error = refusal.chain(), "a reply could not be published");
        }
    }
    Ok(())
}

/// The commands that end the entries of a lane.
fn finishing(worker: &Worker, batch: &[Ack], lane: Lane) -> Vec<Cmd> {
    let ids: Vec<_> = batch
        .iter()
        .map(|ack| ack.delivery.grip.key)
        .filter(|(on, _)| *on == lane)
        .map(|(_, id)| id.to_string())
        .collect();
    if ids.is_empty() {
        return Vec::new();
    }
    let mut acknowledge = redis::cmd("XACK");
    acknowledge
        .arg(worker.key_of(lane))
        .arg(worker.keys.group.as_str())
        .arg(&ids);
    let mut cmds = vec![acknowledge];
    if lane == Lane::Retry {
        let mut delete = redis::cmd("XDEL");
        delete.arg(worker.key_of(lane)).arg(&ids);
        cmds.push(delete);
    }
    cmds
}
