//! The settings that only Redis has.

use std::{sync::Arc, time::Duration};

use super::{Redis, keys::Keys, namespace::Namespace, state::EventGapHook};
use crate::{error::Error, message::Name, transport::codec};

/// The settings that only Redis has.
#[derive(Debug, Clone)]
pub(super) struct Options {
    /// The prefix of all keys and channels.
    pub(super) namespace: Namespace,
    /// The prefix of the channel on which this client receives replies.
    pub(super) reply_prefix: Name,
    /// The prefixes of the channels on which this worker publishes replies.
    pub(super) allowed_reply_prefixes: Vec<Name>,
    /// The lease of entries that are pending for other libraries' consumers.
    pub(super) foreign_lease: Duration,
    /// Set if a stream is trimmed even while other libraries' consumers read it.
    pub(super) trim_beside_foreign: bool,
    /// The prefix of the channels of events.
    pub(super) event_prefix: Name,
    /// The maximum time for which the application's runtime may be blocked. After this time, leases
    /// are no longer renewed.
    pub(super) stall_limit: Duration,
    /// Called when events were missed.
    pub(super) on_event_gap: EventGapHook,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            namespace: Namespace::NONE,
            reply_prefix: Name::from_static(codec::REPLY_PREFIX),
            allowed_reply_prefixes: vec![
                Name::from_static(codec::REPLY_PREFIX),
                Name::from_static(codec::GO_REPLY_PREFIX),
            ],
            foreign_lease: Duration::from_secs(300),
            trim_beside_foreign: false,
            event_prefix: Name::from_static(""),
            stall_limit: Duration::from_secs(60),
            on_event_gap: EventGapHook::default(),
        }
    }
}

impl Options {
    /// Returns the prefix of the channel on which this client receives replies, in the namespace.
    pub(super) fn reply_channel_prefix(&self) -> Name {
        self.namespace.apply(&self.reply_prefix)
    }

    /// Returns the prefixes of the channels on which this worker publishes replies, in the
    /// namespace.
    pub(super) fn allowed_channel_prefixes(&self) -> Vec<Name> {
        let allowed = self.allowed_reply_prefixes.iter();
        allowed.map(|it| self.namespace.apply(it)).collect()
    }

    /// Returns the prefix of the channels of events, in the namespace.
    pub(super) fn event_channel_prefix(&self) -> Name {
        self.namespace.apply(&self.event_prefix)
    }
}

/// Settings that only Redis has.
impl Redis {
    /// Sets the namespace of all keys and channels of this handle: those of streams, registries,
    /// events and replies. Applications and environments that share a server never mix if their
    /// namespaces differ, even if their streams have the same names. By default there is no
    /// namespace. `?namespace=staging` in the URL has the same effect.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), campanile::Error> {
    /// let staging = campanile::Redis::connect("redis://127.0.0.1/").await?.namespace("staging");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Senders and their workers need the same namespace. Messages, statistics, errors and logs
    /// show names without it. The stream `orders` is the key `staging:orders`, see
    /// [namespaces](super#namespaces).
    ///
    /// # Panics
    /// If the namespace is empty, does not begin with a letter, contains characters other than
    /// letters, digits, `-`, `_` and `.`, or is `campanile` or `reply`.
    /// [`RedisBuilder::namespace`](super::RedisBuilder::namespace) returns an error instead.
    #[must_use]
    #[track_caller]
    pub fn namespace(self, namespace: impl AsRef<str>) -> Self {
        match Namespace::new(namespace.as_ref()) {
            Ok(namespace) => self.in_namespace(namespace),
            Err(error) => panic!("{error}"),
        }
    }

    pub(super) fn in_namespace(mut self, namespace: Namespace) -> Self {
        Arc::make_mut(&mut self.options).namespace = namespace;
        // This handle needs another RPC client. Other clones keep the running one.
        self.rpc = Default::default();
        self
    }

    /// Returns the keys of the handle's stream and group.
    ///
    /// # Errors
    /// If the handle has a set of streams, or a name cannot be used.
    pub(super) fn keys(&self) -> Result<Keys, Error> {
        let stream = self.settings.one_stream()?;
        Keys::new(&self.options.namespace, stream, &self.settings.group)
    }

    /// Sets the prefix of the channel on which this client receives fast replies.
    /// `campanile:reply:` by default. Workers must [allow](Self::allowed_reply_prefixes) the
    /// prefix.
    ///
    /// Use the prefix `reply:` only if the server's ACL allows no other. Go-Broker's clients
    /// subscribe to `reply:*`, and keep every message that they receive.
    #[must_use]
    pub fn reply_prefix(mut self, prefix: impl Into<Name>) -> Self {
        Arc::make_mut(&mut self.options).reply_prefix = prefix.into();
        // This handle needs another RPC client. Other clones keep the running one.
        self.rpc = Default::default();
        self
    }

    /// Sets the prefixes of the channels on which this worker publishes replies. A limit is needed
    /// because a request names its reply channel: without a limit, anyone who can add a request
    /// could make workers publish on any channel. By default, the prefixes are `campanile:reply:`
    /// and `reply:`. In a [namespace](Self::namespace), the namespace precedes each prefix.
    #[must_use]
    pub fn allowed_reply_prefixes<N: Into<Name>>(
        mut self,
        prefixes: impl IntoIterator<Item = N>,
    ) -> Self {
        Arc::make_mut(&mut self.options).allowed_reply_prefixes =
            prefixes.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the prefix of the channels of events. By default it is empty, so the channel of an
    /// event is its name, as in Go-Broker.
    ///
    /// Pub/Sub is shared by all databases of a server: an event reaches the subscribers of every
    /// database. Applications that share a server and use the same event names need different
    /// prefixes, or different [namespaces](Self::namespace). A namespace precedes this prefix.
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

    /// Sets the lease of an entry that is pending for another library's consumer, such as a Go
    /// worker. When this lease ends, a worker of this library claims the entry. Other libraries'
    /// consumers renew no leases, so this lease must be longer than their slowest handler takes.
    /// 5 min by default.
    #[must_use]
    pub fn foreign_lease(mut self, lease: Duration) -> Self {
        Arc::make_mut(&mut self.options).foreign_lease = lease;
        self
    }

    /// Sets the maximum time for which the runtime of this worker may be blocked. After that time,
    /// the worker's leases are no longer renewed, so that other workers claim the deliveries of a
    /// process that hangs. A separate thread renews the leases, so a handler that blocks the
    /// runtime keeps its delivery until this time has passed. 60 s by default.
    ///
    /// # Panics
    /// If `limit` is shorter than 1 s.
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

    /// Sets whether handled entries are trimmed from a stream that other libraries' consumers read
    /// too. Only entries that every group has finished are trimmed. Off by default. A stream
    /// without consumers of other libraries is always trimmed. Such a consumer does not count if it
    /// has nothing pending and was silent for longer than its [lease](Self::foreign_lease). While a
    /// consumer prevents trimming, a warning names it.
    #[must_use]
    pub fn trim_beside_foreign_groups(mut self, trim: bool) -> Self {
        Arc::make_mut(&mut self.options).trim_beside_foreign = trim;
        self
    }
}
