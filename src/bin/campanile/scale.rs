//! `campanile scale`

use std::time::Duration;

use campanile::transport::Backlog;
use clap::Args;
use serde_json::{Value, json};

use crate::{
    command_error::CommandError,
    show::{Out, json, text},
    target::{Target, parse_duration},
};

#[derive(Debug, Args)]
pub(crate) struct Scale {
    /// Counts what is due within this time.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "30s")]
    within: Duration,
}

impl Scale {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        let (redis, group) = target.connect_to_group().await?;
        let backlog = redis.backlog_within(self.within).await?;
        if out.json {
            let mut document = backlog_json(&backlog);
            document["stream"] = json!(&*target.stream());
            document["group"] = json!(&*group);
            return out.write_document(&document);
        }
        out.write_lines([self.line(&backlog)])
    }

    fn line(&self, backlog: &Backlog) -> String {
        let within = humantime::format_duration(self.within);
        let oldest = backlog.oldest_waiting.map(text::duration);
        let oldest = oldest.map_or(String::new(), |oldest| format!(" (oldest {oldest})"));
        let Backlog {
            waiting,
            unclaimed,
            running,
            retrying,
            delayed,
            due_soon,
            parked,
            workers,
            ..
        } = backlog;
        format!(
            "{} for {workers} workers: {waiting} waiting{oldest}, {unclaimed} unclaimed, {running} \
             running, {due_soon} due within {within}; in all {retrying} retrying, {delayed} delayed, \
             {parked} parked",
            backlog.total()
        )
    }
}

fn backlog_json(backlog: &Backlog) -> Value {
    json!({
        "total": backlog.total(),
        "waiting": backlog.waiting,
        "unclaimed": backlog.unclaimed,
        "running": backlog.running,
        "due_soon": backlog.due_soon,
        "retrying": backlog.retrying,
        "delayed": backlog.delayed,
        "parked": backlog.parked,
        "oldest_waiting_ms": backlog.oldest_waiting.map(json::milliseconds),
        "workers": backlog.workers,
    })
}
