//! The batches that were sent over one connection and whose responses are not complete.

use std::{collections::VecDeque, future::poll_fn, task::Poll, time::Duration};

use redis::RedisError;
use tokio::time::Instant;

use super::{batch::CommandBatch, replicas};
use crate::{
    sync::LazyTimer,
    transport::redis::{connection::Connection, response::Value},
};

/// The lowest expected throughput of a connection, in bytes per second. The time limit for a
/// pipeline's responses allows for sending its bytes at this rate.
const MIN_BYTES_PER_SECOND: usize = 1 << 20;
/// The maximum number of pipelines in flight. With fewer, the server would wait for commands. With
/// more, the batches would be smaller.
const MAX_PIPELINES: usize = 4;
/// No further pipeline is sent while this many bytes are not written to the socket yet. Unwritten
/// bytes are in memory twice: in the batches, and in the connection's buffer.
const MAX_UNSENT: usize = 2 << 20;

/// Batches that were sent together.
pub(super) struct InFlightPipeline {
    pub(super) batches: Vec<InFlightBatch>,
    /// The number of batches at the front of `batches` that have all their responses.
    complete_batches: usize,
    /// The time by which all responses are due.
    due: Instant,
    /// Set if the last command is a `WAIT` for replicas.
    ends_in_wait: bool,
}

/// A batch with its responses so far, in the order of its commands.
pub(super) struct InFlightBatch {
    pub(super) batch: CommandBatch,
    pub(super) responses: Vec<Value>,
}

impl InFlightPipeline {
    /// Adds the next response. Returns `true` if it is the last.
    fn add_response(&mut self, response: Value) -> bool {
        let oldest = &mut self.batches[self.complete_batches];
        oldest.responses.push(response);
        self.complete_batches += usize::from(oldest.responses.len() == oldest.batch.len());
        self.complete_batches == self.batches.len()
    }

    /// Returns the response to the pipeline's `WAIT`: nil if it has not arrived, `None` if the
    /// pipeline has no `WAIT`.
    pub(super) fn confirmation(&self) -> Option<Value> {
        let wait = self.batches.last().filter(|_| self.ends_in_wait)?;
        Some(wait.responses.first().cloned().unwrap_or_default())
    }
}

/// The pipelines in flight, oldest first.
pub(super) struct InFlightPipelines {
    pub(super) pipelines: VecDeque<InFlightPipeline>,
    connection: Connection,
    timer: LazyTimer,
    /// If the server sends nothing for this long, the connection counts as lost.
    max_silence: Duration,
    /// The number of bytes that the connection had received and sent at the last poll.
    bytes_passed: u64,
    /// The time at which `bytes_passed` last changed.
    last_byte_at: Instant,
}

impl InFlightPipelines {
    pub(super) fn new(connection: Connection, max_silence: Duration) -> Self {
        Self {
            pipelines: VecDeque::new(),
            connection,
            timer: LazyTimer::new(max_silence),
            max_silence,
            bytes_passed: 0,
            last_byte_at: Instant::now(),
        }
    }

    /// Returns `true` if another pipeline may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.pipelines.len() < MAX_PIPELINES
            && self.connection.unsent() < MAX_UNSENT
            && !self.pipelines.back().is_some_and(|it| it.ends_in_wait)
    }

    /// Sends batches as one pipeline. No batch may be empty. If replicas have to confirm commands,
    /// the pipeline ends in a `WAIT`, and no other pipeline is sent before the response to `WAIT`.
    pub(super) fn send(&mut self, mut batches: Vec<CommandBatch>) {
        let required = replicas::required_by(&batches);
        batches.extend(required.map(replicas::wait_batch));
        let max_wait = required.map_or(Duration::ZERO, |it| it.within);
        let bytes: usize = batches.iter().map(CommandBatch::bytes).sum();
        let upload_time = Duration::from_secs_f64(bytes as f64 / MIN_BYTES_PER_SECOND as f64);
        let now = Instant::now();
        let previous_due = self.pipelines.back().map_or(now, |it| it.due);
        self.connection
            .send(batches.iter().flat_map(CommandBatch::commands));
        let batches = batches.into_iter().map(|batch| InFlightBatch {
            responses: Vec::with_capacity(batch.len()),
            batch,
        });
        self.pipelines.push_back(InFlightPipeline {
            batches: batches.collect(),
            complete_batches: 0,
            // Responses come in order, so this pipeline is not due before the previous one.
            due: (now + self.max_silence + max_wait).max(previous_due) + upload_time,
            ends_in_wait: required.is_some(),
        });
    }

    /// Waits until the oldest pipeline has all its responses. Fails with the cause if the
    /// connection is lost, or with `None` if a response is overdue and the server is silent.
    ///
    /// # Cancel safety
    /// If the future is dropped, responses that have arrived stay with their pipeline.
    pub(super) async fn next(&mut self) -> Result<InFlightPipeline, Option<RedisError>> {
        let Self {
            pipelines,
            connection,
            timer,
            max_silence,
            bytes_passed,
            last_byte_at,
        } = self;
        poll_fn(|cx| {
            while let Poll::Ready(response) = connection.poll_response(cx) {
                let response = response.map_err(Some)?;
                let oldest = pipelines.front_mut().expect("an answer was due");
                if oldest.add_response(response) {
                    return Poll::Ready(Ok(pipelines.pop_front().expect("it is the oldest")));
                }
            }
            // Every byte extends the time limit, so that a large response may take long over a slow
            // network.
            let bytes = connection.progress().bytes();
            if std::mem::replace(bytes_passed, bytes) != bytes {
                *last_byte_at = Instant::now();
            }
            let silent_at = *last_byte_at + *max_silence;
            match pipelines.front() {
                Some(oldest) => {
                    let due = oldest.due.max(silent_at);
                    timer.poll_until(cx, due).map(|()| Err(None))
                }
                None => Poll::Pending,
            }
        })
        .await
    }
}
