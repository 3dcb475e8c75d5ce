//! Reads the streams of many cluster slots without blocking reads. Instead, the server sends a
//! notice when a client has written to a stream.
//!
//! A blocked read needs a connection for each slot. Here the slots share one connection to each
//! node. A reader first sends `EXISTS` with the keys of its streams, so that the server tracks
//! them. Then it sends a read. If the read has left no entries, the reader waits until its
//! [`WriteSignal`] fires: a client has written to a stream, or the connection was lost. A signal
//! is only a hint: without one, a reader reads once in a third of the lease.
//!
//! Every idle worker of a group gets a notice of a new entry, but only one worker gets the entry.
//! If a read after a notice finds nothing, the reader waits before its next read. It waits longer
//! after each such read, until a read finds an entry.

use std::{collections::HashSet, sync::Arc, time::Duration};

use redis::Cmd;
use tokio::time::{Instant, sleep, sleep_until};

use super::{prefetch::ExpectedEntries, streams::ServedStream};
use crate::{
    error::Error,
    transport::redis::{
        connection::{TrackedKeys, WriteSignal},
        handle::SharedHandle,
        keys::Keys,
        pipeline::{Pipeline, Resend, Submit},
        scripts::Script,
        server::{Connector, HashSlot},
    },
};

/// The average wait before the next read, after a signal whose read has found nothing.
const FIRST_WAIT: Duration = Duration::from_millis(10);
/// Each further signal whose read finds nothing doubles the wait, at most this many times.
const MAX_DOUBLINGS: u32 = 5;

/// The read connections that the cluster slots of a source share: one to each node.
#[derive(Clone)]
pub(super) struct SharedReads {
    pipeline: Pipeline,
    tracked: Arc<TrackedKeys>,
    /// Connects to the same nodes as the pipeline, for [`check`](Self::check).
    connector: Connector,
}

impl SharedReads {
    pub(super) fn new(shared: &SharedHandle) -> Self {
        let tracked = Arc::<TrackedKeys>::default();
        let connector = shared.connector.with_tracking(tracked.clone());
        Self {
            pipeline: Pipeline::spawn(connector.clone(), None, shared.counters.clone()),
            tracked,
            connector,
        }
    }

    /// Connects to each node that serves one of these streams, and checks the server and the user.
    pub(super) async fn check<'a>(
        &self,
        streams: impl Iterator<Item = &'a Keys>,
    ) -> Result<(), Error> {
        self.connector.refresh().await;
        let mut checked_nodes = HashSet::new();
        for keys in streams {
            let slot = HashSlot::of(keys.stream_key.as_bytes());
            if checked_nodes.insert(self.connector.owner(slot)) {
                self.connector
                    .for_key(&keys.stream_key)
                    .checked_connection()
                    .await?;
            }
        }
        Ok(())
    }

    /// Makes a reader of these streams, which are all in one slot.
    pub(super) fn reader(&self, streams: &[Arc<ServedStream>], lease: Duration) -> WokenReader {
        let signal = Arc::<WriteSignal>::default();
        for stream in streams {
            self.tracked.add(&stream.keys.stream_key, &signal);
            self.tracked.add(&stream.keys.retry_key, &signal);
        }
        let first = streams.first().expect("a slot has streams");
        WokenReader {
            pipeline: self.pipeline.for_key(&first.keys.stream_key),
            signal,
            max_between_reads: lease / 3,
            expected: ExpectedEntries::Some,
            last_read: Instant::now(),
            is_signalled: false,
            empty_reads: 0,
            not_before: Instant::now(),
        }
    }
}

/// Reads the streams of one slot.
pub(super) struct WokenReader {
    pipeline: Pipeline,
    signal: Arc<WriteSignal>,
    /// The longest time between two reads.
    max_between_reads: Duration,
    /// The entries that the next read will probably return.
    expected: ExpectedEntries,
    last_read: Instant,
    /// Set if the next read follows a signal.
    is_signalled: bool,
    /// The number of signals in a row whose reads found nothing.
    empty_reads: u32,
    /// After the next signal, no read is sent before this time.
    not_before: Instant,
}

impl WokenReader {
    pub(super) fn expected(&self) -> ExpectedEntries {
        self.expected
    }

    /// Sends the command that makes the server track these keys. `None` if the server still tracks
    /// them, since the signal has not fired. The caller must send a read of the keys before it
    /// waits for the response to this command.
    pub(super) fn track<'a>(&self, keys: impl IntoIterator<Item = &'a str>) -> Option<Submit> {
        if self.signal.is_armed() {
            return None;
        }
        let mut cmd = redis::cmd("EXISTS");
        keys.into_iter().for_each(|key| {
            cmd.arg(key);
        });
        self.signal.arm();
        Some(self.pipeline.submit(cmd, Resend::Never))
    }

    /// Sends a read, which must not block.
    pub(super) fn read(&self, command: &Cmd, script: Option<&'static Script>) -> Submit {
        let encoded = command.get_packed_command();
        self.pipeline.submit_owned(encoded, Resend::Never, script)
    }

    /// Returns `true` if a connection was lost since the last call.
    pub(super) fn take_lost(&self) -> bool {
        self.signal.take_lost()
    }

    /// Waits until a connection is lost, as [`take_lost`](Self::take_lost) reports it.
    pub(super) async fn lost(&self) {
        self.signal.lost().await;
    }

    /// Records the result of a read of all streams. `found` is `true` if the read returned entries,
    /// and `may_have_more` if there may be more entries on the server.
    pub(super) fn note_read(&mut self, found: bool, may_have_more: bool) {
        self.last_read = Instant::now();
        self.expected = match may_have_more {
            true => ExpectedEntries::Many,
            false => ExpectedEntries::None,
        };
        let is_signalled = std::mem::take(&mut self.is_signalled);
        if found {
            (self.empty_reads, self.not_before) = (0, self.last_read);
        } else if is_signalled {
            let wait = FIRST_WAIT * 2_u32.pow(self.empty_reads.min(MAX_DOUBLINGS));
            self.not_before = self.last_read + wait.mul_f64(0.5 + fastrand::f64());
            self.empty_reads += 1;
        }
    }

    /// Records that a read has failed. Fires the signal, because the server may no longer track the
    /// keys.
    pub(super) fn failed(&mut self) {
        self.signal.fire();
        self.expected = ExpectedEntries::Some;
    }

    /// Waits until there may be new entries, at most for `longest`.
    ///
    /// # Cancel safety
    /// If the future is dropped, the next call waits for the same signal.
    pub(super) async fn wait(&mut self, longest: Duration) {
        let woken = async {
            self.signal.fired().await;
            sleep_until(self.not_before).await;
        };
        let overdue = self.last_read + self.max_between_reads.mul_f64(0.75 + fastrand::f64() / 4.0);
        tokio::select! {
            biased;
            () = woken => self.is_signalled = true,
            () = sleep_until(overdue) => {}
            () = sleep(longest) => return,
        }
        self.expected = ExpectedEntries::Some;
    }
}
