//! One connection, on which commands are answered in their order.
//!
//! It is written and read here where it can be, for what the driver does for each command costs more
//! than the command: see [`direct`].

mod decode;
mod direct;
mod encode;
mod foreign;
mod progress;
mod pubsub;

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
};

use redis::{ErrorKind, RedisResult};

pub(super) use self::{
    direct::{Direct, copy_if_small},
    encode::{Commands, Encode, Packer, argument},
    foreign::Foreign,
    progress::Progress,
    pubsub::{PubSub, Published},
};
use super::{error, response::Value};

/// A connection, which works while its answers are waited for. None has a time limit.
///
/// # Cancel safety
/// The answer to what is not waited for any more is passed over by whoever asks next.
pub(super) struct Connection {
    carrier: Carrier,
    progress: Progress,
    /// How many answers have not come yet.
    due: usize,
}

enum Carrier {
    /// What is sent and read is this side's.
    Direct(Direct),
    /// The driver's own connection.
    Foreign(Foreign),
}

impl Connection {
    pub(super) fn direct(direct: Direct) -> Self {
        let progress = direct.progress();
        Self::new(Carrier::Direct(direct), progress)
    }

    pub(super) fn foreign(foreign: Foreign) -> Self {
        Self::new(Carrier::Foreign(foreign), Progress::default())
    }

    fn new(carrier: Carrier, progress: Progress) -> Self {
        Self {
            carrier,
            progress,
            due: 0,
        }
    }

    /// The bytes that were read and written so far. The driver's own connection counts none.
    pub(super) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Sends commands in one go, once answers are waited for.
    pub(super) fn send(&mut self, commands: impl IntoIterator<Item = impl Encode>) {
        let due = &mut self.due;
        let commands = commands.into_iter().inspect(|_| *due += 1);
        match &mut self.carrier {
            Carrier::Direct(direct) => direct.send(commands),
            Carrier::Foreign(foreign) => foreign.send(commands),
        }
    }

    /// The answer to the oldest command that has not been answered yet; a refusal is one too. An
    /// error means that the connection is lost, also where no answer is due.
    pub(super) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<Value>> {
        let answer = ready!(match &mut self.carrier {
            Carrier::Direct(direct) => direct.poll_answer(cx),
            Carrier::Foreign(foreign) => foreign.poll_answer(cx),
        })?;
        // A server writes this when it accepts a connection. It answers no command, so it settles
        // nothing.
        if let Value::ServerError(unasked) = &answer
            && unasked.details().is_some_and(error::has_too_many_clients)
        {
            return Poll::Ready(answer.refused());
        }
        self.due = (self.due.checked_sub(1))
            .ok_or((ErrorKind::Parse, "the server answered without being asked"))?;
        Poll::Ready(Ok(answer))
    }

    /// The next answer.
    pub(super) async fn answer(&mut self) -> RedisResult<Value> {
        poll_fn(|cx| self.poll_answer(cx)).await
    }

    /// The answer to this command.
    pub(super) async fn command(&mut self, command: impl Encode) -> RedisResult<Value> {
        self.ask([command]).await?;
        self.answer().await
    }

    /// Sends commands in one go, and returns the answers to all.
    pub(super) async fn pipeline(&mut self, commands: &[impl Encode]) -> RedisResult<Vec<Value>> {
        self.pipeline_before(commands, commands.len()).await
    }

    /// Sends commands in one go, and returns the answers to the first ones. What the rest is answered
    /// may come long after that: [`answer`](Self::answer) gives it.
    pub(super) async fn pipeline_before(
        &mut self,
        commands: impl IntoIterator<Item = impl Encode>,
        first: usize,
    ) -> RedisResult<Vec<Value>> {
        self.ask(commands).await?;
        let mut answers = Vec::with_capacity(first);
        while answers.len() < first {
            answers.push(self.answer().await?);
        }
        Ok(answers)
    }

    /// Sends commands in one go, and passes over the answers that are due before theirs.
    async fn ask(&mut self, commands: impl IntoIterator<Item = impl Encode>) -> RedisResult<()> {
        let before = self.due;
        self.send(commands);
        for _ in 0..before {
            self.answer().await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_answer_to_a_command_that_was_given_up_is_nobody_elses() {
        let (ours, mut server) = duplex(1024);
        let mut line = Connection::direct(Direct::new(Box::new(ours)));
        let ping = redis::cmd("PING");
        let pings = [ping.clone(), ping.clone()];
        let moment = std::time::Duration::from_secs(1);
        let given_up = tokio::time::timeout(moment, line.command(&ping)).await;
        given_up.unwrap_err();
        let given_up = tokio::time::timeout(moment, line.pipeline(&pings));
        given_up.await.unwrap_err();
        server
            .write_all(b":1\r\n:2\r\n:3\r\n:4\r\n:5\r\n")
            .await
            .unwrap();
        assert_eq!(line.command(&ping).await.unwrap(), Value::Int(4));
        server.write_all(b":6\r\n").await.unwrap();
        let first = line.pipeline_before(&pings, 1).await;
        assert_eq!(first.unwrap(), [Value::Int(5)]);
        assert_eq!(line.answer().await.unwrap(), Value::Int(6));
        server.write_all(b":7\r\n").await.unwrap();
        line.answer().await.expect_err("nothing was asked");
    }
}
