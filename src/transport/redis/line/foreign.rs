//! The driver's own connection: for RESP3, and for TLS with certificates that it alone knows.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::{
    FutureExt, StreamExt,
    future::{MaybeDone, maybe_done},
    stream::FuturesOrdered,
};
use redis::{Cmd, Pipeline, RedisResult, aio::MultiplexedConnection};
use tokio::task::JoinHandle;

use crate::transport::redis::{packed::Pack, value::Value};

type Answers = Pin<Box<dyn Future<Output = RedisResult<Vec<redis::Value>>> + Send>>;

pub(in crate::transport::redis) struct Foreign {
    connection: MultiplexedConnection,
    /// The task that reads and writes, where it was started here. It ends with the connection.
    driver: Option<MaybeDone<JoinHandle<()>>>,
    /// The pipelines on their way.
    sent: FuturesOrdered<Answers>,
    /// What has come and was not asked for yet.
    come: VecDeque<Value>,
}

impl Foreign {
    /// A connection that the driver has made, with a task of its own. A loss is noticed by the next
    /// command only.
    pub(in crate::transport::redis) fn new(connection: MultiplexedConnection) -> Self {
        Self {
            connection,
            driver: None,
            sent: FuturesOrdered::new(),
            come: VecDeque::new(),
        }
    }

    /// A connection with the future that reads and writes for it, which is started as a task. A loss
    /// is noticed at once.
    pub(in crate::transport::redis) fn driven(
        connection: MultiplexedConnection,
        driver: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        Self {
            driver: Some(maybe_done(tokio::spawn(driver))),
            ..Self::new(connection)
        }
    }

    pub(super) fn send(&mut self, commands: impl IntoIterator<Item = impl Pack>) {
        let mut connection = self.connection.clone();
        let mut pipeline = Pipeline::new();
        let mut packed = Vec::new();
        for command in commands {
            packed.clear();
            command.pack(&mut packed);
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
                // Nothing is on its way. The task ends when the server closes the connection, so that
                // nothing is sent over one that is lost.
                None => {
                    let Some(driver) = &mut self.driver else {
                        return Poll::Pending;
                    };
                    ready!(driver.poll_unpin(cx));
                    let lost = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return Poll::Ready(Err(lost.into()));
                }
            }
        }
        Poll::Ready(Ok(self.come.pop_front().expect("it is not empty")))
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
