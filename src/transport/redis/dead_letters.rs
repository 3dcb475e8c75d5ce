//! The store of a group's dead letters: the stream `{<stream>}:dead:<group>`.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use redis::Cmd;

use super::{
    Redis,
    entry::{StreamEntryId, value_of},
    keys::Keys,
    msgpack::with_unpacked_fields,
    pipeline::{Pipeline, Resend},
    response::{Value, array, bytes, count, fields, fixed_array, unexpected},
    scripts,
};
use crate::{
    error::{Error, ErrorKind},
    message::{DeadLetterId, MessageId},
    transport::{
        Acted, Action, DeadLetter, DeadLetterPage, DeadLetterStore, DeadLetters, PAGE_BYTES, Page,
        PartitionedDeadLetters, Step, StoreFuture, codec,
    },
};

/// The number of fields at the start of a dead letter that describe the failure: group, origin,
/// reason, attempts, time.
const FACT_COUNT: usize = 5;

impl Redis {
    /// Returns access to the dead letters of the group, which are the entries of the stream
    /// `{<stream>}:dead:<group>`.
    pub fn dead_letters(&self) -> DeadLetters {
        match self.settings.partitions() {
            None => DeadLetters::new(RedisDeadLetters(self.clone())),
            Some(partitions) => {
                let stores = partitions.names.iter().map(|partition| {
                    let mut redis = self.clone();
                    redis.settings = self.settings.of_stream(partition);
                    RedisDeadLetters(redis)
                });
                DeadLetters::new(PartitionedDeadLetters::new(stores))
            }
        }
    }
}

/// The dead letters of the handle's group.
struct RedisDeadLetters(Redis);

impl RedisDeadLetters {
    /// Decodes a letter of the handle's group.
    fn decode(&self, raw: RawEntry) -> Option<DeadLetter> {
        let settings = &self.0.settings;
        let letter = decode(raw)?;
        Some(letter.died_in(settings.stream.clone(), settings.group.clone()))
    }

    fn pipeline(&self, keys: &Keys) -> Pipeline {
        self.0.shared.pipeline.for_key(&keys.stream_key)
    }

    async fn command(&self, keys: &Keys, cmd: Cmd) -> Result<Value, Error> {
        self.pipeline(keys).command(cmd, Resend::Never).await
    }
}

impl DeadLetterStore for RedisDeadLetters {
    fn list(&self, page: Page) -> StoreFuture<'_, DeadLetterPage> {
        Box::pin(async move {
            let max = page.max.max(1);
            let after = page.after.as_ref().map(checked_id).transpose()?;
            let args = |cmd: &mut Cmd| {
                cmd.arg(after.unwrap_or_default()).arg(max).arg(PAGE_BYTES);
            };
            let keys = self.0.keys()?;
            let response = self
                .pipeline(&keys)
                .script(&scripts::LIST_DEAD, &[&keys.dead], args, Resend::Never)
                .await?;
            let (found, more) = decode_page(response)?;
            let last = found.last().filter(|_| more);
            let next = last.map(|(id, _)| Page::first(max).after(id.clone()));
            let letters = found
                .into_iter()
                .filter_map(|raw| self.decode(raw))
                .collect();
            Ok(DeadLetterPage::new(letters, next))
        })
    }

    fn get<'a>(&'a self, id: &'a DeadLetterId) -> StoreFuture<'a, Option<DeadLetter>> {
        Box::pin(async move {
            let id = checked_id(id)?;
            let mut cmd = redis::cmd("XRANGE");
            let keys = self.0.keys()?;
            cmd.arg(&keys.dead).arg(id).arg(id);
            let found = decode_entries(self.command(&keys, cmd).await?)?;
            Ok(found.into_iter().find_map(|raw| self.decode(raw)))
        })
    }

    fn newest_id(&self) -> StoreFuture<'_, Option<DeadLetterId>> {
        Box::pin(async move {
            let keys = self.0.keys()?;
            let mut cmd = redis::cmd("XREVRANGE");
            cmd.arg(&keys.dead).arg("+").arg("-").arg("COUNT").arg(1);
            let found = decode_entries(self.command(&keys, cmd).await?)?;
            Ok(found.into_iter().next().map(|(id, _)| id))
        })
    }

    fn act(&self, action: Action, step: Step) -> StoreFuture<'_, Acted> {
        Box::pin(async move {
            let keys = self.0.keys()?;
            if let Step::Ids(ids) = &step {
                ids.iter().try_for_each(|id| checked_id(id).map(drop))?;
            }
            let args = |cmd: &mut Cmd| {
                cmd.arg(keys.group.as_str())
                    .arg(u8::from(action == Action::Replay));
                match &step {
                    Step::Ids(ids) => {
                        cmd.arg("ids");
                        ids.iter().for_each(|id| {
                            cmd.arg(id.as_str());
                        });
                    }
                    Step::Range {
                        after,
                        until,
                        name,
                        max,
                    } => {
                        cmd.arg("range")
                            .arg(after.as_deref().unwrap_or_default())
                            .arg(until.as_str())
                            .arg(name.as_deref().unwrap_or_default())
                            .arg(max.max(&1))
                            .arg(PAGE_BYTES);
                    }
                }
            };
            let names = [&*keys.dead, &keys.retry_key];
            let response = self
                .pipeline(&keys)
                .script(&scripts::CHANGE_DEAD, &names, args, Resend::Never)
                .await?;
            decode_change(response)
        })
    }

    fn replay_as<'a>(
        &'a self,
        id: &'a DeadLetterId,
        fields: Vec<(Bytes, Bytes)>,
    ) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let (keys, id) = (self.0.keys()?, checked_id(id)?);
            // `1` stands for a replay.
            let args = |cmd: &mut Cmd| {
                cmd.arg(keys.group.as_str()).arg("1").arg("edited").arg(id);
                for (field, value) in &fields {
                    cmd.arg(&field[..]).arg(&value[..]);
                }
            };
            let names = [&*keys.dead, &keys.retry_key];
            let response = self
                .pipeline(&keys)
                .script(&scripts::CHANGE_DEAD, &names, args, Resend::Never)
                .await?;
            Ok(decode_change(response)?.acted > 0)
        })
    }

    fn count(&self) -> StoreFuture<'_, u64> {
        Box::pin(async move {
            let keys = self.0.keys()?;
            let mut cmd = redis::cmd("XLEN");
            cmd.arg(&keys.dead);
            count(&self.command(&keys, cmd).await?)
        })
    }
}

/// Returns the text of an id. Fails if its syntax is wrong.
fn checked_id(id: &DeadLetterId) -> Result<&str, Error> {
    match StreamEntryId::parse(id.as_bytes()) {
        Some(_) => Ok(id),
        None => Err(Error::new(
            ErrorKind::Invalid,
            format!("`{id}` is no id of a dead letter; one looks like 1795430237570-0"),
        )),
    }
}

/// An entry of a stream, as its id and its fields. The fields are not decoded yet.
pub(super) type RawEntry = (DeadLetterId, Vec<(Bytes, Bytes)>);

/// Decodes the response of `LIST_DEAD` or `LIST_UNREAD`: the entries of a page, and `true` if more
/// may follow.
pub(super) fn decode_page(response: Value) -> Result<(Vec<RawEntry>, bool), Error> {
    let [found, more] = fixed_array(response)?;
    Ok((decode_entries(found)?, count(&more)? > 0))
}

/// Decodes the entries in a response to `XRANGE`: `[[id, [field, value, …]], …]`.
pub(super) fn decode_entries(response: Value) -> Result<Vec<RawEntry>, Error> {
    let entries = array(response)?.into_iter().map(|entry| {
        let [id, list] = fixed_array(entry)?;
        Ok((decode_id(id)?, fields(list)?))
    });
    entries.collect()
}

fn decode_id(id: Value) -> Result<DeadLetterId, Error> {
    let id = DeadLetterId::from_utf8(&bytes(id)?).ok();
    id.filter(|id| StreamEntryId::parse(id.as_bytes()).is_some())
        .ok_or_else(|| unexpected("the id of an entry", "another text"))
}

/// Decodes the response of `CHANGE_DEAD`.
pub(super) fn decode_change(response: Value) -> Result<Acted, Error> {
    let [acted, next, skipped] = fixed_array(response)?;
    let next = match next {
        Value::Text(next) if next.is_empty() => None,
        next => Some(decode_id(next)?),
    };
    Ok(Acted {
        acted: count(&acted)?,
        next,
        skipped: array(skipped)?
            .into_iter()
            .map(decode_id)
            .collect::<Result<_, _>>()?,
    })
}

/// Decodes a letter. `None` if it was not written by a worker.
pub(super) fn decode((id, mut facts): RawEntry) -> Option<DeadLetter> {
    if facts.len() < FACT_COUNT {
        return None;
    }
    let after_facts = facts.split_off(FACT_COUNT);
    let fact = |index: usize| &facts[index].1;
    let number = |index: usize| std::str::from_utf8(fact(index)).ok()?.parse().ok();
    // If `~f` is the only other field, the transport has packed the fields of the message into it.
    // Beside further fields, `~f` is a field that the application has sent.
    let fields = match after_facts.len() {
        1 => with_unpacked_fields(after_facts),
        _ => after_facts,
    };
    let given_id = value_of(&fields, codec::RECEIPT_ID)
        .cloned()
        .and_then(codec::given_id);
    Some(DeadLetter {
        id,
        stream: None,
        group: None,
        message_id: given_id.or_else(|| MessageId::from_utf8(fact(1)).ok())?,
        fields,
        reason: String::from_utf8_lossy(fact(2)).into_owned(),
        attempts: number(3).map(|attempts: u64| u32::try_from(attempts).unwrap_or(u32::MAX))?,
        died_at: SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(number(4)?))?,
    })
}
