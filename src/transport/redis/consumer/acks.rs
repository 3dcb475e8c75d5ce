//! Acknowledgements, many in one command.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt, future::try_join_all, stream::FuturesUnordered};
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
    transport::{
        Counters,
        redis::{
            error,
            pipeline::{Listener, Retry, Submit},
            producer::Publish,
            response::Value,
        },
    },
};

/// How many are acknowledged at once.
const BATCH: usize = 512;
/// How many batches are on their way at once: a reply is published with its acknowledgement, and
/// should not wait until others are confirmed.
const BATCHES: usize = 4;
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
    let published = Arc::new(Published(worker.counters.clone()));
    let mut batch = Vec::new();
    let mut sent = FuturesUnordered::new();
    let others = || worker.held.has_open();
    loop {
        tokio::select! {
            biased;
            Some(()) = sent.next() => {}
            more = gather(&mut queue, &mut batch, BATCH, &worker.closed, others), if sent.len() < BATCHES => {
                if !more {
                    break;
                }
                sent.push(acknowledge(&worker, &published, std::mem::take(&mut batch)));
            }
        }
    }
    sent.collect().await
}

async fn acknowledge(worker: &Worker, published: &Arc<Published>, mut batch: Vec<Ack>) {
    match send(worker, published, &mut batch).await {
        Ok(()) => {
            let batch = batch.into_iter().map(|ack| ack.delivery);
            Queued::confirm(worker, batch.collect());
        }
        Err(error) => batch.into_iter().for_each(|ack| ack.delivery.fail(&error)),
    }
}

async fn send(worker: &Worker, published: &Arc<Published>, batch: &mut [Ack]) -> Result<(), Error> {
    for ack in &mut *batch {
        if let Some(reply) = ack.publish.take() {
            // Before the acknowledgement: a request whose worker ends in between is answered twice
            // rather than never.
            let retry = Retry::UntilAnswered;
            let posted = worker.pipeline.post(publish(&reply), retry, published, 0);
            posted.await;
        }
    }
    let lanes = Lane::BOTH.into_iter().map(|lane| (lane, ids(batch, lane)));
    try_join_all(
        lanes
            .filter(|(_, ids)| !ids.is_empty())
            .map(|(lane, ids)| async move { worker.insist(|| submit(worker, lane, &ids)).await }),
    )
    .await
    .map(drop)
}

/// Notices a reply that the server did not take.
struct Published(Arc<Counters>);

impl Listener for Published {
    fn answered(&self, _: u128, answer: Result<Value, Error>) {
        published(&self.0, answer);
    }

    fn is_gone(&self, _: u128) -> bool {
        // Once the link is closed nothing more is sent for it.
        true
    }
}

/// Looks at what the server says to a reply.
pub(super) fn published(counters: &Counters, answer: Result<Value, Error>) {
    if let Err(error) = answer.and_then(error::check) {
        counters.unanswerable.increment();
        tracing::warn!(error = error.chain(), "a reply could not be published");
    }
}

/// The entries of a lane.
pub(super) fn ids(batch: &[Ack], lane: Lane) -> Vec<EntryId> {
    let keys = batch.iter().map(|ack| ack.delivery.grip.key);
    keys.filter(|(on, _)| *on == lane)
        .map(|(_, id)| id)
        .collect()
}

/// Publishes a reply.
pub(super) fn publish((channel, envelope): &(Bytes, Vec<u8>)) -> Publish<'_> {
    Publish {
        channel: Cow::Borrowed(channel),
        payload: envelope,
    }
}

/// Acknowledges entries of the stream.
pub(super) fn xack(worker: &Worker, ids: &[EntryId]) -> Cmd {
    let mut cmd = Cmd::with_capacity(3 + ids.len(), 128 + ID * ids.len());
    cmd.arg("XACK")
        .arg(worker.key_of(Lane::Main))
        .arg(worker.keys.group.as_str())
        .arg(ids);
    cmd
}

/// Ends the entries of a lane.
fn submit(worker: &Worker, lane: Lane, ids: &[EntryId]) -> Submit {
    let (key, group) = (worker.key_of(lane), worker.keys.group.as_str());
    match lane {
        Lane::Main => worker
            .pipeline
            .submit(xack(worker, ids), Retry::UntilAnswered),
        Lane::Retry => {
            let args = |cmd: &mut Cmd| {
                cmd.arg(group).arg(ids);
            };
            let script = &scripts::ACKNOWLEDGE;
            worker
                .pipeline
                .submit_script(script, &[key], args, Retry::UntilAnswered)
        }
    }
}
