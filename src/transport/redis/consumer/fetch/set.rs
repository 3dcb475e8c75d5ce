//! The streams that a fetch reads, each with the size of its entries, its scan, and its failures.

use std::{sync::Arc, time::Duration};

use redis::Cmd;
use tokio::time::Instant;

use crate::{
    ablation::Mechanism,
    transport::{
        StreamSchedule,
        redis::{
            consumer::{
                claim::{Claimer, Scan},
                member::Member,
                streams::{ServedStream, StreamNames, StreamSet},
            },
            entry::Entry,
            entry_size::{EntrySize, MAX_RESPONSE_BYTES},
            scripts,
            server::{BACKOFF, LogLimit},
        },
    },
};

/// The maximum number of streams that one read blocks on. With more streams, a read blocks on the
/// streams that were active last, and the other streams are read between two blocked reads.
const MAX_BLOCKED_STREAMS: usize = 256;

/// The maximum number of plain reads between two calls of the script.
const MAX_PLAIN_READS: u32 = 7;
/// The maximum number of entries that plain reads take of one stream before its turn ends.
const MAX_PORTION: usize = 16;
/// A stream is active if one of this number of last reads has returned entries of the stream. Reads
/// without any entries do not count.
const RECENT_READS: u64 = 16;

/// The streams that one consumer reads.
pub(super) struct ReadSet {
    shared: Arc<StreamSet>,
    streams: Vec<ReadStream>,
    names: StreamNames,
    schedule: StreamSchedule,
    /// The position of the stream at which the next search for a due scan starts.
    next_scan: usize,
    /// Counts the reads that returned entries.
    reads: u64,
    plain: PlainReads,
}

/// Chooses between the script and plain reads. The script reads all streams in the order of the
/// policy. A plain read is one command, which reads some of the active streams. It costs the server
/// several times less than the script. While plain reads return at least half as many entries as
/// the script, the script is called only once after every [`MAX_PLAIN_READS`] plain reads.
///
/// A plain read takes a portion of each stream. While reads return all that they request, the
/// streams have a backlog, and the portions grow: larger portions of fewer streams need fewer
/// acknowledgements. `benches/redis.rs`, `task-64 --streams 64`, shows the gain.
struct PlainReads {
    /// The minimum number of entries that the next plain read requests of each stream.
    portion: usize,
    /// The number of entries that the last script call returned.
    script_entries: usize,
    /// The number of entries that the last read returned, plain or by the script.
    last_entries: usize,
    /// The number of plain reads since the last script call.
    reads_since_script: u32,
}

impl PlainReads {
    fn new() -> Self {
        Self {
            portion: 1,
            script_entries: 0,
            last_entries: 0,
            reads_since_script: 0,
        }
    }

    /// Records the numbers of entries that a plain read has returned and requested.
    fn note_plain(&mut self, entries: usize, requested: usize) {
        self.last_entries = entries;
        self.reads_since_script += 1;
        if entries >= requested {
            self.portion = MAX_PORTION.min(2 * self.portion);
        } else if 2 * entries < requested {
            self.portion = 1.max(self.portion / 2);
        }
    }

    /// Records the number of entries that the script has returned.
    fn note_script(&mut self, entries: usize) {
        (
            self.last_entries,
            self.script_entries,
            self.reads_since_script,
        ) = (entries, entries, 0);
    }

    /// Returns `true` if the next read should be a plain one.
    fn are_worth_it(&self) -> bool {
        self.reads_since_script < MAX_PLAIN_READS
            && self.last_entries > 0
            && 2 * self.last_entries >= self.script_entries
    }
}

/// A stream, and the state that the fetch keeps for it.
pub(super) struct ReadStream {
    pub(super) stream: Arc<ServedStream>,
    pub(super) size: EntrySize,
    scan: Scan,
    failing: Option<Failing>,
    /// The number of the last read that returned entries of the stream.
    last_active_read: u64,
}

/// The failures of a stream that cannot be read. The stream is skipped until `retry_at`.
struct Failing {
    retry_at: Instant,
    failures: u32,
    warnings: LogLimit,
}

impl ReadStream {
    fn is_readable(&self) -> bool {
        self.failing.is_none() && !self.stream.is_paused()
    }
}

impl ReadSet {
    pub(super) fn new(shared: Arc<StreamSet>, schedule: StreamSchedule) -> Self {
        let mut set = Self {
            shared: shared.clone(),
            streams: Vec::new(),
            names: StreamNames::default(),
            schedule,
            next_scan: 0,
            reads: 0,
            plain: PlainReads::new(),
        };
        for stream in shared.all().iter() {
            set.add(stream.clone());
        }
        set
    }

    pub(super) fn len(&self) -> usize {
        self.streams.len()
    }

    pub(super) fn first_mut(&mut self) -> &mut ReadStream {
        &mut self.streams[0]
    }

    pub(super) fn names(&self) -> &StreamNames {
        &self.names
    }

    /// Returns the position of a stream in `streams`, which are sorted by index.
    fn position_of(&self, index: u32) -> Option<usize> {
        self.streams
            .binary_search_by_key(&index, |it| it.stream.index)
            .ok()
    }

    /// Adds a stream. Its index must be higher than all other indexes.
    pub(super) fn add(&mut self, stream: Arc<ServedStream>) {
        self.schedule.add(stream.index, stream.weight);
        self.streams.push(ReadStream {
            scan: Scan::new(stream.clone()),
            stream,
            size: EntrySize::default(),
            failing: None,
            last_active_read: 0,
        });
        self.publish();
    }

    /// Removes a stream and returns it.
    pub(super) fn remove(&mut self, name: &str) -> Option<Arc<ServedStream>> {
        let at = self
            .streams
            .iter()
            .position(|it| it.stream.keys.stream == name)?;
        let removed = self.streams.remove(at).stream;
        self.schedule.remove(removed.index);
        self.publish();
        Some(removed)
    }

    /// Updates the names, and the set that the other tasks share.
    fn publish(&mut self) {
        let streams = || self.streams.iter().map(|it| it.stream.clone());
        self.names = StreamNames::new(&streams().collect::<Vec<_>>());
        self.shared.replace(streams().collect());
    }

    /// Records the entries that a read has returned.
    pub(super) fn note_entries(&mut self, entries: &[Entry]) {
        self.reads += u64::from(!entries.is_empty());
        for of_stream in entries.chunk_by(|a, b| a.which.index() == b.which.index()) {
            let index = of_stream[0].which.index();
            let Some(position) = self.position_of(index) else {
                continue;
            };
            let read = &mut self.streams[position];
            read.size.note(of_stream.iter().map(Entry::size));
            read.last_active_read = self.reads;
            self.schedule.record_fetched(index, of_stream.len());
            let of_primary = of_stream.iter().filter(|entry| !entry.which.is_retry());
            if let Some(last) = of_primary.map(|entry| entry.id).max() {
                read.stream.note_delivered(last);
            }
        }
    }

    /// Returns `true` if all streams are paused.
    pub(super) fn is_paused(&self) -> bool {
        !self.streams.is_empty() && self.streams.iter().all(|it| it.stream.is_paused())
    }

    /// Returns `true` if a scan is due.
    pub(super) fn has_due_scan(&mut self, claimer: &Claimer, may_claim: bool) -> bool {
        self.due_position(claimer, may_claim).is_some()
    }

    /// Returns the next scan that is due. The streams take turns. `may_claim` is `false` while the
    /// claimer may not claim.
    pub(super) fn due_scan(&mut self, claimer: &Claimer, may_claim: bool) -> Option<&mut Scan> {
        let due = self.due_position(claimer, may_claim)?;
        self.next_scan = due + 1;
        Some(&mut self.streams[due].scan)
    }

    fn due_position(&mut self, claimer: &Claimer, may_claim: bool) -> Option<usize> {
        let count = self.streams.len();
        let mut due = None;
        for at in (0..count).map(|n| (self.next_scan + n) % count) {
            // Called for all streams, because the call also ends a scan that may no longer claim.
            let is_due = self.streams[at].scan.prepare_next(claimer, may_claim);
            if is_due && due.is_none() && self.streams[at].is_readable() {
                due = Some(at);
            }
        }
        due
    }

    /// Makes the call of the script that reads all streams, for at most `room` entries. Returns the
    /// call, and the indexes of the streams in the order of the call. `None` if all streams are
    /// skipped. `limit` is the maximum number of entries that may be pending for the group.
    pub(super) fn fetch_command(
        &mut self,
        member: &Member,
        room: usize,
        limit: Option<usize>,
    ) -> Option<(Cmd, Vec<u32>)> {
        let (mut keys, mut order, mut quotas) = (Vec::new(), Vec::new(), Vec::new());
        for quota in self.schedule.quotas(room) {
            let read = self
                .position_of(quota.stream)
                .map(|position| &self.streams[position]);
            let Some(read) = read.filter(|it| it.is_readable()) else {
                continue;
            };
            let of = &read.stream.keys;
            keys.extend([&*of.retry_key, &*of.stream_key]);
            order.push(quota.stream);
            quotas.push((quota.max, read.size.expected()));
        }
        if order.is_empty() {
            return None;
        }
        let cmd = scripts::FETCH.call(&keys, |cmd| {
            cmd.arg(member.group.as_str())
                .arg(&member.consumer)
                .arg(room)
                .arg(MAX_RESPONSE_BYTES)
                .arg(limit.map_or(String::new(), |limit| limit.to_string()));
            for (max, size) in &quotas {
                cmd.arg(*max).arg(*size);
            }
        });
        Some((cmd, order))
    }

    /// Makes a plain read of the first active streams in the order of their turns. Each stream has
    /// the same limit: at least a portion, if there is room. Returns the read, and the sum of the
    /// limits. `None` if the script should be called instead.
    pub(super) fn plain_command(&self, member: &Member, room: usize) -> Option<(Cmd, usize)> {
        if !self.plain.are_worth_it() || Mechanism::PlainReads.is_off() {
            return None;
        }
        let in_turn = self.schedule.turn_order()?;
        let active = in_turn
            .into_iter()
            .filter_map(|index| Some(&self.streams[self.position_of(index)?]))
            .filter(|it| it.is_readable() && it.last_active_read + RECENT_READS >= self.reads);
        let max_streams = room.div_ceil(self.plain.portion);
        let streams: Vec<_> = active.take(max_streams).collect();
        let count = room.checked_div(streams.len())?;
        let bytes: usize = streams.iter().map(|it| count * it.size.expected()).sum();
        let keys = streams.iter().map(|it| it.stream.keys.stream_key.as_str());
        (bytes <= MAX_RESPONSE_BYTES).then(|| {
            let cmd = member.read_group(count, None, keys, ">");
            (cmd, count * streams.len())
        })
    }

    /// Records the numbers of entries that a plain read has returned and requested.
    pub(super) fn note_plain(&mut self, entries: usize, requested: usize) {
        self.plain.note_plain(entries, requested);
    }

    /// Records the number of entries that a call of the script has returned.
    pub(super) fn note_script(&mut self, entries: usize) {
        self.plain.note_script(entries);
    }

    /// Returns the streams that one read blocks on: at most [`MAX_BLOCKED_STREAMS`], those that
    /// were active last.
    pub(super) fn blocked_on(&self) -> Vec<&Arc<ServedStream>> {
        let mut readable: Vec<_> = (self.streams.iter())
            .filter(|it| it.is_readable())
            .collect();
        if readable.len() > MAX_BLOCKED_STREAMS {
            readable.sort_by_key(|it| std::cmp::Reverse(it.last_active_read));
            readable.truncate(MAX_BLOCKED_STREAMS);
        }
        readable.into_iter().map(|it| &it.stream).collect()
    }

    /// Returns `true` if one read cannot block on all streams.
    pub(super) fn is_too_large_to_block(&self) -> bool {
        self.streams.len() > MAX_BLOCKED_STREAMS
    }

    /// Skips a stream for a while. If this failure should be logged, returns the number of earlier
    /// failures that were not logged.
    pub(super) fn skip(&mut self, index: u32) -> Option<u64> {
        let position = self.position_of(index)?;
        let read = &mut self.streams[position];
        read.stream.set_failing(true);
        let failing = read.failing.get_or_insert_with(|| Failing {
            retry_at: Instant::now(),
            failures: 0,
            warnings: LogLimit::default(),
        });
        failing.failures += 1;
        failing.retry_at = Instant::now() + BACKOFF.after(failing.failures);
        failing.warnings.admit()
    }

    /// Marks a stream as readable again.
    pub(super) fn mark_readable(&mut self, index: u32) {
        if let Some(position) = self.position_of(index) {
            let read = &mut self.streams[position];
            read.stream.set_failing(false);
            read.failing = None;
        }
    }

    /// Returns the skipped streams that are due for another try.
    pub(super) fn to_try_again(&self) -> Vec<Arc<ServedStream>> {
        let now = Instant::now();
        let due = |it: &&ReadStream| it.failing.as_ref().is_some_and(|it| it.retry_at <= now);
        self.streams
            .iter()
            .filter(due)
            .map(|it| it.stream.clone())
            .collect()
    }

    /// Returns the time for which a read may block: at most `longest`, and at most until a stream
    /// is due for another try.
    pub(super) fn until_next_try(&self, longest: Duration) -> Duration {
        let until = self
            .streams
            .iter()
            .filter_map(|it| Some(it.failing.as_ref()?.retry_at));
        let wait = until
            .min()
            .map(|until| until.saturating_duration_since(Instant::now()));
        wait.map_or(longest, |wait| wait.min(longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_grow_while_reads_return_all_that_they_request() {
        let mut plain = PlainReads::new();
        plain.note_script(32);
        let mut portions = Vec::new();
        for returned in [32, 32, 32, 32, 32, 16, 15, 0, 0, 0, 0, 0] {
            plain.note_plain(returned, 32);
            portions.push(plain.portion);
        }
        assert_eq!(portions, [2, 4, 8, 16, 16, 16, 8, 4, 2, 1, 1, 1]);
    }

    #[test]
    fn the_script_is_called_now_and_then_and_when_plain_reads_return_little() {
        let mut plain = PlainReads::new();
        assert!(!plain.are_worth_it());
        plain.note_script(32);
        for _ in 0..MAX_PLAIN_READS {
            assert!(plain.are_worth_it());
            plain.note_plain(16, 32);
        }
        assert!(!plain.are_worth_it());
        plain.note_script(32);
        plain.note_plain(15, 32);
        assert!(!plain.are_worth_it());
    }
}
