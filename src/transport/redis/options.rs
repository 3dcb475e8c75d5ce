//! What only Redis needs to be told.

use std::{sync::Arc, time::Duration};

use super::{Redis, state::OnGap};
use crate::{message::Name, transport::codec};

/// The settings that no other transport has.
#[derive(Debug, Clone)]
pub(super) struct Options {
    /// What the channels start with that replies to this client are published on.
    pub(super) reply_prefix: Name,
    /// What the channels start with that this worker publishes replies on.
    pub(super) allowed_reply_prefixes: Vec<Name>,
    /// How long entries of consumers that are not ours are left to them.
    pub(super) foreign_lease: Duration,
    /// Whether a stream is trimmed although consumers that are not ours read it.
    pub(super) trim_beside_foreign: bool,
    /// What the channels of events start with, before the names.
    pub(super) event_prefix: Name,
    /// The time for which the application's runtime may run no task before its leases end.
    pub(super) stall_limit: Duration,
    /// Who is told when events were missed.
    pub(super) on_event_gap: OnGap,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            reply_prefix: Name::from_static(codec::REPLY_PREFIX),
            allowed_reply_prefixes: vec![
                Name::from_static(codec::REPLY_PREFIX),
                Name::from_static(codec::GO_REPLY_PREFIX),
            ],
            foreign_lease: Duration::from_secs(300),
            trim_beside_foreign: false,
            event_prefix: Name::from_static(""),
            stall_limit: Duration::from_secs(60),
            on_event_gap: OnGap::default(),
        }
    }
}

/// Settings that only Redis has.
impl Redis {
    /// What the channels start with that replies to this client are published on.
    /// `campanile:reply:` unless set. Workers must allow it.
    ///
    /// Go-Broker's clients listen to `reply:*` and keep whatever comes, so choose that only where
    /// the server's ACL allows no other.
    #[must_use]
    pub fn reply_prefix(mut self, prefix: impl Into<Name>) -> Self {
        Arc::make_mut(&mut self.options).reply_prefix = prefix.into();
        // The running subscription, if there is one, stays with the clones it was made for.
        self.rpc = Default::default();
        self
    }

    /// What the channels start with that this worker publishes replies on. Requests name their
    /// reply channel themselves: without a limit, whoever can add a request could make workers
    /// publish anything anywhere. `campanile:reply:` and `reply:` unless set.
    #[must_use]
    pub fn allowed_reply_prefixes<N: Into<Name>>(
        mut self,
        prefixes: impl IntoIterator<Item = N>,
    ) -> Self {
        Arc::make_mut(&mut self.options).allowed_reply_prefixes =
            prefixes.into_iter().map(Into::into).collect();
        self
    }

    /// What the channels of events start with, before their names. Nothing unless set: the name of an
    /// event is its channel, and that is where Go-Broker publishes and listens.
    ///
    /// Redis keeps Pub/Sub apart from its databases: an event that is published with one database
    /// selected reaches the subscribers of all. Applications that share a server, and name events
    /// alike, need prefixes that differ.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), campanile::Error> {
    /// let staging = campanile::Redis::connect("redis://127.0.0.1/1")
    ///     .await?
    ///     .event_prefix("staging:");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn event_prefix(mut self, prefix: impl Into<Name>) -> Self {
        Arc::make_mut(&mut self.options).event_prefix = prefix.into();
        self
    }

    /// How long an entry stays with a consumer that is not of this library, such as a Go worker,
    /// before it is taken over: such consumers renew no lease, so this must be longer than their
    /// slowest handler takes. 5 min unless set.
    #[must_use]
    pub fn foreign_lease(mut self, lease: Duration) -> Self {
        Arc::make_mut(&mut self.options).foreign_lease = lease;
        self
    }

    /// The time for which the runtime that serves may run no task at all before this worker's leases are
    /// not renewed any more, so that other workers take over from a process that hangs. Leases are
    /// renewed on a thread of its own: a handler that blocks its runtime keeps its delivery for as long as
    /// this. 60 s unless set.
    ///
    /// # Panics
    /// When it is shorter than a second.
    #[must_use]
    #[track_caller]
    pub fn stall_limit(mut self, limit: Duration) -> Self {
        assert!(
            limit >= Duration::from_secs(1),
            "a stall limit must be at least 1 s"
        );
        Arc::make_mut(&mut self.options).stall_limit = limit;
        self
    }

    /// Whether handled entries are trimmed from a stream that consumers of another library read
    /// too. They are trimmed behind what every group has finished, never ahead of it. Off unless
    /// set; always done where every consumer is of this library. A consumer of another library that
    /// holds nothing and was silent for longer than its [lease](Self::foreign_lease) does not count;
    /// one that prevents trimming is named in a warning.
    #[must_use]
    pub fn trim_beside_foreign_groups(mut self, trim: bool) -> Self {
        Arc::make_mut(&mut self.options).trim_beside_foreign = trim;
        self
    }
}
