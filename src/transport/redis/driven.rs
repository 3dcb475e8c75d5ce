//! A connection that is driven by whoever waits for its answers.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
};

use futures_util::future::join;
use redis::{Cmd, Pipeline, RedisResult, Value, aio::MultiplexedConnection};

use super::gate::Gate;

/// What has to be polled for a connection to work. It is done when the connection is lost.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection whose owner polls its driver, where it has one: that saves a switch between tasks
/// for each command, and tells at once when the connection is lost. Under TLS the driver runs by
/// itself.
pub(super) struct Driven {
    pub(super) connection: MultiplexedConnection,
    pub(super) driver: Option<Driver>,
    gate: Gate,
}

impl Driven {
    pub(super) fn new(connection: MultiplexedConnection, driver: Option<Driver>) -> Self {
        Self {
            connection,
            driver,
            gate: Gate::new(),
        }
    }

    /// Sends a command. There is no time limit: a connection whose answer is not waited for any
    /// more must not be used again.
    pub(super) async fn command(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        let answer = self.connection.send_packed_command(cmd);
        drive(answer, &mut self.driver, &self.gate).await
    }

    /// Sends a command behind others, in one go. `first` is told what those are answered, which may
    /// be long before this one is.
    pub(super) async fn command_behind(
        &mut self,
        others: &Pipeline,
        first: impl FnOnce(RedisResult<Vec<Value>>),
        cmd: &Cmd,
    ) -> RedisResult<Value> {
        let mut ahead = self.connection.clone();
        let others = async { first(ahead.send_packed_commands(others, 0, others.len()).await) };
        let answer = self.connection.send_packed_command(cmd);
        let both = async { Ok(join(others, answer).await.1) };
        drive(both, &mut self.driver, &self.gate).await?
    }

    /// Sends several at once, like [`command`](Self::command).
    pub(super) async fn pipeline(&mut self, cmds: &Pipeline) -> RedisResult<Vec<Value>> {
        let answers = self.connection.send_packed_commands(cmds, 0, cmds.len());
        drive(answers, &mut self.driver, &self.gate).await
    }
}

async fn drive<T>(
    answer: impl Future<Output = RedisResult<T>>,
    driver: &mut Option<Driver>,
    gate: &Gate,
) -> RedisResult<T> {
    let mut answer = pin!(answer);
    poll_fn(|cx| {
        gate.poll(cx, |cx| {
            // What is new is with the driver after this, and what the driver reads is here after it.
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                return Poll::Ready(answer);
            }
            if driver
                .as_mut()
                .is_some_and(|driver| driver.as_mut().poll(cx).is_ready())
            {
                *driver = None;
            }
            answer.as_mut().poll(cx)
        })
    })
    .await
}
