//! `campanile send rpc`

use std::time::Duration;

use campanile::{Client, Error, Reply, RpcError};
use clap::Args;
use serde_json::json;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

use super::{Headers, Payload};
use crate::{
    args::{Target, duration},
    failure::Failure,
    show::{Out, json, text},
};

/// How long what runs beside a request may take to end.
const TIDYING: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(crate) struct Rpc {
    #[command(flatten)]
    payload: Payload,
    #[command(flatten)]
    headers: Headers,
    /// How long it waits for the reply. What was not started by then is not started any more.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s")]
    timeout: Duration,
    /// Asks on the fastest way: its reply is lost with a connection.
    #[arg(long)]
    fast: bool,
    /// Writes the reply byte for byte to a terminal, too.
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

impl Rpc {
    pub(super) async fn run(self, target: &Target, out: &Out) -> Result<(), Failure> {
        let raw = self.raw;
        let asked = self.ask(target).await;
        tidy_up().await;
        match asked? {
            Ok(reply) if out.json => out.document(&json!({
                "headers": json::headers(&reply.headers),
                "reply": json::bytes(&reply.payload),
            })),
            Ok(reply) if out.terminal && !raw => out.lines([text::block(&reply.payload)]),
            Ok(reply) => out.raw(&reply.payload),
            Err(answer) => {
                if out.json {
                    let (code, message) = (answer.code().as_str(), answer.message());
                    out.document(&json!({ "error": { "code": code, "message": message } }))?;
                }
                Err(Failure::Answered(answer))
            }
        }
    }

    /// The reply, or the error that was answered.
    async fn ask(self, target: &Target) -> Result<Result<Reply, RpcError>, Failure> {
        let (name, payload) = self.payload.read()?;
        let client = Client::new(target.connect().await?);
        let call = match self.fast {
            true => client.request_fast(name, payload),
            false => client.request(name, payload),
        };
        let reply: Result<Reply, Error> = self.headers.on(call.timeout(self.timeout)).await;
        match reply {
            Ok(reply) => Ok(Ok(reply)),
            Err(error) => match error.rpc() {
                Some(answer) => Ok(Err(answer.clone())),
                None => Err(error.into()),
            },
        }
    }
}

/// Lets what ran beside a request end, now that the handle is gone: the stream on which the reply
/// came would stay for minutes.
async fn tidy_up() {
    let until = Instant::now() + TIDYING;
    while Handle::current().metrics().num_alive_tasks() > 0 && Instant::now() < until {
        sleep(Duration::from_millis(5)).await;
    }
}
