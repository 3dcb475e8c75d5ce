//! The client side of RPC: one hub for all requests of a handle.
//!
//! Requests are entries on a stream. A reply names its request by the correlation id.
//!
//! Replies to fast requests are published on a channel of the client. Replies to reliable requests
//! are added to reply streams: the client has one for each stream that it sends to. One connection
//! reads all reply streams. On a cluster, there is one connection for each slot. Workers of the Go
//! library always reply on the channel.

mod pending;
mod replies;
mod request;
mod subscription;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use self::{
    pending::PendingRequests,
    replies::{OutstandingRequest, ReplyReader, ReplyStreams},
};
use super::{
    Redis, error,
    ids::random_id,
    pipeline::Pipeline,
    server::{Connector, HashSlot},
};
use crate::{
    error::Error,
    message::{Name, ReplyMode},
    sync::lock,
    transport::Counters,
};

/// The maximum time for which an unsent request waits until its client can receive replies.
const READY_TIMEOUT: Duration = Duration::from_secs(5);

/// The state of the channel or of a stream for replies.
#[derive(Debug, Clone)]
enum Readiness {
    /// The channel is not subscribed to yet, or the stream is not created yet.
    No,
    /// Replies can be received.
    Yes,
    /// Replies could be received, but the connection was lost and is being restored.
    Lost,
    /// Refused by the server.
    Refused(redis::RedisError),
}

/// Sends requests and receives their replies. The hub's tasks end after the last handle and the
/// last request were dropped.
pub(super) struct Hub {
    /// The id of this client, a part of the names of its channel and of its reply streams.
    client: Uuid,
    channel: String,
    connector: Connector,
    pipeline: Pipeline,
    pending: Arc<PendingRequests>,
    channel_readiness: watch::Receiver<Readiness>,
    reply_readers: ReplyReaders,
    _end_with_hub: DropGuard,
}

impl Redis {
    /// Returns the hub of this handle and its clones. The first call starts it.
    pub(super) fn hub(&self) -> Arc<Hub> {
        let start = || {
            let shared = &self.shared;
            Arc::new(Hub::start(
                &self.options.reply_channel_prefix(),
                shared.connector.clone(),
                shared.pipeline.clone(),
                shared.counters.clone(),
            ))
        };
        self.rpc.get_or_init(start).clone()
    }
}

impl Hub {
    fn start(
        prefix: &str,
        connector: Connector,
        pipeline: Pipeline,
        counters: Arc<Counters>,
    ) -> Self {
        let client = random_id();
        let channel = format!("{prefix}{client}");
        let pending = Arc::new(PendingRequests::new(counters.clone()));
        let end = CancellationToken::new();
        let (readiness_sender, channel_readiness) = watch::channel(Readiness::No);
        let subscription = subscription::Subscription {
            connector: connector.clone(),
            channel: channel.clone(),
            pending: pending.clone(),
            counters: counters.clone(),
            readiness: readiness_sender,
        };
        tokio::spawn(end.clone().run_until_cancelled_owned(subscription.run()));
        let reply_readers = ReplyReaders {
            client,
            connector: connector.clone(),
            pipeline: pipeline.clone(),
            pending: pending.clone(),
            counters,
            end: end.clone(),
            runtime: Handle::current(),
            by_slot: Mutex::default(),
        };
        Self {
            client,
            channel,
            connector,
            pipeline,
            pending,
            channel_readiness,
            reply_readers,
            _end_with_hub: end.drop_guard(),
        }
    }

    /// Returns the number of requests of the handle and its clones that wait for replies.
    pub(super) fn pending_requests(&self) -> usize {
        self.pending.count_waiting()
    }

    /// Waits until replies can be received: for at most [`READY_TIMEOUT`], and not after
    /// `deadline`. A reliable request does not wait while a connection is lost, because the server
    /// stores its reply.
    async fn wait_until_ready(
        &self,
        readiness: &mut watch::Receiver<Readiness>,
        mode: ReplyMode,
        deadline: Instant,
    ) -> Result<(), Error> {
        let may_send = |current: &Readiness| match current {
            Readiness::No => false,
            Readiness::Lost => mode == ReplyMode::Reliable,
            Readiness::Yes | Readiness::Refused(_) => true,
        };
        let ends_at = deadline.min(Instant::now() + READY_TIMEOUT);
        match timeout_at(ends_at, readiness.wait_for(may_send)).await {
            Ok(Ok(state)) => match &*state {
                Readiness::Refused(refusal) => Err(error::replies_refused(refusal.clone())),
                _ => Ok(()),
            },
            // The hub's tasks have ended.
            Ok(Err(_)) => Err(error::runtime_ended()),
            Err(_) => {
                let cause = self.pipeline.cause();
                Err(error::disconnected(&self.connector.address(), cause))
            }
        }
    }
}

/// The readers of reliable replies. On one server there is one reader. On a cluster there is a
/// reader for each slot with requests, because no command can read streams of several slots. A
/// reader starts with its first request.
struct ReplyReaders {
    client: Uuid,
    connector: Connector,
    pipeline: Pipeline,
    pending: Arc<PendingRequests>,
    counters: Arc<Counters>,
    end: CancellationToken,
    /// The runtime of the readers.
    runtime: Handle,
    by_slot: Mutex<HashMap<Option<HashSlot>, Arc<ReplyStreams>>>,
}

impl ReplyReaders {
    /// Registers a request to the stream `key`. If the reply stream of `key` is not read yet, a
    /// reader starts to read it.
    fn register(&self, key: &Name) -> Result<OutstandingRequest, Error> {
        let connector = self.connector.for_key(key);
        let mut readers = lock(&self.by_slot);
        let streams = readers.entry(connector.slot()).or_insert_with(|| {
            let streams = Arc::new(ReplyStreams::new(self.client, self.pipeline.for_key(key)));
            let (pending, counters) = (self.pending.clone(), self.counters.clone());
            let reader = ReplyReader::new(streams.clone(), connector, pending, counters);
            self.runtime.spawn(reader.run(self.end.clone()));
            streams
        });
        streams.join(key)
    }
}
