//! The command line.

use std::time::Duration;

use campanile::{Name, Redis};
use clap::{Args, Parser, Subcommand};

#[cfg(feature = "redis-rustls")]
use crate::tls_args::TlsArgs;
use crate::{
    command_error::CommandError, dead::DeadCommand, send::Send, stats::Stats, tail::TailCommand,
};

const EXIT_CODES: &str = "\
Exit codes:
  0    done; also when what it was piped into has ended, and when a live view was ended by Ctrl-C
  1    failed
  2    used in a wrong way, or not confirmed where that has to be
  3    no connection to Redis: nothing was done
  4    there is no such thing: an id, a name, a group
  5    the request was answered with an error
  130  ended by Ctrl-C before it was done";

/// Inspects and sends the tasks, events and requests of Campanile on a Redis server.
#[derive(Debug, Parser)]
#[command(name = "campanile", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows statistics of the stream and its groups.
    Stats(Stats),
    /// Lists, shows, replays and purges the dead letters of the group.
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Sends a task, an event or a request.
    #[command(subcommand)]
    Send(Send),
    /// Shows messages as they arrive, without consuming them.
    #[command(subcommand)]
    Tail(TailCommand),
}

// The server, the stream and the group.
#[derive(Debug, Args)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct Target {
    /// The server, as redis://user:password@host:port/db
    ///
    /// A password is safer in the environment: others can read a command line.
    // The help must not show the value, which may contain a password.
    #[arg(
        long,
        global = true,
        env = "REDIS_URL",
        hide_env_values = true,
        default_value = "redis://127.0.0.1/"
    )]
    url: String,
    /// The stream.
    #[arg(long, global = true, default_value = "app_stream")]
    stream: String,
    /// The consumer group [default: app_group, or the only one that there is; of `stats`: all]
    #[arg(long, global = true)]
    group: Option<String>,
    /// Prints JSON: one document, or one line for each item of a live command.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[cfg(feature = "redis-rustls")]
    #[command(flatten)]
    tls: TlsArgs,
}

impl Target {
    /// Connects, or fails within seconds with the reason.
    pub(crate) async fn connect(&self) -> Result<Redis, CommandError> {
        let redis = Redis::builder(&self.url);
        #[cfg(feature = "redis-rustls")]
        let redis = self.tls.apply(redis)?;
        let redis = redis.connect().await;
        let redis = redis.map_err(CommandError::Connection)?;
        let redis = redis.stream(self.stream());
        Ok(match self.group() {
            Some(group) => redis.group(group),
            None => redis,
        })
    }

    /// Connects with a group that exists. If none is named, it is the default group, or else the
    /// stream's only group. A group that does not exist is an error, unless it has dead letters:
    /// they outlive their group.
    pub(crate) async fn connect_to_group(&self) -> Result<Redis, CommandError> {
        let redis = self.connect().await?;
        let group = self.group().unwrap_or_else(|| DEFAULT_GROUP.into());
        let groups = redis.groups().await?;
        let is_there = |group: &Name| groups.iter().flatten().any(|found| found == group);
        if is_there(&group) {
            return Ok(redis);
        }
        if let (None, Some([only])) = (&self.group, groups.as_deref()) {
            return Ok(redis.group(only));
        }
        if redis.dead_letters().count().await? > 0 {
            return Ok(redis);
        }
        Err(self.no_group(&group, groups.as_deref()))
    }

    /// The error of a group or a stream that does not exist; lists the existing groups.
    pub(crate) fn no_group(&self, group: &Name, groups: Option<&[Name]>) -> CommandError {
        let Some(groups) = groups else {
            return self.no_stream();
        };
        let listed = match groups {
            [] => "it has none".into(),
            groups => format!("it has {}; name one with --group", listed(groups)),
        };
        let stream = &self.stream;
        CommandError::Missing(format!(
            "the stream `{stream}` has no group `{group}`: {listed}"
        ))
    }

    pub(crate) fn no_stream(&self) -> CommandError {
        CommandError::Missing(format!("there is no stream `{}`", self.stream))
    }

    pub(crate) fn stream(&self) -> Name {
        self.stream.as_str().into()
    }

    /// The group, if one was named.
    pub(crate) fn group(&self) -> Option<Name> {
        self.group.as_deref().map(Name::from)
    }
}

/// The default group of a handle.
const DEFAULT_GROUP: &str = "app_group";

/// Formats names for a sentence, up to a readable number.
fn listed(names: &[Name]) -> String {
    const MAX: usize = 20;
    let shown = names.iter().take(MAX).map(|name| format!("`{name}`"));
    let shown = shown.collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Parses a duration such as `1h 30m`, `2s` or `500ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; a duration looks like 500ms, 2s or 1h30m"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_duration_has_a_unit() {
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert!(duration("5").unwrap_err().contains("500ms"));
    }
}
