//! The batches that were sent over one connection and are not answered yet.

use std::{collections::VecDeque, future::poll_fn, task::Poll, time::Duration};

use redis::RedisError;
use tokio::time::Instant;

use super::batch::Batch;
use crate::{
    sync::Clock,
    transport::redis::{connection::Connection, response::Value},
};

/// How many bytes per second a connection carries at least: a pipeline of many bytes is due that
/// much later.
const MIN_BYTES_PER_SECOND: usize = 1 << 20;
/// How many pipelines are in flight at once: enough that the server never waits for commands, and few
/// enough that commands gather while it works.
const MAX_PIPELINES: usize = 4;
/// At how many bytes that are still to be written no further pipeline is sent. Each would be in
/// memory twice.
const MAX_UNSENT: usize = 2 << 20;

/// Batches that were sent in one go.
pub(super) struct InFlightPipeline {
    pub(super) batches: Vec<InFlightBatch>,
    /// How many of the batches have all their answers.
    complete: usize,
    /// When all must have.
    due: Instant,
}

/// A batch with the answers that have come, in the order of its commands.
pub(super) struct InFlightBatch {
    pub(super) batch: Batch,
    pub(super) answers: Vec<Value>,
}

impl InFlightPipeline {
    /// Adds the next answer. Returns `true` if it is the last.
    fn answer(&mut self, answer: Value) -> bool {
        let oldest = &mut self.batches[self.complete];
        oldest.answers.push(answer);
        self.complete += usize::from(oldest.answers.len() == oldest.batch.len());
        self.complete == self.batches.len()
    }
}

/// The pipelines in flight, oldest first.
pub(super) struct InFlight {
    pub(super) pipelines: VecDeque<InFlightPipeline>,
    connection: Connection,
    clock: Clock,
    /// How long a server may be silent before it counts as gone.
    silence: Duration,
    /// How many bytes had passed when the last poll ended, and when that was noticed.
    passed: u64,
    last_byte: Instant,
}

impl InFlight {
    pub(super) fn new(connection: Connection, silence: Duration) -> Self {
        Self {
            pipelines: VecDeque::new(),
            connection,
            clock: Clock::new(silence),
            silence,
            passed: 0,
            last_byte: Instant::now(),
        }
    }

    /// Returns `true` if another pipeline may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.pipelines.len() < MAX_PIPELINES && self.connection.unsent() < MAX_UNSENT
    }

    /// Sends batches, none of them empty, as one pipeline.
    pub(super) fn send(&mut self, batches: Vec<Batch>) {
        let bytes: usize = batches.iter().map(Batch::bytes).sum();
        let upload = Duration::from_secs_f64(bytes as f64 / MIN_BYTES_PER_SECOND as f64);
        let now = Instant::now();
        let before = self.pipelines.back().map_or(now, |it| it.due);
        self.connection
            .send(batches.iter().flat_map(Batch::commands));
        let batches = batches.into_iter().map(|batch| InFlightBatch {
            answers: Vec::with_capacity(batch.len()),
            batch,
        });
        self.pipelines.push_back(InFlightPipeline {
            batches: batches.collect(),
            complete: 0,
            due: (now + self.silence).max(before) + upload,
        });
    }

    /// Waits until the oldest pipeline has all its answers. The error says why the connection is lost;
    /// it is `None` when the server owes an answer and is silent for too long.
    ///
    /// # Cancel safety
    /// Answers that have come stay with their pipeline.
    pub(super) async fn next(&mut self) -> Result<InFlightPipeline, Option<RedisError>> {
        let Self {
            pipelines,
            connection,
            clock,
            silence,
            passed,
            last_byte,
        } = self;
        poll_fn(|cx| {
            while let Poll::Ready(answer) = connection.poll_answer(cx) {
                let answer = answer.map_err(Some)?;
                let oldest = pipelines.front_mut().expect("an answer was due");
                if oldest.answer(answer) {
                    return Poll::Ready(Ok(pipelines.pop_front().expect("it is the oldest")));
                }
            }
            // An answer of many bytes over a slow network is late, and the server is not silent.
            let bytes = connection.progress().bytes();
            if std::mem::replace(passed, bytes) != bytes {
                *last_byte = Instant::now();
            }
            let not_silent = *last_byte + *silence;
            match pipelines.front() {
                Some(oldest) => {
                    let due = oldest.due.max(not_silent);
                    clock.poll_until(cx, due).map(|()| Err(None))
                }
                None => Poll::Pending,
            }
        })
        .await
    }
}
