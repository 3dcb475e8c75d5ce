//! `campanile tail events`

use std::time::SystemTime;

use campanile::{
    Message, Name, Redis,
    transport::{Interest, Source, Transport},
};
use clap::Args;
use serde_json::json;

use super::{TailItem, TailOutput, excerpt};
use crate::{
    command_error::{CommandError, note},
    show::{Out, json, text},
    signals,
    target::Target,
};

/// The maximum number of events in one fetch.
const MAX_EVENTS_PER_FETCH: usize = 256;

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// The names of events.
    #[arg(value_name = "NAME", required_unless_present = "patterns")]
    names: Vec<String>,
    /// A pattern of names, such as `orders.*`. An event is shown once for each name and pattern
    /// that matches.
    #[arg(long = "pattern", short, value_name = "PATTERN")]
    patterns: Vec<String>,
    /// Shows the sharded events with these names, and no others. Needs Redis 7.0.
    #[arg(long, conflicts_with = "patterns")]
    sharded: bool,
    #[command(flatten)]
    output: TailOutput,
}

impl Events {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        let redis = target.connect().await?.on_event_gap(|gap| {
            let gap = text::duration(gap);
            note(format!(
                "the connection was lost for {gap}; what was published meanwhile is missing"
            ));
        });
        let names = |names: &[String]| names.iter().map(|name| Name::from(name.as_str())).collect();
        let mut interest = Interest::default();
        match self.sharded {
            true => interest.sharded = names(&self.names),
            false => interest.events = names(&self.names),
        }
        interest.patterns = names(&self.patterns);
        let mut source = redis.clone().open(interest).await?;
        let interrupted = signals::cancel_on_interrupt()?;
        if out.terminal {
            note("listening; Ctrl-C ends it");
        }
        let tail_until_end = self.show(&redis, &mut source, out);
        interrupted
            .run_until_cancelled(tail_until_end)
            .await
            .unwrap_or(Ok(()))
    }

    async fn show(
        &self,
        redis: &Redis,
        source: &mut impl Source,
        out: &Out,
    ) -> Result<(), CommandError> {
        let mut shown = 0;
        let mut reported_drops = 0;
        while !self.output.is_complete(shown) {
            for delivery in source.next(MAX_EVENTS_PER_FETCH).await? {
                let Ok(event) = delivery.content else {
                    continue;
                };
                shown += 1;
                self.output.show(&item(&event), out)?;
                if self.output.is_complete(shown) {
                    break;
                }
            }
            let drops = redis.counts().events_dropped;
            if drops > reported_drops {
                note(format!(
                    "{} events are missing: more came than could be written",
                    drops - reported_drops
                ));
                reported_drops = drops;
            }
        }
        Ok(())
    }
}

fn item(event: &Message) -> TailItem<'_> {
    let now = SystemTime::now();
    let payload = event.payload();
    let name = text::line(&**event.name());
    TailItem {
        line: format!("{}  {name}  {}", text::time(now), excerpt(payload)),
        json: json!({
            "name": &**event.name(),
            "pattern": event.parts().pattern.as_deref(),
            "received_at_ms": json::time(now),
            "payload": json::bytes(payload),
        }),
        payload: Some(payload),
    }
}
