//! One connection, on which commands are answered in their order.
//!
//! The driver makes it: it knows how to log in. Then it steps aside where it can, for what it does for
//! each command costs more than the command: see [`direct`].

mod direct;
mod foreign;

use std::{
    future::poll_fn,
    task::{Context, Poll},
};

use redis::{Cmd, RedisResult};

pub(super) use self::{
    direct::{Direct, Loan},
    foreign::Foreign,
};
use super::value::Value;

/// A connection, which works while its answers are waited for. None has a time limit: whoever gives up
/// on one must not use the connection any more.
pub(super) enum Line {
    /// What is sent and read is this side's.
    Direct(Direct),
    /// The driver's own connection.
    Foreign(Foreign),
}

impl Line {
    /// Sends commands in one go, once answers are waited for.
    pub(super) fn send<'a>(&mut self, cmds: impl IntoIterator<Item = &'a Cmd>) {
        match self {
            Line::Direct(direct) => direct.send(cmds),
            Line::Foreign(foreign) => foreign.send(cmds),
        }
    }

    /// The answer to the oldest command that has not been answered yet; a refusal is one too. An
    /// error means that the connection is lost, also where no answer is due.
    pub(super) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<RedisResult<Value>> {
        match self {
            Line::Direct(direct) => direct.poll_answer(cx),
            Line::Foreign(foreign) => foreign.poll_answer(cx),
        }
    }

    async fn answer(&mut self) -> RedisResult<Value> {
        poll_fn(|cx| self.poll_answer(cx)).await
    }

    async fn answers(&mut self, count: usize) -> RedisResult<Vec<Value>> {
        let mut answers = Vec::with_capacity(count);
        while answers.len() < count {
            answers.push(self.answer().await?);
        }
        Ok(answers)
    }

    pub(super) async fn command(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        self.send([cmd]);
        self.answer().await
    }

    pub(super) async fn pipeline(&mut self, cmds: &[Cmd]) -> RedisResult<Vec<Value>> {
        self.send(cmds);
        self.answers(cmds.len()).await
    }

    /// Sends a command behind others, in one go. `first` is told what those are answered, which may
    /// be long before this one is.
    pub(super) async fn command_behind(
        &mut self,
        others: &[Cmd],
        first: impl FnOnce(RedisResult<Vec<Value>>),
        cmd: &Cmd,
    ) -> RedisResult<Value> {
        self.send(others.iter().chain([cmd]));
        let answers = self.answers(others.len()).await;
        let lost = answers.as_ref().err().cloned();
        first(answers);
        match lost {
            Some(error) => Err(error),
            None => self.answer().await,
        }
    }
}
