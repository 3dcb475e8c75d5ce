//! `campanile tail stream`

use std::time::Duration;

use campanile::{
    Error,
    transport::redis::{Tail, TailEntry, TailFrom},
};
use clap::Args;
use serde_json::json;

use super::{TailItem, TailOutput, excerpt};
use crate::{
    command_error::{CommandError, chain, note},
    show::{Out, json, text},
    signals,
    target::Target,
};

/// The delay before another read if the server cannot be reached.
const RETRY_READ_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(crate) struct StreamTail {
    /// The start: `now`, `beginning`, the id of an entry, or a time in milliseconds since 1970.
    #[arg(long, default_value = "now")]
    from: String,
    /// Ends after the newest entry.
    #[arg(long)]
    no_follow: bool,
    #[command(flatten)]
    output: TailOutput,
}

impl StreamTail {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        let from = match &*self.from {
            "now" => TailFrom::Now,
            "beginning" => TailFrom::Beginning,
            id => TailFrom::Id(id.into()),
        };
        let redis = target.connect().await?;
        let mut tail = redis.tail(from).await?;
        let interrupted = signals::cancel_on_interrupt()?;
        if out.terminal && !self.no_follow {
            note(format!("looking at {}; Ctrl-C ends it", target.stream()));
        }
        let tail_until_end = self.show(&mut tail, out);
        interrupted
            .run_until_cancelled(tail_until_end)
            .await
            .unwrap_or(Ok(()))
    }

    async fn show(&self, tail: &mut Tail, out: &Out) -> Result<(), CommandError> {
        let mut shown = 0;
        let mut is_lost = false;
        while !self.output.is_complete(shown) {
            match self.next(tail).await {
                Ok(Some(entry)) => {
                    is_lost = false;
                    shown += 1;
                    self.output.show(&item(&entry), out)?;
                }
                Ok(None) => break,
                // A server that cannot be reached may come back. The next read then continues where
                // the last read ended. With `--no-follow` the command does not wait for the server.
                Err(error) if error.is_disconnected() && !self.no_follow => {
                    if !std::mem::replace(&mut is_lost, true) {
                        note(chain(&error));
                    }
                    tokio::time::sleep(RETRY_READ_AFTER).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn next(&self, tail: &mut Tail) -> Result<Option<TailEntry>, Error> {
        match self.no_follow {
            true => tail.next_present().await,
            false => tail.next().await.map(Some),
        }
    }
}

fn item(entry: &TailEntry) -> TailItem<'_> {
    let id = &entry.id;
    match &entry.content {
        Ok(message) => {
            let parts = message.parts();
            let time = parts.accepted_at.map_or("?".into(), text::time);
            let kind = message.kind().as_str();
            let name = text::line(&**message.name());
            let payload = message.payload();
            TailItem {
                line: format!("{time}  {id}  {kind:<4}  {name}  {}", excerpt(payload)),
                json: json!({
                    "id": id,
                    "message_id": parts.id.as_deref(),
                    "kind": kind,
                    "name": &**message.name(),
                    "accepted_at_ms": parts.accepted_at.map(json::time),
                    "headers": json::headers(message.headers()),
                    "payload": json::bytes(payload),
                }),
                payload: Some(payload),
            }
        }
        Err(undecodable) => {
            let fields = undecodable.fields.iter();
            let fields =
                fields.map(|(field, value)| format!("  {}={}", text::line(field), excerpt(value)));
            let reason = text::line(&undecodable.reason);
            TailItem {
                line: format!("{id}  (no message: {reason}){}", fields.collect::<String>()),
                json: json!({
                    "id": id,
                    "undecodable": undecodable.reason,
                    "fields": json::fields(&undecodable.fields),
                }),
                payload: None,
            }
        }
    }
}
