//! The driver's own connection: for TLS, which it alone can set up as it was told to, and for RESP3.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::{StreamExt, stream::FuturesOrdered};
use redis::{Cmd, Pipeline, RedisResult, aio::MultiplexedConnection};

use crate::transport::redis::value::Value;

type Answers = Pin<Box<dyn Future<Output = RedisResult<Vec<redis::Value>>> + Send>>;

pub(in crate::transport::redis) struct Foreign {
    connection: MultiplexedConnection,
    /// The pipelines on their way.
    sent: FuturesOrdered<Answers>,
    /// What has come and was not asked for yet.
    come: VecDeque<Value>,
}

impl Foreign {
    pub(in crate::transport::redis) fn new(connection: MultiplexedConnection) -> Self {
        Self {
            connection,
            sent: FuturesOrdered::new(),
            come: VecDeque::new(),
        }
    }

    pub(super) fn send<'a>(&mut self, cmds: impl IntoIterator<Item = &'a Cmd>) {
        let mut connection = self.connection.clone();
        let mut pipeline = Pipeline::new();
        for cmd in cmds {
            pipeline.add_command(cmd.clone());
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
                // Its task notices the loss, and the next command is told.
                None => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(self.come.pop_front().expect("it is not empty")))
    }
}
