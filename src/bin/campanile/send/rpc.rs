//! `campanile send rpc`

use std::time::Duration;

use campanile::{Client, Error, Reply, RpcError};
use clap::Args;
use serde_json::json;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

use super::{CallOptions, MessageArgs};
use crate::{
    command_error::CommandError,
    show::{Out, json, text},
    target::{Target, parse_duration},
};

/// The maximum time to wait for the end of the background tasks.
const MAX_CLEANUP: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(crate) struct RpcOptions {
    #[command(flatten)]
    message: MessageArgs,
    #[command(flatten)]
    options: CallOptions,
    /// The time to wait for the reply. A request that was not started by then is dropped.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "30s")]
    timeout: Duration,
    /// Uses the fastest way for the reply, which is lost if a connection breaks.
    #[arg(long)]
    fast: bool,
    /// Writes the reply byte for byte, also to a terminal.
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

impl RpcOptions {
    pub(super) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        let raw = self.raw;
        let outcome = self.send_request(target).await;
        wait_for_background_tasks().await;
        match outcome? {
            Ok(reply) if out.json => out.write_document(&json!({
                "headers": json::headers(&reply.headers),
                "reply": json::bytes(&reply.payload),
            })),
            Ok(reply) if out.terminal && !raw => out.write_lines([text::block(&reply.payload)]),
            Ok(reply) => out.write_raw(&reply.payload),
            Err(answer) => {
                if out.json {
                    let (code, message) = (answer.code().as_str(), answer.message());
                    out.write_document(&json!({ "error": { "code": code, "message": message } }))?;
                }
                Err(CommandError::ErrorReply(answer))
            }
        }
    }

    /// Sends the request. Returns the reply, or the error reply.
    async fn send_request(self, target: &Target) -> Result<Result<Reply, RpcError>, CommandError> {
        let (name, payload) = self.message.read()?;
        let client = Client::new(target.connect().await?);
        let call = match self.fast {
            true => client.request_fast(name, payload),
            false => client.request(name, payload),
        };
        let reply: Result<Reply, Error> = self.options.apply_to(call.timeout(self.timeout)).await;
        match reply {
            Ok(reply) => Ok(Ok(reply)),
            Err(error) => match error.rpc() {
                Some(answer) => Ok(Err(answer.clone())),
                None => Err(error.into()),
            },
        }
    }
}

/// Waits for the background tasks. They delete the reply stream of the Redis handle that
/// `send_request` has dropped. If the process ended before them, the stream would remain for
/// minutes.
async fn wait_for_background_tasks() {
    let deadline = Instant::now() + MAX_CLEANUP;
    while Handle::current().metrics().num_alive_tasks() > 0 && Instant::now() < deadline {
        sleep(Duration::from_millis(5)).await;
    }
}
