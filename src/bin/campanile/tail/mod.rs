//! `campanile tail`

mod events;
mod stream;

use bytes::Bytes;
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::{
    command_error::CommandError,
    show::{Out, text},
    target::Target,
};

/// The maximum length of a payload on a line, in bytes.
const MAX_PAYLOAD_LEN: usize = 256;

#[derive(Debug, Subcommand)]
pub(crate) enum TailCommand {
    /// Shows the tasks and requests of the stream as they arrive. Creates no group and no consumer,
    /// and consumes nothing.
    Stream(stream::StreamTail),
    /// Shows events as they are published.
    Events(events::Events),
}

// The options for the output: its format, and the number of items.
#[derive(Debug, Args)]
struct TailOutput {
    /// Ends after this number of items.
    #[arg(long, short = 'n', value_name = "COUNT")]
    count: Option<u64>,
    /// Writes only the payloads, byte for byte, each followed by a line break.
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

/// A message or an event, in each output format.
struct TailItem<'a> {
    line: String,
    json: Value,
    payload: Option<&'a Bytes>,
}

impl TailCommand {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        match self {
            TailCommand::Stream(stream) => stream.run(target, out).await,
            TailCommand::Events(events) => events.run(target, out).await,
        }
    }
}

impl TailOutput {
    /// Returns `true` if this number of items is all that was requested.
    fn is_complete(&self, shown: u64) -> bool {
        self.count.is_some_and(|count| shown >= count)
    }

    /// Shows an item.
    fn show(&self, item: &TailItem<'_>, out: &Out) -> Result<(), CommandError> {
        match item.payload {
            Some(payload) if self.raw => out.write_raw([&payload[..], b"\n"].concat()),
            None if self.raw => Ok(()),
            _ if out.json => out.write_document(&item.json),
            _ => out.write_lines([&item.line]),
        }
    }
}

/// Formats the beginning of a payload.
fn excerpt(payload: &Bytes) -> String {
    text::excerpt(payload, MAX_PAYLOAD_LEN)
}
