//! Joins, restores and leaves the consumer group.

use std::sync::Arc;

use futures_util::future::join_all;

use super::{member::Member, served_names::ServedNames, streams::ServedStream};
use crate::{
    error::Error,
    transport::{
        Start,
        redis::{
            error,
            keys::Keys,
            pipeline::{Pipeline, Resend},
            response::{Value, array, bytes, fields, unexpected},
            scripts,
        },
    },
};

/// Joins, restores and leaves the group on each stream for this consumer.
pub(super) struct Membership {
    pub(super) member: Arc<Member>,
    pub(super) pipeline: Pipeline,
    /// The start position if the group does not exist yet.
    pub(super) start: Start,
    /// Set if the application has chosen a policy for unknown names.
    pub(super) has_unknown_names_policy: bool,
    /// The names of messages that this worker has recorded for its group.
    pub(super) names: Option<Arc<ServedNames>>,
}

/// The result of an attempt to join.
#[derive(Debug, PartialEq)]
pub(super) enum JoinResult {
    /// The group exists now. `others` are the other groups of the stream.
    Joined { others: Vec<String> },
    /// The group does not exist, no start position was chosen, and the stream has other groups.
    StartNotChosen { others: Vec<String> },
    /// A key exists and is not a stream.
    NoStream { key: String, kind: String },
}

impl JoinResult {
    /// Decodes the script's response, a list of strings.
    pub(super) fn decode(response: Value) -> Result<Self, Error> {
        let texts = array(response)?.into_iter().map(|text| {
            let text = bytes(text)?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        });
        let mut texts = texts.collect::<Result<Vec<_>, Error>>()?.into_iter();
        match texts.next().as_deref() {
            Some("joined") => {
                let others = texts.collect();
                Ok(Self::Joined { others })
            }
            Some("choose") => {
                let others = texts.collect();
                Ok(Self::StartNotChosen { others })
            }
            Some("type") => match (texts.next(), texts.next()) {
                (Some(key), Some(kind)) => Ok(Self::NoStream { key, kind }),
                _ => Err(unexpected("a key and its type", "nothing")),
            },
            _ => Err(unexpected("the result of joining", "another text")),
        }
    }
}

impl Membership {
    /// Creates the group on these streams if needed, and checks this consumer's permissions.
    pub(super) async fn join_streams(&self, streams: &[Arc<ServedStream>]) -> Result<(), Error> {
        let joined = join_all(streams.iter().map(|stream| self.join(stream))).await;
        joined.into_iter().collect::<Result<(), _>>()?;
        match streams {
            [] => Ok(()),
            streams => self.check_permissions(streams).await,
        }
    }

    /// Creates the group on a stream if needed. Fails if the stream has other groups and the
    /// application has not chosen what to do with unknown names.
    pub(super) async fn join(&self, stream: &ServedStream) -> Result<(), Error> {
        let others = self.create(stream, start_arg(&self.start)).await?;
        if !others.is_empty() && !self.has_unknown_names_policy {
            return Err(Error::config(format!(
                "the stream `{}` has other groups ({}), so messages that this worker does not know \
                 may be theirs; choose what happens to them: \
                 `.unknown_names(UnknownNames::Ignore)` leaves them to the others, \
                 `.unknown_names(UnknownNames::Fail)` treats them as failed",
                stream.keys.stream,
                others.join(", ")
            )));
        }
        self.read_pauses(stream).await
    }

    /// Reads the pauses of a stream, because entries may be read before the first tick of the
    /// upkeep. If the server refuses the command, that tick reads the pauses.
    async fn read_pauses(&self, stream: &ServedStream) -> Result<(), Error> {
        let mut cmd = redis::cmd("HGETALL");
        cmd.arg(stream.keys.pauses());
        let response = self.pipeline.command(cmd, Resend::Never).await;
        match response.and_then(fields) {
            Ok(pauses) => {
                let fields: Vec<_> = pauses.into_iter().map(|(field, _)| field).collect();
                if stream.set_pauses(&fields, |_| {}) && stream.is_paused() {
                    let (stream, group) = (&stream.keys.stream, &stream.keys.group);
                    tracing::info!(%stream, %group, "the stream is paused");
                }
                Ok(())
            }
            Err(error) if error::is_temporary(&error) => Err(error),
            Err(_) => Ok(()),
        }
    }

    /// Creates the group again after it was deleted. The group continues behind the last entry that
    /// it is known to have delivered, or at the beginning if the stream was emptied. The entries
    /// that were pending in the deleted group are not delivered again.
    pub(super) async fn rejoin(&self, stream: &ServedStream) -> Result<(), Error> {
        self.create(stream, "after").await.map(drop)
    }

    /// Creates the group if it does not exist, and returns the stream's other groups.
    async fn create(&self, stream: &ServedStream, start: &str) -> Result<Vec<String>, Error> {
        let Keys {
            stream: name,
            group,
            stream_key,
            retry_key,
            ..
        } = &stream.keys;
        let keys = [&**stream_key, retry_key];
        let args = |cmd: &mut redis::Cmd| {
            cmd.arg(group.as_str())
                .arg(start)
                .arg(stream.last_delivered());
        };
        let response = self
            .pipeline
            .submit_script(&scripts::JOIN, &keys, args, Resend::Never);
        let response = match response.await? {
            Value::ServerError(refusal)
                if refusal
                    .details()
                    .is_some_and(|text| text.contains("Invalid stream ID")) =>
            {
                return Err(Error::config(format!(
                    "the group `{group}` cannot start after `{start}`: that is no entry id, such as \
                     1795430237570-0"
                )));
            }
            response => error::check(response)?,
        };
        match JoinResult::decode(response)? {
            JoinResult::Joined { others } => Ok(others),
            JoinResult::StartNotChosen { others } => Err(Error::config(format!(
                "the group `{group}` does not exist yet, and the stream `{name}` has others ({}) whose \
                 history may be long; say where it starts: `.start(Start::Beginning)`, \
                 `.start(Start::End)` or `.start(Start::After(id))`",
                others.join(", ")
            ))),
            JoinResult::NoStream { key, kind } => Err(Error::config(format!(
                "the key `{key}` holds a {kind} and not a stream; choose another stream name, or \
                 delete the key"
            ))),
        }
    }

    /// Checks permissions: sends commands that have no effect, but need the same permissions as
    /// later commands.
    async fn check_permissions(&self, streams: &[Arc<ServedStream>]) -> Result<(), Error> {
        // A new consumer has no history, so reading the history increments no delivery counts.
        let keys = streams
            .iter()
            .flat_map(|stream| [&*stream.keys.stream_key, &stream.keys.retry_key]);
        let read = self.member.read_group(1, None, keys, "0");
        let read = self.pipeline.submit(read, Resend::Never).await?;
        if error::code(&read) == Some("CROSSSLOT") {
            return Err(Error::config(
                "the streams of a set must be in one slot of a Redis Cluster: give their names one \
                 hash tag, such as `{orders}.urgent` and `{orders}.normal`, or serve each by itself",
            ));
        }
        error::check(read)?;
        let mut acknowledge = redis::cmd("XACK");
        acknowledge
            .arg(streams[0].keys.stream_key.as_str())
            .arg(self.member.group.as_str())
            .arg("0-0");
        self.pipeline.command(acknowledge, Resend::Never).await?;
        Ok(())
    }

    /// Deletes this consumer from the group on a stream, unless entries are pending for the
    /// consumer there. Also removes the record of its names, and the announcement of the worker.
    pub(super) async fn leave(&self, stream: &ServedStream) -> Result<(), Error> {
        let keys = &stream.keys;
        let workers = keys.workers();
        let keys = [
            &*keys.stream_key,
            &keys.retry_key,
            &keys.served_names,
            &workers,
        ];
        let names = self.names.as_ref().map_or("", |names| names.list());
        let args = |cmd: &mut redis::Cmd| {
            cmd.arg(self.member.group.as_str())
                .arg(&self.member.consumer)
                .arg(names);
        };
        self.pipeline
            .script(&scripts::LEAVE, &keys, args, Resend::Never)
            .await
            .map(drop)
    }
}

/// Returns the start position in the form that `join.lua` takes.
fn start_arg(start: &Start) -> &str {
    match start {
        Start::Auto => "",
        Start::Beginning => "0",
        Start::End => "$",
        Start::After(id) => id,
    }
}
