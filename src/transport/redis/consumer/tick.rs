//! The request and the response of one tick of the upkeep. A tick is one call of `tick.lua`.

use std::{fmt::Write as _, sync::Arc};

use bytes::Bytes;
use redis::Cmd;

use super::{
    announcer::{Announcement, WorkerStep, WorkerTick},
    lease::DueLeases,
    member::Member,
    streams::ServedStream,
};
use crate::{
    error::Error,
    message::Name,
    transport::{
        MinuteCounts,
        redis::{
            entry::{self, StreamEntryId, WhichStream},
            keys::CONSUMER_PREFIX,
            producer::schedule::{MAX_PROMOTED_BYTES, MAX_PROMOTED_MESSAGES, Promoted},
            response::{Value, array, bytes, fixed_array, integer, text, unexpected},
        },
    },
};

/// An id behind all entries: a read from this id returns nothing. The greatest id cannot be used,
/// since the server treats it like `>`.
const ID_BEHIND_ALL_ENTRIES: &str = "18446744073709551615-18446744073709551614";

/// The arguments of one tick, except the leases to renew.
pub(super) struct TickRequest {
    /// The assumed lease of other libraries' consumers, in milliseconds.
    pub(super) foreign_lease: u64,
    /// Set to trim streams even if other libraries' consumers read them.
    pub(super) trim_beside_foreign: bool,
    /// The minimum time between two trims of a stream by any workers, in milliseconds.
    pub(super) trim_period: u64,
    /// The time after which a silent consumer is deleted, in milliseconds.
    pub(super) max_silence: u64,
    /// The minimum time between two searches for silent consumers, in milliseconds.
    pub(super) reap_period: u64,
    /// The streams of the tick, with their steps.
    pub(super) streams: Vec<TickStream>,
    /// The announcement of the worker.
    pub(super) announcement: Announcement,
    /// The key of the registry, and the time from which registrations are listed. `None` without a
    /// registry.
    pub(super) registry: Option<(String, i64)>,
}

/// A stream that takes part in a tick.
pub(super) struct TickStream {
    pub(super) stream: Arc<ServedStream>,
    pub(super) steps: TickSteps,
    /// The worker's part of the tick. `None` if the source belongs to no worker, or if this tick
    /// does not maintain the stream.
    pub(super) worker: Option<WorkerStep>,
}

/// The steps of a tick on one stream, in addition to the renewal of leases.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TickSteps {
    /// Delivers due messages, and returns the state of the group. The other steps require this
    /// step.
    pub(super) maintain: bool,
    /// Marks this consumer as alive.
    pub(super) mark_alive: bool,
    /// Trims handled entries.
    pub(super) trim: bool,
    /// Deletes dead consumers.
    pub(super) reap: bool,
}

impl TickSteps {
    /// Encodes the steps as letters, which `tick.lua` lists.
    fn flags(self, worker: Option<&WorkerStep>) -> String {
        let flags = [
            (self.maintain, 'm'),
            (self.mark_alive, 's'),
            (self.trim, 't'),
            (self.reap, 'r'),
            (worker.is_some(), 'w'),
            (
                worker.is_some_and(|it| it.revision_to_announce.is_some()),
                'a',
            ),
        ];
        let set = flags.into_iter().filter(|(is_set, _)| *is_set);
        set.map(|(_, flag)| flag).collect()
    }
}

impl TickRequest {
    /// Returns the script's keys.
    pub(super) fn keys(&self) -> Vec<String> {
        let mut keys = Vec::with_capacity(8 * self.streams.len() + 1);
        for TickStream { stream, .. } in &self.streams {
            let of_stream = &stream.keys;
            keys.extend([
                of_stream.stream_key.as_str().to_owned(),
                of_stream.retry_key.clone(),
                of_stream.due.clone(),
                of_stream.bodies.clone(),
                of_stream.stream_due.clone(),
                of_stream.stream_bodies.clone(),
                of_stream.throttle("trim"),
                of_stream.throttle("reap"),
            ]);
        }
        keys.extend(self.registry.iter().map(|(key, _)| key.clone()));
        keys
    }

    /// Appends the script's arguments, for a tick that renews these leases.
    pub(super) fn add_args(&self, member: &Member, leases: &DueLeases, cmd: &mut Cmd) {
        let mut registered_since = String::new();
        if let Some((_, time)) = &self.registry {
            let _ = write!(registered_since, "{time}");
        }
        cmd.arg(member.group.as_str())
            .arg(&member.consumer)
            .arg(CONSUMER_PREFIX)
            .arg(MAX_PROMOTED_MESSAGES)
            .arg(MAX_PROMOTED_BYTES)
            .arg(self.foreign_lease)
            .arg(u8::from(self.trim_beside_foreign))
            .arg(self.trim_period)
            .arg(self.max_silence)
            .arg(self.reap_period)
            .arg(ID_BEHIND_ALL_ENTRIES)
            .arg(registered_since)
            .arg(&self.announcement.worker)
            .arg(&self.announcement.text)
            .arg(self.announcement.kept_for_ms)
            .arg(member.versions.newest_version)
            .arg(&member.versions.lines);
        // The arguments of each stream: its steps, the ids of its leases, and the worker's counts.
        for of_tick in &self.streams {
            let (stream, worker) = (&of_tick.stream, of_tick.worker.as_ref());
            let [retry_ids, primary_ids] =
                stream.both_streams().map(|which| leases.on_stream(which));
            let counts = worker.and_then(|worker| worker.counts.as_ref());
            let counts = counts.map(MinuteCounts::fields).unwrap_or_default();
            cmd.arg(of_tick.steps.flags(worker))
                .arg(&stream.keys.worker_orders)
                .arg(worker.map_or("", |worker| &worker.last_order_id))
                .arg(retry_ids.len())
                .arg(primary_ids.len())
                .arg(2 * counts.len());
            for id in retry_ids.iter().chain(primary_ids) {
                cmd.arg(*id);
            }
            for (field, count) in counts {
                cmd.arg(field).arg(count);
            }
        }
    }
}

/// The decoded response to a tick.
#[derive(Debug)]
pub(super) struct TickResponse {
    /// The time on Redis's clock, in milliseconds.
    pub(super) time: i64,
    /// The results of the streams, in the order of the request.
    pub(super) streams: Vec<StreamTick>,
    /// Streams of the registry, each with the time of its last registration.
    pub(super) registered: Vec<(Name, i64)>,
}

/// The results of a tick for one stream.
#[derive(Debug)]
pub(super) struct StreamTick {
    /// The ids of deliveries that are no longer pending for this consumer: on the retry stream, and
    /// on the primary stream.
    lost: [Vec<StreamEntryId>; 2],
    /// `None` without the step `maintain`.
    pub(super) maintained: Option<Maintained>,
}

impl StreamTick {
    /// Takes the deliveries that are no longer pending for this consumer. `stream` is the stream of
    /// this result.
    pub(super) fn take_lost(&mut self, stream: &ServedStream) -> Vec<(WhichStream, StreamEntryId)> {
        let both = stream
            .both_streams()
            .into_iter()
            .zip(std::mem::take(&mut self.lost));
        let lost = both.flat_map(|(which, ids)| ids.into_iter().map(move |id| (which, id)));
        lost.collect()
    }
}

/// The results of the maintenance of one stream. The result of a failed step is its error.
#[derive(Debug)]
pub(super) struct Maintained {
    /// The moves of due messages: to the retry stream, and to the primary stream.
    pub(super) promoted: [Result<Promoted, String>; 2],
    pub(super) group: Result<GroupFacts, String>,
    /// The group and the consumer that prevent trimming; `None` if nothing prevents it.
    pub(super) trim_blocked: Result<Option<(Bytes, Bytes)>, String>,
    pub(super) reaped: Result<(), String>,
    /// The move of the parked messages whose wait has ended. They go to the retry stream.
    pub(super) handed_over: Result<(), String>,
    /// The fields of the stream's pauses, one for each pause.
    pub(super) pauses: Result<Vec<Bytes>, String>,
    /// The worker's results. `None` if the request has no part of the worker.
    pub(super) worker: Option<WorkerTick>,
}

/// The state of a group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct GroupFacts {
    /// The last entry of the stream that was delivered. `None` if the group does not exist.
    pub(super) delivered: Option<StreamEntryId>,
    /// The number of pending entries, on the stream and on the retry stream.
    pub(super) pending: i64,
}

impl TickResponse {
    pub(super) fn decode(response: Value) -> Result<Self, Error> {
        let [time, streams, registered] = fixed_array(response)?;
        let streams = array(streams)?.into_iter().map(StreamTick::decode);
        Ok(Self {
            time: integer(&time)?,
            streams: streams.collect::<Result<_, _>>()?,
            registered: decode_registrations(registered)?,
        })
    }
}

impl StreamTick {
    fn decode(response: Value) -> Result<Self, Error> {
        let mut parts = array(response)?;
        // Without the step `maintain` there are only the lost deliveries.
        if parts.len() == 2 {
            let [retry, primary] = fixed_array(Value::Array(parts))?;
            return Ok(Self {
                lost: [entry::decode_ids(retry)?, entry::decode_ids(primary)?],
                maintained: None,
            });
        }
        let lost = parts.drain(..parts.len().min(2)).collect();
        let [retry, primary] = fixed_array(Value::Array(lost))?;
        // The results of the steps follow, and then those of the worker.
        let worker = match parts.len() > 7 {
            true => Some(WorkerTick::decode(fixed_array(Value::Array(
                parts.split_off(7),
            ))?)?),
            false => None,
        };
        let [
            to_retry,
            to_primary,
            group,
            trimmed,
            reaped,
            handed_over,
            pauses,
        ] = fixed_array(Value::Array(parts))?;
        Ok(Self {
            lost: [entry::decode_ids(retry)?, entry::decode_ids(primary)?],
            maintained: Some(Maintained {
                promoted: [
                    decode_step(to_retry, Promoted::decode)?,
                    decode_step(to_primary, Promoted::decode)?,
                ],
                group: decode_step(group, GroupFacts::decode)?,
                trim_blocked: decode_step(trimmed, decode_trim_blocked)?,
                reaped: decode_done(reaped)?,
                handed_over: decode_done(handed_over)?,
                pauses: decode_step(pauses, decode_pause_fields)?,
                worker,
            }),
        })
    }
}

/// Decodes the streams of the registry: `[stream, time, …]`.
fn decode_registrations(response: Value) -> Result<Vec<(Name, i64)>, Error> {
    let mut values = array(response)?.into_iter();
    let mut registered = Vec::new();
    while let Some(stream) = values.next() {
        let [time] = fixed_array(Value::Array(values.next().into_iter().collect()))?;
        let digits = bytes(time)?;
        let time = std::str::from_utf8(&digits)
            .ok()
            .and_then(|it| it.parse::<f64>().ok());
        let time = time.ok_or_else(|| unexpected("the time of a registration", "another text"))?;
        // A name that is not UTF-8 is ignored: this library does not register such names.
        if let Ok(stream) = Name::from_utf8(&bytes(stream)?) {
            registered.push((stream, time as i64));
        }
    }
    Ok(registered)
}

impl GroupFacts {
    fn decode(response: Value) -> Result<Self, Error> {
        let [delivered, pending] = fixed_array(response)?;
        let delivered = bytes(delivered)?;
        Ok(Self {
            delivered: StreamEntryId::parse(&delivered),
            pending: integer(&pending)?,
        })
    }
}

/// Decodes the result of a step. A failed step has its error, a text, in place of an array.
pub(super) fn decode_step<T>(
    response: Value,
    decode: impl FnOnce(Value) -> Result<T, Error>,
) -> Result<Result<T, String>, Error> {
    match response {
        Value::Array(_) => decode(response).map(Ok),
        error => text(error).map(Err),
    }
}

/// Decodes the fields of the pauses in `[field, value, …]`.
fn decode_pause_fields(response: Value) -> Result<Vec<Bytes>, Error> {
    array(response)?.into_iter().step_by(2).map(bytes).collect()
}

/// Decodes the result of a step that returns only a number, which is not needed. A failed step has
/// its error, a text, in place of the number.
pub(super) fn decode_done(response: Value) -> Result<Result<(), String>, Error> {
    match response {
        Value::Int(_) => Ok(Ok(())),
        error => text(error).map(Err),
    }
}

/// Decodes `[number of trimmed entries]`, or `[0, group, consumer]` if this consumer prevents
/// trimming.
fn decode_trim_blocked(response: Value) -> Result<Option<(Bytes, Bytes)>, Error> {
    let mut response = array(response)?.into_iter().skip(1);
    let (group, consumer) = (response.next(), response.next());
    group
        .zip(consumer)
        .map(|(group, consumer)| Ok((bytes(group)?, bytes(consumer)?)))
        .transpose()
}
