//! The driver's own connection: for RESP3, and for TLS with certificates that it alone knows.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, MaybeDone, maybe_done},
    stream::FuturesOrdered,
};
use redis::{Cmd, Pipeline, RedisResult, aio::MultiplexedConnection};
use tokio::time::sleep;

use crate::transport::redis::{connection::Encode, response::Value};

/// How often a connection is asked for a sign of life that shows its loss in no other way.
const PING: Duration = Duration::from_secs(1);

type Answers = Pin<Box<dyn Future<Output = RedisResult<Vec<redis::Value>>> + Send>>;

pub(in crate::transport::redis) struct Foreign {
    connection: MultiplexedConnection,
    /// Done when the connection is lost. Polled while nothing is on its way.
    loss: MaybeDone<BoxFuture<'static, ()>>,
    /// The pipelines on their way.
    sent: FuturesOrdered<Answers>,
    /// What has come and was not asked for yet.
    come: VecDeque<Value>,
}

impl Foreign {
    /// A connection that the driver has made, with a task of its own. While it is idle, a `PING` each
    /// second shows a loss.
    pub(in crate::transport::redis) fn made(connection: MultiplexedConnection) -> Self {
        let asking = ask_for_life(connection.clone());
        Self::new(connection, asking)
    }

    /// A connection with the future that reads and writes for it, which is started as a task. The
    /// task ends with the connection, so that a loss is noticed at once.
    pub(in crate::transport::redis) fn driven(
        connection: MultiplexedConnection,
        driver: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let driver = tokio::spawn(driver);
        Self::new(connection, driver.map(drop))
    }

    fn new(
        connection: MultiplexedConnection,
        loss: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        Self {
            connection,
            loss: maybe_done(loss.boxed()),
            sent: FuturesOrdered::new(),
            come: VecDeque::new(),
        }
    }

    pub(super) fn send(&mut self, commands: impl IntoIterator<Item = impl Encode>) {
        let mut connection = self.connection.clone();
        let mut pipeline = Pipeline::new();
        let mut packed = Vec::new();
        for command in commands {
            packed.clear();
            command.encode(&mut packed);
            pipeline.add_command(unpacked(&packed));
        }
        self.sent.push_back(Box::pin(async move {
            let count = pipeline.len();
            connection.send_packed_commands(&pipeline, 0, count).await
        }));
    }

    pub(super) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<Value>> {
        while self.come.is_empty() {
            match ready!(self.sent.poll_next_unpin(cx)) {
                Some(answers) => self.come.extend(answers?.into_iter().map(Value::from)),
                // Nothing is on its way, and nothing must be sent over a lost connection.
                None => {
                    ready!(self.loss.poll_unpin(cx));
                    let lost = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return Poll::Ready(Err(lost.into()));
                }
            }
        }
        Poll::Ready(Ok(self.come.pop_front().expect("it is not empty")))
    }
}

/// Sends a `PING` now and then until the connection is lost.
async fn ask_for_life(mut connection: MultiplexedConnection) {
    loop {
        sleep(PING).await;
        let answer = connection.send_packed_command(&redis::cmd("PING")).await;
        // A refusal is a sign of life too.
        if answer.is_err_and(|error| error.code().is_none()) {
            return;
        }
    }
}

/// The driver packs commands itself. A packed one has the form of an answer: a list of texts.
fn unpacked(command: &[u8]) -> Cmd {
    let Ok(redis::Value::Array(args)) = redis::parse_redis_value(command) else {
        unreachable!("it was packed by this process");
    };
    let mut cmd = Cmd::new();
    for arg in args {
        if let redis::Value::BulkString(arg) = arg {
            cmd.arg(arg);
        }
    }
    cmd
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_unpacked_as_it_was() {
        let mut cmd = redis::cmd("XADD");
        cmd.arg("s").arg("*").arg(b"\xff\r\n").arg("").arg(7);
        let packed = cmd.get_packed_command();
        assert_eq!(unpacked(&packed).get_packed_command(), packed);
    }
}
