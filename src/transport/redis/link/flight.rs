//! The pipelines that are on their way over one connection.

use std::{collections::VecDeque, future::poll_fn, pin::Pin, task::Poll, time::Duration};

use redis::RedisError;
use tokio::time::{Instant, Sleep, sleep};

use super::batch::Batch;
use crate::transport::redis::{line::Line, value::Value};

/// What a connection carries at the very least, in bytes per second: large payloads get that much
/// longer to be answered.
const SLOWEST: usize = 1 << 20;

/// A pipeline on its way.
pub(super) struct Sent {
    pub(super) batch: Batch,
    /// Those that have come, in the order of its commands.
    pub(super) answers: Vec<Value>,
    /// When all must have come.
    due: Instant,
}

/// The pipelines on their way, oldest first.
pub(super) struct Flight {
    pub(super) sent: VecDeque<Sent>,
    line: Line,
    clock: Pin<Box<Sleep>>,
    /// How long a server may take to answer before it counts as gone.
    silence: Duration,
}

impl Flight {
    pub(super) fn new(line: Line, silence: Duration) -> Self {
        Self {
            sent: VecDeque::new(),
            line,
            clock: Box::pin(sleep(silence)),
            silence,
        }
    }

    /// How many bytes are on their way.
    pub(super) fn bytes(&self) -> usize {
        self.sent.iter().map(|sent| sent.batch.bytes()).sum()
    }

    /// Sends a batch as one pipeline.
    pub(super) fn send(&mut self, batch: Batch) {
        let upload = Duration::from_secs_f64(batch.bytes() as f64 / SLOWEST as f64);
        let now = Instant::now();
        let before = self.sent.back().map_or(now, |sent| sent.due);
        self.line.send(batch.commands());
        self.sent.push_back(Sent {
            answers: Vec::with_capacity(batch.len()),
            batch,
            due: (now + self.silence).max(before) + upload,
        });
    }

    /// The oldest pipeline with its answers, pending while there is none that has them all. The error
    /// says why the connection is lost; nothing, when the server owes an answer for too long.
    ///
    /// # Cancel safety
    /// What has come stays with its pipeline.
    pub(super) async fn next(&mut self) -> Result<Sent, Option<RedisError>> {
        let Self {
            sent, line, clock, ..
        } = self;
        poll_fn(|cx| {
            while let Poll::Ready(answer) = line.poll_answer(cx) {
                let answer = answer.map_err(Some)?;
                let oldest = sent.front_mut().expect("an answer was due");
                oldest.answers.push(answer);
                if oldest.answers.len() == oldest.batch.len() {
                    return Poll::Ready(Ok(sent.pop_front().expect("it is the oldest")));
                }
            }
            // The clock is only set when it has run out: to set it for each pipeline costs more
            // than to look now and then.
            while let Some(oldest) = sent.front() {
                if clock.as_mut().poll(cx).is_pending() {
                    break;
                }
                if oldest.due <= Instant::now() {
                    return Poll::Ready(Err(None));
                }
                clock.as_mut().reset(oldest.due);
            }
            Poll::Pending
        })
        .await
    }
}
