//! `campanile send`

mod payload;
mod rpc;

use std::time::Duration;

use campanile::{Client, client::Call};
use clap::{Args, Subcommand};
use http::{HeaderName, HeaderValue};
use serde_json::json;

use self::payload::MessageArgs;
use crate::{
    command_error::CommandError,
    show::Out,
    target::{Target, parse_duration},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Send {
    /// Sends a task, and prints its id.
    Task(TaskOptions),
    /// Publishes an event.
    Event(EventOptions),
    /// Sends a request, and prints the reply.
    Rpc(rpc::RpcOptions),
}

#[derive(Debug, Args)]
pub(crate) struct TaskOptions {
    #[command(flatten)]
    message: MessageArgs,
    #[command(flatten)]
    options: CallOptions,
    /// Delays the task by this time.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    delay: Option<Duration>,
    /// Drops the task if it was not started within this time after it was due.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    expires: Option<Duration>,
    /// Ends each attempt at the task after this time; the task is then delivered again.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    attempt_timeout: Option<Duration>,
    /// Gives the task up after this number of attempts, instead of the workers' number.
    #[arg(long, value_name = "COUNT")]
    max_attempts: Option<u32>,
    /// Sends the task only if no task with this key was sent before. Prints the id of the first.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Sends the task only if no task with this key waits or runs. Prints the id of that task.
    #[arg(long, value_name = "KEY", conflicts_with = "idempotency_key")]
    unique: Option<String>,
    /// Records the status of the task, and keeps it for this time after the end.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    tracked: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct EventOptions {
    #[command(flatten)]
    message: MessageArgs,
    /// Publishes a sharded event, which only subscribers of sharded events receive. Needs Redis
    /// 7.0.
    #[arg(long)]
    sharded: bool,
}

// The options of tasks and requests. A doc comment here would be printed as the help of a command.
#[derive(Debug, Args)]
struct CallOptions {
    /// A header. May be given several times.
    #[arg(long = "header", short = 'H', value_name = "NAME=VALUE", value_parser = parse_header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The key that chooses the partition, with --partitions.
    #[arg(long, value_name = "KEY", requires = "partitions")]
    partition_key: Option<String>,
}

impl CallOptions {
    fn apply_to<S, R>(self, call: Call<S, R>) -> Call<S, R> {
        let headers = self.headers.into_iter();
        let call = headers.fold(call, |call, (name, value)| call.header(name, value));
        match self.partition_key {
            Some(key) => call.partition_key(key),
            None => call,
        }
    }
}

fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("a header looks like name=value")?;
    let name = name
        .parse()
        .map_err(|_| "HTTP does not allow this name of a header")?;
    let value = value
        .parse()
        .map_err(|_| "HTTP does not allow this value of a header")?;
    Ok((name, value))
}

impl Send {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        match self {
            Send::Task(task) => task.run(target, out).await,
            Send::Event(event) => event.run(target, out).await,
            Send::Rpc(rpc) => rpc.run(target, out).await,
        }
    }
}

impl TaskOptions {
    async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        let (name, payload) = self.message.read()?;
        let client = Client::new(target.connect().await?);
        let mut call = self.options.apply_to(client.enqueue(name, payload));
        if let Some(delay) = self.delay {
            call = call.delay(delay);
        }
        if let Some(time_to_live) = self.expires {
            call = call.expires_after(time_to_live);
        }
        if let Some(timeout) = self.attempt_timeout {
            call = call.attempt_timeout(timeout);
        }
        if let Some(attempts) = self.max_attempts {
            call = call.max_attempts(attempts);
        }
        if let Some(key) = self.idempotency_key {
            call = call.idempotency_key(key);
        }
        if let Some(key) = self.unique {
            call = call.unique(key);
        }
        if let Some(keep) = self.tracked {
            call = call.tracked(keep);
        }
        let receipt = call.await?;
        match out.json {
            true => out.write_document(&json!({ "id": receipt.id().map(|id| id.as_str()) })),
            false => out.write_lines([receipt.to_string()]),
        }
    }
}

impl EventOptions {
    async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        let (name, payload) = self.message.read()?;
        let client = Client::new(target.connect().await?);
        let event = client.publish(&name, payload);
        match self.sharded {
            true => event.sharded().await?,
            false => event.await?,
        }
        match out.json {
            true => out.write_document(&json!({ "published": &*name })),
            // Prints nothing, since an event has no id and Redis does not say who received it.
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_a_name_and_a_value_that_http_allows() {
        let (name, value) = parse_header("X-Tenant=a=b").unwrap();
        assert_eq!((name.as_str(), value.as_bytes()), ("x-tenant", &b"a=b"[..]));
        assert_eq!(parse_header("x-a=").unwrap().1, "");
        for text in ["x-a", "=b", "x a=b", "x-a=a\nb", "x-a=\x1b"] {
            assert!(parse_header(text).is_err(), "{text}");
        }
    }
}
