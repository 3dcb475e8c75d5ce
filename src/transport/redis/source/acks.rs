//! Acknowledgements, many in one command.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;
use redis::Cmd;
use tokio::sync::mpsc;

use super::{
    entry::Lane,
    queued::{Queued, gather},
    worker::Worker,
};
use crate::{
    error::Error,
    transport::{Counters, redis::link::Retry},
};

/// How many are acknowledged at once.
const BATCH: usize = 512;
/// About how many bytes the id of an entry takes.
const ID: usize = 20;

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
    for ack in &mut *batch {
        if let Some((channel, envelope)) = ack.publish.take() {
            let mut cmd = Cmd::with_capacity(3, 16 + channel.len() + envelope.len());
            cmd.arg("PUBLISH").arg(&channel[..]).arg(envelope);
            // Before the acknowledgement: a request whose worker ends in between is answered twice
            // rather than never.
            worker.link.post(cmd, unpublished).await;
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
    Ok(())
}

fn unpublished(counters: &Counters, refusal: Error) {
    counters.unanswerable.increment();
    tracing::warn!(error = refusal.chain(), "a reply could not be published");
}

/// The commands that end the entries of a lane.
fn finishing(worker: &Worker, batch: &[Ack], lane: Lane) -> Vec<Cmd> {
    let ids: Vec<_> = batch
        .iter()
        .map(|ack| ack.delivery.grip.key)
        .filter(|(on, _)| *on == lane)
        .map(|(_, id)| id)
        .collect();
    if ids.is_empty() {
        return Vec::new();
    }
    let mut acknowledge = Cmd::with_capacity(3 + ids.len(), 128 + ID * ids.len());
    acknowledge
        .arg("XACK")
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
