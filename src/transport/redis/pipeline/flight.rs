//! The pipelines that are on their way over one connection.

use std::{collections::VecDeque, future::poll_fn, task::Poll, time::Duration};

use redis::RedisError;
use tokio::time::Instant;

use super::batch::Batch;
use crate::{
    sync::Clock,
    transport::redis::{connection::Connection, response::Value},
};

/// What a connection carries at the very least, in bytes per second: large payloads get that much
/// longer to be answered.
const SLOWEST: usize = 1 << 20;

/// A pipeline on its way.
pub(super) struct Sent {
    pub(super) parts: Vec<Part>,
    /// How many of the parts have all their answers.
    complete: usize,
    /// When all must have.
    due: Instant,
}

/// A batch of a pipeline.
pub(super) struct Part {
    pub(super) batch: Batch,
    /// Those that have come, in the order of its commands.
    pub(super) answers: Vec<Value>,
}

impl Sent {
    /// Adds the next answer, and says whether it is the last.
    fn answer(&mut self, answer: Value) -> bool {
        let part = &mut self.parts[self.complete];
        part.answers.push(answer);
        self.complete += usize::from(part.answers.len() == part.batch.len());
        self.complete == self.parts.len()
    }
}

/// The pipelines on their way, oldest first.
pub(super) struct Flight {
    pub(super) sent: VecDeque<Sent>,
    line: Connection,
    clock: Clock,
    /// How long a server may be silent before it counts as gone.
    silence: Duration,
    /// How many bytes had passed when the last poll ended, and when that was noticed.
    passed: u64,
    last_byte: Instant,
}

impl Flight {
    pub(super) fn new(line: Connection, silence: Duration) -> Self {
        Self {
            sent: VecDeque::new(),
            line,
            clock: Clock::new(silence),
            silence,
            passed: 0,
            last_byte: Instant::now(),
        }
    }

    /// Sends batches, none of them empty, as one pipeline.
    pub(super) fn send(&mut self, batches: Vec<Batch>) {
        let bytes: usize = batches.iter().map(Batch::bytes).sum();
        let upload = Duration::from_secs_f64(bytes as f64 / SLOWEST as f64);
        let now = Instant::now();
        let before = self.sent.back().map_or(now, |sent| sent.due);
        self.line.send(batches.iter().flat_map(Batch::commands));
        let parts = batches.into_iter().map(|batch| Part {
            answers: Vec::with_capacity(batch.len()),
            batch,
        });
        self.sent.push_back(Sent {
            parts: parts.collect(),
            complete: 0,
            due: (now + self.silence).max(before) + upload,
        });
    }

    /// The oldest pipeline with its answers, pending while there is none that has them all. The error
    /// says why the connection is lost; nothing, when the server owes an answer and is silent for too
    /// long.
    ///
    /// # Cancel safety
    /// What has come stays with its pipeline.
    pub(super) async fn next(&mut self) -> Result<Sent, Option<RedisError>> {
        let Self {
            sent,
            line,
            clock,
            silence,
            passed,
            last_byte,
        } = self;
        poll_fn(|cx| {
            while let Poll::Ready(answer) = line.poll_answer(cx) {
                let answer = answer.map_err(Some)?;
                let oldest = sent.front_mut().expect("an answer was due");
                if oldest.answer(answer) {
                    return Poll::Ready(Ok(sent.pop_front().expect("it is the oldest")));
                }
            }
            // An answer of many bytes over a slow network is late, and the server is not silent.
            let bytes = line.progress().bytes();
            if std::mem::replace(passed, bytes) != bytes {
                *last_byte = Instant::now();
            }
            let not_silent = *last_byte + *silence;
            match sent.front() {
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
