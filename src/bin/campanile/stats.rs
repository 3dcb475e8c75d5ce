//! `campanile stats`

use std::time::{Duration, SystemTime};

use campanile::{
    Error, Redis,
    transport::{GroupStats, StreamStats},
};
use clap::Args;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    command_error::{CommandError, chain, note},
    show::{Out, Screen, Table, json, text},
    signals,
    target::{Target, parse_duration},
};

/// The minimum time between two updates. There is a minimum because each update is work for the
/// server.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// The line that is shown for a stream without groups.
pub(crate) const NO_GROUP: &str = "no group yet";

#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Updates until Ctrl-C. On a terminal it redraws one view.
    #[arg(long, short)]
    watch: bool,
    /// The time between two updates.
    #[arg(long, value_name = "DURATION", value_parser = parse_interval, default_value = "2s", requires = "watch")]
    interval: Duration,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        interval if interval < MIN_INTERVAL => Err("the interval must be at least 100ms".into()),
        interval => Ok(interval),
    }
}

impl Stats {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        let redis = target.connect().await?;
        if self.watch {
            return self.watch(&redis, target, out).await;
        }
        target.check_existence(&redis).await?;
        let stats = target.stats(&redis).await?;
        match out.json {
            true => out.write_document(&stats_json(&stats)),
            false => out.write_lines(format_stats(&stats)),
        }
    }

    async fn watch(&self, redis: &Redis, target: &Target, out: &Out) -> Result<(), CommandError> {
        let interrupted = signals::cancel_on_interrupt()?;
        let screen = match out.terminal && !out.json {
            true => Some(Screen::enter(out)?),
            false => None,
        };
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_lines = Vec::new();
        let updates = async {
            loop {
                ticks.tick().await;
                let stats = target.stats(redis).await;
                match (&screen, stats) {
                    (Some(screen), Ok(stats)) => {
                        last_lines = format_stats(&stats);
                        screen.draw(&self.frame(&last_lines, None))?;
                    }
                    (None, Ok(stats)) if out.json => out.write_document(&stats_json(&stats))?,
                    (None, Ok(stats)) => {
                        let mut lines = format_stats(&stats);
                        lines.insert(0, text::time(SystemTime::now()));
                        lines.push(String::new());
                        out.write_lines(lines)?;
                    }
                    // A server that cannot be reached may come back. So the command shows the error
                    // and goes on. Any other error ends the command.
                    (screen, Err(error)) if is_transient(&error) => match screen {
                        Some(screen) => screen.draw(&self.frame(&last_lines, Some(&error)))?,
                        None => note(chain(&error)),
                    },
                    (_, Err(error)) => return Err(CommandError::from(error)),
                }
            }
        };
        let result = interrupted.run_until_cancelled(updates).await;
        drop(screen);
        match result {
            Some(result) => result,
            // Leaves the last statistics on the terminal.
            None if out.terminal && !out.json => out.write_lines(last_lines),
            None => Ok(()),
        }
    }

    fn frame(&self, stats: &[String], error: Option<&Error>) -> Vec<String> {
        let now = text::time(SystemTime::now());
        let every = humantime::format_duration(self.interval);
        let mut frame = vec![
            format!("{now}, every {every}; Ctrl-C ends it"),
            String::new(),
        ];
        frame.extend(stats.iter().cloned());
        if let Some(error) = error {
            frame.extend([String::new(), text::line(chain(error))]);
        }
        frame
    }
}

fn is_transient(error: &Error) -> bool {
    error.is_disconnected() || error.is_unknown_outcome()
}

fn format_stats(stats: &StreamStats) -> Vec<String> {
    let mut lines = vec![format!(
        "stream {}: {} entries, {} delayed",
        text::line(&*stats.stream),
        stats.entries,
        stats.delayed
    )];
    if stats.groups.is_empty() {
        lines.push(NO_GROUP.into());
        return lines;
    }
    let mut table = Table::new(&[
        "GROUP",
        ">LAG",
        ">PENDING",
        ">OLDEST",
        ">DELAYED",
        ">PARKED",
        ">DEAD",
        ">CONSUMERS",
    ]);
    for group in &stats.groups {
        table.add_row([
            group.group.to_string(),
            lag(group),
            group.pending.to_string(),
            group.oldest_pending.map_or("-".into(), text::duration),
            group.delayed.to_string(),
            group.parked.to_string(),
            group.dead.to_string(),
            group.consumers.to_string(),
        ]);
    }
    lines.extend(table.lines());
    lines
}

/// Formats the lag of a group: `?` if the server does not know the lag.
pub(crate) fn lag(group: &GroupStats) -> String {
    group.lag.map_or("?".into(), |lag| lag.to_string())
}

/// Returns the JSON of the stream and its groups.
pub(crate) fn stats_json(stats: &StreamStats) -> Value {
    let group = |group: &GroupStats| {
        json!({
            "group": &*group.group,
            "lag": group.lag,
            "pending": group.pending,
            "oldest_pending_ms": group.oldest_pending.map(json::milliseconds),
            "delayed": group.delayed,
            "parked": group.parked,
            "dead": group.dead,
            "consumers": group.consumers,
            "last_delivered_id": group.last_delivered,
            "unfinished": group.unfinished,
            "holds_up": group.kept_entries,
            "idle_ms": group.idle.map(json::milliseconds),
            "foreign": group.foreign,
            "foreign_pending": group.foreign_pending,
        })
    };
    json!({
        "stream": &*stats.stream,
        "entries": stats.entries,
        "delayed": stats.delayed,
        "groups": stats.groups.iter().map(group).collect::<Value>(),
    })
}
