//! Acknowledgements, many in one command.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::try_join_all;
use redis::{Cmd, Value};
use tokio::sync::{mpsc, oneshot};

use super::{
    entry::Lane,
    worker::{Flight, Grip, Worker},
};
use crate::{
    error::{Error, ErrorKind},
    transport::redis::{error, link::Retry},
};

/// How many are acknowledged at once.
const BATCH: usize = 512;

/// A delivery that is done.
#[derive(Debug)]
pub(super) struct Ack {
    /// Kept until the server has confirmed it, so that the lease lasts that long.
    pub(super) grip: Grip,
    /// The answer to a request: channel and envelope.
    pub(super) publish: Option<(Bytes, Vec<u8>)>,
    pub(super) done: oneshot::Sender<Result<(), Error>>,
    pub(super) flight: Flight,
}

/// Acknowledges until the source is closed. While one batch is on its way the next one gathers, so
/// a batch is as large as the load asks for, and an idle worker's handler is not delayed.
pub(super) async fn run(worker: Arc<Worker>, mut queue: mpsc::UnboundedReceiver<Ack>) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            biased;
            _ = queue.recv_many(&mut batch, BATCH) => {}
            () = worker.closed.cancelled() => break,
        }
        let answer = acknowledge(&worker, &mut batch).await;
        for Ack {
            grip, done, flight, ..
        } in batch.drain(..)
        {
            drop((grip, flight));
            let _ = done.send(match &answer {
                Ok(()) => Ok(()),
                Err(error) if error.is_closed() => Err(Error::closed()),
                Err(error) => Err(Error::new(ErrorKind::Refused, error.chain())),
            });
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
        .filter(|ack| ack.grip.key.0 == lane)
        .map(|ack| ack.grip.key.1.to_string())
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
