//! One tick of the upkeep as one script: what it is asked for, and what it answers.

use bytes::Bytes;
use redis::Cmd;

use crate::{
    error::Error,
    transport::redis::{
        entry::{self, EntryId, Lane},
        producer::schedule::{MOVED_AT_ONCE, MOVED_BYTES, Promoted},
        response::{Value, array, bytes, exactly, integer},
    },
};

/// The end of a consumer's history: behind it there is nothing to be delivered. One id less than the
/// greatest, which is another word for `>` to the server.
const END: &str = "18446744073709551615-18446744073709551614";

/// What one tick does beside what every tick does.
pub(super) struct Request<'a> {
    /// The leases to renew on the retry stream, and on the stream.
    pub(super) renew: [&'a [EntryId]; 2],
    pub(super) sign_of_life: bool,
    pub(super) foreign_lease: u64,
    pub(super) trim_beside_foreign: bool,
    /// The milliseconds between two trims of any worker, if it is time for one.
    pub(super) trim: Option<u64>,
    /// The milliseconds after which a silent consumer is gone.
    pub(super) gone: u64,
    /// The milliseconds between two searches for those, if it is time for one.
    pub(super) reap: Option<u64>,
}

impl Request<'_> {
    /// The arguments of the script behind the group, the consumer, and the prefix of our consumers.
    pub(super) fn args(&self, cmd: &mut Cmd) {
        let period = |period: Option<u64>| period.map(|it| it.to_string()).unwrap_or_default();
        let [retry, main] = self.renew;
        cmd.arg(MOVED_AT_ONCE)
            .arg(MOVED_BYTES)
            .arg(self.foreign_lease)
            .arg(u8::from(self.trim_beside_foreign))
            .arg(period(self.trim))
            .arg(self.gone)
            .arg(period(self.reap))
            .arg(if self.sign_of_life { END } else { "" })
            .arg(retry.len());
        for id in retry.iter().chain(main) {
            cmd.arg(*id);
        }
    }
}

/// The answer to a tick. A step that has failed has its error in place of its result.
#[derive(Debug)]
pub(super) struct Tick {
    /// Redis's clock, in milliseconds.
    pub(super) time: i64,
    /// The deliveries that are not pending for this consumer any more.
    pub(super) lost: Vec<(Lane, EntryId)>,
    /// What was due on the retry stream, and on the stream.
    pub(super) promoted: [Result<Promoted, String>; 2],
    pub(super) group: Result<GroupFacts, String>,
    /// The group and the consumer that prevent trimming.
    pub(super) trim_blocked: Result<Option<(Bytes, Bytes)>, String>,
    pub(super) reaped: Result<(), String>,
}

/// What a tick says about the group.
#[derive(Debug)]
pub(super) struct GroupFacts {
    /// The last entry of the stream that was delivered; `None` where the group does not exist.
    pub(super) delivered: Option<EntryId>,
    pub(super) pending: i64,
}

impl Tick {
    pub(super) fn read(answer: Value) -> Result<Self, Error> {
        let [
            time,
            retry,
            main,
            retried,
            sent_later,
            facts,
            trimmed,
            reaped,
        ] = exactly(answer)?;
        let lanes = [(Lane::Retry, retry), (Lane::Main, main)];
        let mut lost = Vec::new();
        for (lane, ids) in lanes {
            lost.extend(entry::ids(ids)?.into_iter().map(|id| (lane, id)));
        }
        Ok(Self {
            time: integer(&time)?,
            lost,
            promoted: [
                step(retried, Promoted::read)?,
                step(sent_later, Promoted::read)?,
            ],
            group: step(facts, GroupFacts::read)?,
            trim_blocked: step(trimmed, trim_blocked)?,
            reaped: match reaped {
                Value::Int(_) => Ok(()),
                error => Err(text(error)?),
            },
        })
    }
}

impl GroupFacts {
    fn read(answer: Value) -> Result<Self, Error> {
        let [delivered, pending] = exactly(answer)?;
        let delivered = bytes(delivered)?;
        Ok(Self {
            delivered: EntryId::parse(&delivered),
            pending: integer(&pending)?,
        })
    }
}

/// The result of a step, or its error.
fn step<T>(
    answer: Value,
    read: impl FnOnce(Value) -> Result<T, Error>,
) -> Result<Result<T, String>, Error> {
    match answer {
        Value::Array(_) => read(answer).map(Ok),
        error => text(error).map(Err),
    }
}

fn text(error: Value) -> Result<String, Error> {
    Ok(String::from_utf8_lossy(&bytes(error)?).into_owned())
}

/// `[dropped]`, or `[0, group, consumer]`.
fn trim_blocked(answer: Value) -> Result<Option<(Bytes, Bytes)>, Error> {
    let mut answer = array(answer)?.into_iter().skip(1);
    let (group, consumer) = (answer.next(), answer.next());
    group
        .zip(consumer)
        .map(|(group, consumer)| Ok((bytes(group)?, bytes(consumer)?)))
        .transpose()
}
