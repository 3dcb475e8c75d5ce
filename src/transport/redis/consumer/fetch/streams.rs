//! The streams of a fetch: the streams of a registry come and go, and a stream that cannot be read is
//! skipped.

use std::{sync::Arc, time::Duration};

use super::{
    super::{registry::RegistryChange, streams::ServedStream},
    Fetch, FetchParts,
};
use crate::{message::EscapedText, transport::redis::keys::Keys};

impl Fetch {
    /// Applies the changes in the registry to the set of streams.
    pub(super) async fn change_streams(&mut self) {
        let changes = self.parts.changes.as_ref().map(|changes| changes.take());
        for change in changes.unwrap_or_default() {
            self.poll_first = true;
            match change {
                RegistryChange::Found(name) => {
                    let FetchParts {
                        namespace, member, ..
                    } = &self.parts;
                    let keys = match Keys::new(namespace, &name, &member.group) {
                        Ok(keys) => keys,
                        Err(error) => {
                            let error = error.chain();
                            tracing::warn!(stream = %EscapedText::new(&name), error, "a registered stream cannot be served");
                            continue;
                        }
                    };
                    let stream = Arc::new(ServedStream::new(self.next_index, keys, 1));
                    self.next_index += 1;
                    self.set.add(stream.clone());
                    self.parts
                        .settler
                        .due_timers
                        .set(stream.index, Duration::ZERO);
                    if let Err(error) = self.parts.group.join(&stream).await {
                        self.leave_out(&stream, &error.chain());
                    }
                }
                RegistryChange::Retired(name) => {
                    if let Some(stream) = self.set.remove(&name)
                        && let Err(error) = self.parts.group.leave(&stream).await
                    {
                        let error = error.chain();
                        tracing::debug!(stream = %name, error, "the consumer of a retired stream stays in its group");
                    }
                }
            }
        }
    }

    /// Waits until there may be a stream to read.
    pub(super) async fn wait_for_streams(&mut self, longest: Duration) {
        let changed = async {
            match &self.parts.changes {
                Some(changes) => changes.arrived().await,
                None => std::future::pending().await,
            }
        };
        self.parts.reading.end(true);
        // Leaves the demand to the fetches of other slots during the wait.
        self.parts.buffer.put(Vec::new());
        tokio::select! {
            biased;
            () = self.parts.buffer.stopped() => {}
            () = changed => {}
            () = self.parts.pauses.wait() => {}
            () = tokio::time::sleep(longest) => {}
        }
        self.parts.reading.begin();
    }

    /// Tries to join the group again on streams that could not be read.
    pub(super) async fn try_failing_again(&mut self) {
        for stream in self.set.to_try_again() {
            match self.parts.group.join(&stream).await {
                Ok(()) => {
                    self.set.mark_readable(stream.index);
                    tracing::info!(stream = %stream.keys.stream, "the stream is read again");
                }
                Err(error) => self.leave_out(&stream, &error.chain()),
            }
        }
    }

    /// Skips a stream that cannot be read, so that the other streams are still read.
    fn leave_out(&mut self, stream: &ServedStream, error: &str) {
        if let Some(withheld) = self.set.skip(stream.index) {
            tracing::warn!(
                stream = %stream.keys.stream,
                error,
                withheld,
                "the stream cannot be read; trying again, and reading the other streams meanwhile"
            );
        }
    }

    /// Handles the error of one of several streams: creates a deleted group again, or skips the
    /// stream.
    pub(super) async fn handle_stream_error(&mut self, index: u32, error: &str) {
        let Some(stream) = self.parts.streams.get(index) else {
            return;
        };
        if !error.contains("NOGROUP") {
            return self.leave_out(&stream, error);
        }
        match self.parts.group.rejoin(&stream).await {
            Ok(()) => log_rejoined(&stream),
            Err(error) => self.leave_out(&stream, &error.chain()),
        }
    }
}

/// Logs that a deleted group was created again.
pub(super) fn log_rejoined(stream: &ServedStream) {
    tracing::warn!(
        stream = %stream.keys.stream,
        group = %stream.keys.group,
        "the stream or its group was deleted; the group was created again, behind the last entry that it is known to have delivered, or at the beginning of an emptied stream"
    );
}
