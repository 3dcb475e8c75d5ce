//! The pipelines that are on their way over one connection.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesOrdered};
use redis::{Pipeline, RedisError, RedisResult, Value, aio::MultiplexedConnection};
use tokio::time::{Instant, Sleep, sleep};

use super::Request;
use crate::transport::redis::{driven::Driver, gate::Gate};

/// What a connection carries at the very least, in bytes per second: large payloads get that much
/// longer to be answered.
const SLOWEST: usize = 1 << 20;

/// A pipeline on its way.
pub(super) struct Sent {
    pub(super) cmds: Arc<Pipeline>,
    pub(super) requests: Vec<Request>,
}

type Answer = Pin<Box<dyn Future<Output = RedisResult<Vec<Value>>> + Send>>;

/// The pipelines on their way, oldest first.
pub(super) struct Flight {
    pub(super) sent: VecDeque<Sent>,
    answers: FuturesOrdered<Answer>,
    /// When each must have been answered.
    due: VecDeque<Instant>,
    clock: Pin<Box<Sleep>>,
    /// How long a server may take to answer before it counts as gone.
    silence: Duration,
    driver: Option<Driver>,
    /// Whether the driver is done.
    lost: bool,
    gate: Gate,
}

impl Flight {
    pub(super) fn new(driver: Option<Driver>, silence: Duration) -> Self {
        Self {
            sent: VecDeque::new(),
            answers: FuturesOrdered::new(),
            due: VecDeque::new(),
            clock: Box::pin(sleep(silence)),
            silence,
            driver,
            lost: false,
            gate: Gate::new(),
        }
    }

    pub(super) fn send(&mut self, mut connection: MultiplexedConnection, sent: Sent, bytes: usize) {
        let upload = Duration::from_secs_f64(bytes as f64 / SLOWEST as f64);
        let now = Instant::now();
        let before = self.due.back().copied().unwrap_or(now);
        self.due
            .push_back((now + self.silence).max(before) + upload);
        let cmds = sent.cmds.clone();
        let count = sent.requests.len();
        self.answers.push_back(Box::pin(async move {
            connection.send_packed_commands(&cmds, 0, count).await
        }));
        self.sent.push_back(sent);
    }

    /// The answer to the oldest pipeline, pending while there is none. The error says why the
    /// connection is lost; nothing, when the server owes an answer for too long.
    pub(super) async fn next(&mut self) -> Result<(Sent, Vec<Value>), Option<RedisError>> {
        let Self {
            sent,
            answers,
            due,
            clock,
            driver,
            lost,
            gate,
            ..
        } = self;
        poll_fn(|cx| {
            let answer = gate.poll(cx, |cx| {
                let answer = answers.poll_next_unpin(cx);
                if let Poll::Ready(Some(_)) = answer {
                    return answer;
                }
                // What is new is with the driver by now; what the driver has read is here after it.
                if driver
                    .as_mut()
                    .is_some_and(|driver| driver.as_mut().poll(cx).is_ready())
                {
                    *driver = None;
                    *lost = true;
                }
                match answers.poll_next_unpin(cx) {
                    Poll::Ready(None) if !*lost => Poll::Pending,
                    answer => answer,
                }
            });
            match answer {
                Poll::Ready(Some(Ok(values))) => {
                    due.pop_front();
                    let sent = sent.pop_front().expect("one pipeline for each answer");
                    return Poll::Ready(Ok((sent, values)));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(Some(error))),
                _ if *lost => return Poll::Ready(Err(Some(closed()))),
                _ => {}
            }
            // The clock is only set when it has run out: to set it for each pipeline costs more
            // than to look now and then.
            while let Some(due) = due.front() {
                ready!(clock.as_mut().poll(cx));
                if *due <= Instant::now() {
                    return Poll::Ready(Err(None));
                }
                clock.as_mut().reset(*due);
            }
            Poll::Pending
        })
        .await
    }
}

fn closed() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()
}
