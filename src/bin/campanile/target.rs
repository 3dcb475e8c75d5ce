//! The arguments that all commands share.

use std::time::Duration;

use campanile::{Name, Redis};
use clap::Args;

use crate::command_error::CommandError;

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
}

impl Target {
    /// Connects, or fails within seconds with the reason.
    pub(crate) async fn connect(&self) -> Result<Redis, CommandError> {
        let redis = Redis::connect(&self.url).await;
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
    use super::*;

    #[test]
    fn a_duration_has_a_unit() {
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert!(duration("5").unwrap_err().contains("500ms"));
    }
}
