//! The streams that a consumer serves.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use foldhash::{HashMap, HashSet};

use crate::{
    message::Name,
    sync::lock,
    transport::{
        DroppedLetters, PauseTarget,
        redis::{
            entry::{StreamEntryId, WhichStream},
            keys::Keys,
        },
    },
};

/// A stream that the consumer serves, with its keys and its state for the group.
#[derive(Debug)]
pub(super) struct ServedStream {
    /// Identifies the stream within this consumer. Never reused.
    pub(super) index: u32,
    pub(super) keys: Keys,
    /// The weight of the stream when a read is divided among streams.
    pub(super) weight: u32,
    /// The last entry that the group is known to have delivered. If the group is deleted, a worker
    /// creates the group again, and starts it after this entry.
    last_delivered: Mutex<StreamEntryId>,
    /// Cleared while the group has no pending entries, so there is nothing to claim.
    has_pending: AtomicBool,
    /// Set while the stream cannot be read. It is then neither read nor maintained.
    is_failing: AtomicBool,
    /// Set while the whole stream is paused, for this group or for all groups.
    is_paused: AtomicBool,
    /// Set while the whole stream or a name is paused.
    has_pauses: AtomicBool,
    /// The names that are paused. `None` if there are none.
    paused_names: Mutex<Option<Arc<HashSet<Name>>>>,
    /// Logs the number of dead letters that were removed.
    pub(super) dropped: DroppedLetters,
}

impl ServedStream {
    pub(super) fn new(index: u32, keys: Keys, weight: u32) -> Self {
        Self {
            index,
            keys,
            weight,
            last_delivered: Mutex::new(StreamEntryId::ZERO),
            has_pending: AtomicBool::new(true),
            is_failing: AtomicBool::new(false),
            is_paused: AtomicBool::new(false),
            has_pauses: AtomicBool::new(false),
            paused_names: Mutex::default(),
            dropped: DroppedLetters::default(),
        }
    }

    /// Returns the key of the primary stream or of the group's retry stream.
    pub(super) fn key_of(&self, which: WhichStream) -> &str {
        match which {
            WhichStream::Primary(_) => &self.keys.stream_key,
            WhichStream::Retry(_) => &self.keys.retry_key,
        }
    }

    /// Returns the retry stream and the primary stream, in this order.
    pub(super) fn both_streams(&self) -> [WhichStream; 2] {
        WhichStream::both(self.index)
    }

    /// Returns the last entry that the group is known to have delivered.
    pub(super) fn last_delivered(&self) -> StreamEntryId {
        *lock(&self.last_delivered)
    }

    /// Records that the group has delivered this entry.
    pub(super) fn note_delivered(&self, id: StreamEntryId) {
        let mut last = lock(&self.last_delivered);
        *last = id.max(*last);
    }

    pub(super) fn set_pending(&self, has_pending: bool) {
        self.has_pending.store(has_pending, Ordering::Relaxed);
    }

    pub(super) fn has_pending(&self) -> bool {
        self.has_pending.load(Ordering::Relaxed)
    }

    /// Replaces the known pauses with those in `fields`. Calls `on_unknown` with each field that
    /// this version cannot parse. Returns `true` if the pause of the whole stream has begun or
    /// ended.
    pub(super) fn set_pauses(&self, fields: &[Bytes], mut on_unknown: impl FnMut(&Bytes)) -> bool {
        let (mut is_paused, mut names) = (false, HashSet::default());
        for field in fields {
            match self.keys.parse_pause(field) {
                Ok(Some(PauseTarget::Name(name))) => drop(names.insert(name)),
                Ok(Some(_)) => is_paused = true,
                Ok(None) => {}
                Err(()) => on_unknown(field),
            }
        }
        let has_pauses = is_paused || !names.is_empty();
        self.has_pauses.store(has_pauses, Ordering::SeqCst);
        *lock(&self.paused_names) = (!names.is_empty()).then(|| Arc::new(names));
        self.is_paused.swap(is_paused, Ordering::SeqCst) != is_paused
    }

    /// Returns `true` if the whole stream or a name is paused.
    pub(super) fn has_pauses(&self) -> bool {
        self.has_pauses.load(Ordering::SeqCst)
    }

    /// Returns `true` if the whole stream is paused.
    pub(super) fn is_paused(&self) -> bool {
        self.is_paused.load(Ordering::SeqCst)
    }

    /// Removes a name from the paused names.
    pub(super) fn resume(&self, name: &Name) {
        let mut names = lock(&self.paused_names);
        if let Some(names) = &mut *names {
            Arc::make_mut(names).remove(name);
        }
    }

    /// Returns the names that are paused. `None` if there are none.
    pub(super) fn paused_names(&self) -> Option<Arc<HashSet<Name>>> {
        lock(&self.paused_names).clone()
    }

    pub(super) fn set_failing(&self, is_failing: bool) {
        self.is_failing.store(is_failing, Ordering::Relaxed);
    }

    pub(super) fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Relaxed)
    }
}

/// The streams of one consumer. Only the loop that reads entries changes them.
#[derive(Debug, Default)]
pub(super) struct StreamSet {
    streams: Mutex<Arc<[Arc<ServedStream>]>>,
}

impl StreamSet {
    pub(super) fn new(streams: Vec<Arc<ServedStream>>) -> Self {
        Self {
            streams: Mutex::new(streams.into()),
        }
    }

    /// Returns the current streams.
    pub(super) fn all(&self) -> Arc<[Arc<ServedStream>]> {
        lock(&self.streams).clone()
    }

    pub(super) fn get(&self, index: u32) -> Option<Arc<ServedStream>> {
        // The streams are sorted by index, since each new index is the highest.
        let streams = self.all();
        let at = streams.binary_search_by_key(&index, |stream| stream.index);
        at.ok().map(|at| streams[at].clone())
    }

    /// Replaces the streams. They must be sorted by index.
    pub(super) fn replace(&self, streams: Vec<Arc<ServedStream>>) {
        *lock(&self.streams) = streams.into();
    }
}

/// Finds a stream by its name in a response.
#[derive(Debug, Default)]
pub(super) struct StreamNames(HashMap<Vec<u8>, WhichStream>);

impl StreamNames {
    pub(super) fn new<'a>(streams: impl IntoIterator<Item = &'a Arc<ServedStream>>) -> Self {
        let by_name = streams.into_iter().flat_map(|stream| {
            let with_name = |which| (stream.key_of(which).as_bytes().to_vec(), which);
            stream.both_streams().map(with_name)
        });
        Self(by_name.collect())
    }

    pub(super) fn get(&self, name: &[u8]) -> Option<WhichStream> {
        self.0.get(name).copied()
    }
}
