//! The arguments that all commands share.

use std::time::Duration;

use campanile::{
    Error, Name, Redis,
    transport::{StreamStats, Streams},
};
use clap::Args;

use crate::command_error::CommandError;
#[cfg(feature = "redis-rustls")]
use crate::tls_args::TlsArgs;

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
    /// The namespace of all keys and channels [default: that of the URL, or none]
    #[arg(long, global = true, env = "CAMPANILE_NAMESPACE", value_parser = parse_namespace)]
    namespace: Option<String>,
    /// The stream.
    #[arg(long, global = true, default_value = "app_stream")]
    stream: String,
    /// The number of partitions of the stream, if it is partitioned.
    #[arg(long, global = true, value_name = "NUMBER")]
    partitions: Option<usize>,
    /// The consumer group [default: the only one of the stream; of `stats` and `groups`: all]
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
        let mut redis = Redis::builder(&self.url);
        if let Some(namespace) = &self.namespace {
            redis = redis.namespace(namespace);
        }
        #[cfg(feature = "redis-rustls")]
        let redis = self.tls.apply(redis)?;
        let redis = redis.connect().await;
        let redis = redis.map_err(CommandError::Connection)?;
        let redis = match self.partitions {
            None => redis.stream(self.stream()),
            Some(partitions) => redis.streams(Streams::partitioned(self.stream(), partitions)),
        };
        Ok(match self.group() {
            Some(group) => redis.group(group),
            None => redis,
        })
    }

    /// Connects with a group that exists, and returns its name: the group of `--group`, or else the
    /// stream's only group.
    pub(crate) async fn connect_to_group(&self) -> Result<(Redis, Name), CommandError> {
        let candidate = self.connect_to_candidate().await?;
        match candidate.missing_error {
            Some(error) => Err(error),
            None => Ok((candidate.redis, candidate.group)),
        }
    }

    /// Connects as [`connect_to_group`](Self::connect_to_group) does, but accepts a deleted group
    /// that still has dead letters.
    pub(crate) async fn connect_to_dead_letters(&self) -> Result<Redis, CommandError> {
        let Candidate {
            redis,
            missing_error,
            ..
        } = self.connect_to_candidate().await?;
        match missing_error {
            Some(error) if redis.dead_letters().count().await? == 0 => Err(error),
            _ => Ok(redis),
        }
    }

    async fn connect_to_candidate(&self) -> Result<Candidate, CommandError> {
        let redis = self.connect().await?;
        let groups = redis.groups().await?;
        let group = match (self.group(), groups.as_deref()) {
            (Some(named), _) => named,
            (None, Some([only])) => only.clone(),
            (None, Some(several @ [_, _, ..])) => return Err(self.several_groups_error(several)),
            (None, _) => DEFAULT_GROUP.into(),
        };
        let exists = groups.iter().flatten().any(|found| *found == group);
        Ok(Candidate {
            redis: redis.group(&group),
            missing_error: (!exists).then(|| self.no_group_error(&group, groups.as_deref())),
            group,
        })
    }

    /// Returns the statistics of the stream, with the group of `--group` or with all groups.
    pub(crate) async fn stats(&self, redis: &Redis) -> Result<StreamStats, Error> {
        let mut stats = redis.stats().await?;
        if let Some(group) = self.group() {
            stats.groups.retain(|found| found.group == group);
        }
        Ok(stats)
    }

    /// Checks that the stream exists, and the group of `--group`, if set.
    pub(crate) async fn check_existence(&self, redis: &Redis) -> Result<(), CommandError> {
        let groups = redis
            .groups()
            .await?
            .ok_or_else(|| self.no_stream_error())?;
        match self.group() {
            Some(group) if !groups.contains(&group) => {
                Err(self.no_group_error(&group, Some(&groups)))
            }
            _ => Ok(()),
        }
    }

    /// Returns the error for a group that does not exist, or whose stream does not exist. If the
    /// stream exists, the text lists its groups.
    fn no_group_error(&self, group: &Name, groups: Option<&[Name]>) -> CommandError {
        let Some(groups) = groups else {
            return self.no_stream_error();
        };
        let listed = match groups {
            [] => "it has none".into(),
            groups => format!("it has {}; name one with --group", quoted_names(groups)),
        };
        let stream = &self.stream;
        CommandError::Missing(format!(
            "the stream `{stream}` has no group `{group}`: {listed}"
        ))
    }

    fn several_groups_error(&self, groups: &[Name]) -> CommandError {
        let (stream, count, listed) = (&self.stream, groups.len(), quoted_names(groups));
        CommandError::Missing(format!(
            "the stream `{stream}` has {count} groups; name one with --group: {listed}"
        ))
    }

    fn no_stream_error(&self) -> CommandError {
        CommandError::Missing(format!("there is no stream `{}`", self.stream))
    }

    pub(crate) fn stream(&self) -> Name {
        self.stream.as_str().into()
    }

    /// Returns the group of `--group`, if set.
    fn group(&self) -> Option<Name> {
        self.group.as_deref().map(Name::from)
    }
}

/// The group that a command is for. The group may not exist.
struct Candidate {
    redis: Redis,
    group: Name,
    /// The error if the group does not exist.
    missing_error: Option<CommandError>,
}

/// The default group of a [`Redis`] handle. Used if the stream has no groups, or does not exist any
/// more: its dead letters may still exist.
const DEFAULT_GROUP: &str = "app_group";

/// Checks the namespace while the arguments are parsed, so that the error names `--namespace`.
fn parse_namespace(text: &str) -> Result<String, String> {
    let checked = Redis::builder("redis://localhost/").namespace(text).check();
    checked
        .map(|()| text.to_owned())
        .map_err(|error| error.to_string())
}

/// Formats names for a sentence: the first `MAX_SHOWN`, and the number of the others.
fn quoted_names(names: &[Name]) -> String {
    const MAX_SHOWN: usize = 20;
    let shown = names.iter().take(MAX_SHOWN).map(|name| format!("`{name}`"));
    let shown = shown.collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MAX_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Parses a duration such as `1h 30m`, `2s` or `500ms`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; a duration looks like 500ms, 2s or 1h30m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit() {
        assert_eq!(parse_duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert!(parse_duration("5").unwrap_err().contains("500ms"));
    }
}
