//! `campanile tail`

mod events;
mod stream;

use bytes::Bytes;
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::{
    args::Target,
    failure::Failure,
    show::{Out, text},
};

/// How much of a payload there is room for on a line, in bytes.
const EXCERPT: usize = 256;

#[derive(Debug, Subcommand)]
pub(crate) enum Tail {
    /// Shows the tasks and requests of the stream as they come. No group and no consumer is made,
    /// and nothing is taken from anybody.
    Stream(stream::Stream),
    /// Shows events as they are published.
    Events(events::Events),
}

// How what comes is shown, and when that ends.
#[derive(Debug, Args)]
struct Showing {
    /// Ends after so many.
    #[arg(long, short = 'n', value_name = "COUNT")]
    count: Option<u64>,
    /// Writes nothing but the payloads, byte for byte, each with a line break behind it.
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

/// Something that came by, in each of its forms.
struct Seen<'a> {
    line: String,
    json: Value,
    payload: Option<&'a Bytes>,
}

impl Tail {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), Failure> {
        match self {
            Tail::Stream(stream) => stream.run(target, out).await,
            Tail::Events(events) => events.run(target, out).await,
        }
    }
}

impl Showing {
    /// Whether so many were shown that it ends.
    fn is_over(&self, shown: u64) -> bool {
        self.count.is_some_and(|count| shown >= count)
    }

    fn show(&self, seen: &Seen<'_>, out: &Out) -> Result<(), Failure> {
        match seen.payload {
            Some(payload) if self.raw => out.raw([&payload[..], b"\n"].concat()),
            None if self.raw => Ok(()),
            _ if out.json => out.document(&seen.json),
            _ => out.lines([&seen.line]),
        }
    }
}

/// The beginning of a payload.
fn excerpt(payload: &Bytes) -> String {
    text::excerpt(payload, EXCERPT)
}
