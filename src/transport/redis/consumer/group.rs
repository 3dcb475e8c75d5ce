//! Joining the group and leaving it.

use std::sync::{Arc, Mutex};

use super::member::Member;
use crate::{
    error::Error,
    sync::lock,
    transport::{
        Settings, Start,
        redis::{
            entry::{Entry, EntryId, Lane},
            error,
            pipeline::{Pipeline, Retry},
            response::{Value, array, bytes, unexpected},
            scripts,
        },
    },
};

/// The group, as this consumer joins, finds again and leaves it.
pub(super) struct Group {
    member: Arc<Member>,
    pipeline: Pipeline,
    /// The last entry of the stream that the group is known to have delivered: where it goes on if it
    /// is destroyed.
    delivered: Mutex<EntryId>,
}

/// What came of the attempt to join.
#[derive(Debug, PartialEq)]
pub(super) enum Joining {
    Joined {
        others: Vec<String>,
    },
    /// The group is new, and the stream has others.
    Choose {
        others: Vec<String>,
    },
    /// A key is of another type.
    NoStream {
        key: String,
        kind: String,
    },
}

impl Joining {
    /// From the script's answer: a list of texts.
    pub(super) fn read(answer: Value) -> Result<Self, Error> {
        let texts = array(answer)?.into_iter().map(|text| {
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
                Ok(Self::Choose { others })
            }
            Some("type") => match (texts.next(), texts.next()) {
                (Some(key), Some(kind)) => Ok(Self::NoStream { key, kind }),
                _ => Err(unexpected("a key and its type", "nothing")),
            },
            _ => Err(unexpected("what came of joining", "another text")),
        }
    }
}

impl Group {
    pub(super) fn new(member: Arc<Member>, pipeline: Pipeline) -> Self {
        Self {
            member,
            pipeline,
            delivered: Mutex::new(EntryId::ZERO),
        }
    }

    /// Makes sure that the group exists and that this consumer may read with it.
    pub(super) async fn join(&self, settings: &Settings) -> Result<(), Error> {
        let others = self.create(start(&settings.start)).await?;
        if !others.is_empty() && settings.unknown_names.is_none() {
            return Err(Error::config(format!(
                "the stream `{}` has other groups ({}), so messages that this worker does not know \
                 may be theirs; say what is to become of them: \
                 `.unknown_names(UnknownNames::Ignore)` leaves them to the others, \
                 `.unknown_names(UnknownNames::Fail)` treats them as failed",
                self.member.keys.stream,
                others.join(", ")
            )));
        }
        self.try_rights().await
    }

    /// Creates the group again after it has vanished. Where its stream stayed it goes on behind the last
    /// entry that it is known to have delivered; a stream that was emptied is read from the beginning.
    /// What was pending for workers that are gone has vanished with the group.
    pub(super) async fn rejoin(&self) -> Result<(), Error> {
        self.create("after").await.map(drop)
    }

    /// Notes that the group has delivered this entry of the stream.
    pub(super) fn note_delivered(&self, id: EntryId) {
        let mut delivered = lock(&self.delivered);
        *delivered = id.max(*delivered);
    }

    /// Notes that the group has delivered these entries.
    pub(super) fn note_entries(&self, entries: &[Entry]) {
        let of_stream = entries.iter().filter(|entry| entry.lane == Lane::Main);
        if let Some(last) = of_stream.map(|entry| entry.id).max() {
            self.note_delivered(last);
        }
    }

    /// Creates the group if it does not exist, and returns the stream's other groups.
    async fn create(&self, start: &str) -> Result<Vec<String>, Error> {
        let keys = [&*self.member.keys.stream, &*self.member.keys.retry];
        let args = |cmd: &mut redis::Cmd| {
            let delivered = *lock(&self.delivered);
            cmd.arg(self.member.keys.group.as_str())
                .arg(start)
                .arg(delivered);
        };
        let answer = self
            .pipeline
            .submit_script(&scripts::JOIN, &keys, args, Retry::Never);
        let answer = match answer.await? {
            Value::ServerError(refusal)
                if refusal
                    .details()
                    .is_some_and(|text| text.contains("Invalid stream ID")) =>
            {
                return Err(Error::config(format!(
                    "the group `{}` cannot start after `{start}`: that is no entry id, such as \
                     1795430237570-0",
                    self.member.keys.group
                )));
            }
            answer => error::check(answer)?,
        };
        match Joining::read(answer)? {
            Joining::Joined { others } => Ok(others),
            Joining::Choose { others } => Err(Error::config(format!(
                "the group `{}` does not exist yet, and the stream `{}` has others ({}) whose \
                 history may be long; say where it starts: `.start(Start::Beginning)`, \
                 `.start(Start::End)` or `.start(Start::After(id))`",
                self.member.keys.group,
                self.member.keys.stream,
                others.join(", ")
            ))),
            Joining::NoStream { key, kind } => Err(Error::config(format!(
                "the key `{key}` holds a {kind} and not a stream; choose another stream name, or \
                 delete the key"
            ))),
        }
    }

    /// Uses each right that only matters later, in a way that changes nothing, so that a missing
    /// one is an error now and not a worker that does nothing.
    async fn try_rights(&self) -> Result<(), Error> {
        // A new consumer has no history. Reading it raises no counts then.
        let read = self.member.read_group(
            1,
            None,
            &[
                (&self.member.keys.stream, "0"),
                (&self.member.keys.retry, "0"),
            ],
        );
        let mut acknowledge = redis::cmd("XACK");
        acknowledge
            .arg(self.member.keys.stream.as_str())
            .arg(self.member.keys.group.as_str())
            .arg("0-0");
        for cmd in [read, acknowledge] {
            self.pipeline.command(cmd, Retry::Never).await?;
        }
        Ok(())
    }

    /// Leaves the group, if nothing is pending for this worker.
    pub(super) async fn leave(&self) -> Result<(), Error> {
        let keys = [&*self.member.keys.stream, &*self.member.keys.retry];
        let args = |cmd: &mut redis::Cmd| {
            cmd.arg(self.member.keys.group.as_str())
                .arg(&self.member.consumer);
        };
        self.pipeline
            .script(&scripts::LEAVE, &keys, args, Retry::Never)
            .await
            .map(drop)
    }
}

fn start(start: &Start) -> &str {
    match start {
        Start::Auto => "",
        Start::Beginning => "0",
        Start::End => "$",
        Start::After(id) => id,
    }
}
