//! The setup of a round: its messages and its worker.

use bytes::Bytes;
use campanile::Name;
use serde::{Deserialize, Serialize};

use crate::{NAME, STREAM};

/// A payload consists of repetitions of these bytes. By default it is these bytes once.
const PAYLOAD: &[u8] = b"payload";

/// The settings that all rounds share. They are passed to child processes, too.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// The size of a payload, in bytes.
    pub(crate) payload: usize,
    /// The maximum number of messages that a worker has in flight.
    pub(crate) max_in_flight: usize,
    /// True if the handlers of both sides wait once; false if they do nothing.
    pub(crate) handlers_wait: bool,
    pub(crate) routes: usize,
    /// The number of streams, or of partitions.
    pub(crate) streams: usize,
    /// True if the streams are the partitions of one stream.
    pub(crate) partitioned: bool,
    /// The maximum number of messages that wait on a stream, for our senders; 0 if there is none.
    pub(crate) bound: usize,
    /// The number of child processes that run a worker; 0 if this process runs it.
    pub(crate) processes: usize,
    /// The round trip of the network that a proxy adds, in microseconds.
    pub(crate) delay_us: usize,
    /// True if the server writes an append-only file.
    pub(crate) aof: bool,
    /// True if senders and workers connect with TLS.
    pub(crate) tls: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            payload: PAYLOAD.len(),
            // The default of Campanile's `Settings`.
            max_in_flight: 64,
            handlers_wait: true,
            routes: 1,
            streams: 1,
            partitioned: false,
            bound: 0,
            processes: 0,
            delay_us: 0,
            aof: false,
            tls: false,
        }
    }
}

impl Setup {
    /// The same setup with one stream of this number of partitions.
    pub(crate) fn partitions(self, count: usize) -> Self {
        Self {
            streams: count,
            partitioned: true,
            ..self
        }
    }

    pub(crate) fn payload(&self) -> Bytes {
        let bytes = PAYLOAD.iter().copied().cycle().take(self.payload);
        bytes.collect()
    }

    /// A payload that begins with the message's number, in four bytes.
    pub(crate) fn numbered(&self, message: usize) -> Bytes {
        let mut payload = self.payload().to_vec();
        payload.resize(payload.len().max(4), 0);
        payload[..4].copy_from_slice(&(message as u32).to_le_bytes());
        payload.into()
    }

    pub(crate) fn streams(&self) -> impl Iterator<Item = String> + use<> {
        let partitioned = self.partitioned;
        (0..self.streams).map(move |number| match partitioned {
            true => format!("{STREAM}:{number}"),
            false => numbered_name(STREAM, number),
        })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = Name> + use<> {
        (0..self.routes).map(|number| numbered_name(NAME, number).into())
    }

    /// Waits once for another task, as a handler waits for a database. Does nothing if the handlers
    /// do not wait.
    pub(crate) async fn wait(&self) {
        if self.handlers_wait {
            let task = tokio::spawn(async {});
            task.await.expect("a task that does nothing");
        }
    }

    /// The COUNT of the raw loop: the lowest of 256, the limit in flight, and the number of
    /// payloads in 16 MiB.
    pub(crate) fn raw_batch(&self) -> usize {
        let payloads_in_16_mib = (16 << 20) / self.payload;
        256.min(self.max_in_flight).min(payloads_in_16_mib).max(1)
    }
}

/// Reads the number that [`Setup::numbered`] has written.
pub(crate) fn number(payload: &[u8]) -> usize {
    let (number, _) = payload.split_first_chunk().expect("a numbered payload");
    u32::from_le_bytes(*number) as usize
}

fn numbered_name(first: &str, number: usize) -> String {
    match number {
        0 => first.to_owned(),
        number => format!("{first}.{number}"),
    }
}
