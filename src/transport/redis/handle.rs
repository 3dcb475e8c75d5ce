//! The handle of a Redis server, and the state that its clones share.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use super::{
    error,
    keys::Keys,
    limits::RedisLimits,
    options::Options,
    partitions::CheckedPartitions,
    pipeline::Pipeline,
    producer, rpc,
    server::{self, Connector},
    source_state::SourceStates,
};
use crate::{
    error::Error,
    message::Name,
    transport::{Counters, Counts, Limit, Settings, SharedTasks, consumer_settings},
};

/// A handle of a Redis server, to send to and to serve from. See the [module](super).
#[derive(Clone)]
pub struct Redis {
    pub(super) settings: Settings,
    pub(super) options: Arc<Options>,
    pub(super) shared: Arc<SharedHandle>,
    pub(super) rpc: Arc<OnceLock<Arc<rpc::Hub>>>,
}

/// The state shared by the clones of a handle.
pub(super) struct SharedHandle {
    pub(super) connector: Connector,
    pub(super) pipeline: Pipeline,
    pub(super) counters: Arc<Counters>,
    /// The timers that move delayed tasks to their streams.
    pub(super) promoters: producer::schedule::Promoters,
    /// The connections for tasks that replicas confirm.
    pub(super) replicated_sends: producer::ReplicatedSends,
    /// The streams that were registered lately.
    pub(super) registrations: producer::Registrations,
    /// The streams with a bound on waiting messages.
    pub(super) bounds: producer::Bounds,
    pub(super) checked_partitions: CheckedPartitions,
    /// The states of the sources that were opened from the handle.
    pub(super) sources: SourceStates,
    /// The readers of task feeds, each shared by all calls that wait on the feed.
    pub(super) tasks: SharedTasks,
}

impl SharedHandle {
    /// Makes the state of a handle that sends over this pipeline.
    pub(super) fn new(connector: Connector, pipeline: Pipeline, counters: Arc<Counters>) -> Self {
        Self {
            connector,
            pipeline,
            counters,
            promoters: Default::default(),
            replicated_sends: producer::ReplicatedSends::new(),
            registrations: Default::default(),
            bounds: Default::default(),
            checked_partitions: Default::default(),
            sources: Default::default(),
            tasks: Default::default(),
        }
    }
}

impl Redis {
    /// Connects to the server at a URL: `redis://user:password@host:port/db`,
    /// `redis+unix:///path/to/redis.sock?db=0`, or `rediss://…` with the feature `redis-rustls`. A
    /// `redis+sentinel://` or a `redis+cluster://` URL finds the server: see
    /// [topologies](super#topologies). `?protocol=resp3` selects RESP3, and `?namespace=staging` a
    /// [namespace](Self::namespace). To give certificates, use [`builder`](Self::builder).
    ///
    /// # Errors
    /// If the server cannot be reached within seconds, refuses the login, or is older than 6.2.
    /// Only this first connection can fail. A connected handle survives any outage, and a worker
    /// that starts during an outage waits until the outage ends. To wait for the first connection
    /// too, use [`connect_when_ready`](Self::connect_when_ready).
    pub async fn connect(url: &str) -> Result<Self, Error> {
        Self::builder(url).connect().await
    }

    /// Like [`connect`](Self::connect), but waits while the server is unreachable or not ready: it
    /// tries again without limit, with a back-off, and logs the cause as a warning every few
    /// seconds.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    ///
    /// let url = "redis://127.0.0.1/";
    /// let minute = Duration::from_secs(60);
    /// let redis = tokio::time::timeout(minute, campanile::Redis::connect_when_ready(url)).await??;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Permanent errors are returned immediately: a malformed URL, a wrong password, a server that
    /// is older than 6.2.
    ///
    /// # Cancel safety
    /// Dropping the future stops the attempts.
    pub async fn connect_when_ready(url: &str) -> Result<Self, Error> {
        Self::builder(url).connect_when_ready().await
    }

    /// Like [`over`](Self::over), but retries while the error is temporary.
    pub(super) async fn with_connector_when_ready(connector: Connector) -> Result<Self, Error> {
        let mut outage = server::Outage::default();
        loop {
            match Self::with_connector(connector.clone()).await {
                Err(error) if error::is_temporary(&error) => {
                    outage.record_failed_attempt(&connector.address(), "connect to Redis", &error);
                    tokio::time::sleep(outage.delay()).await;
                }
                connected => return connected.inspect(|_| outage.record_success()),
            }
        }
    }

    /// Connects with the settings of a client of the crate `redis`: its address, login, database,
    /// protocol and TCP settings. The client itself, and its connections, are not used.
    ///
    /// The client must be of `redis` 1: an application with another major version connects with a
    /// URL, or with [`builder`](Self::builder).
    ///
    /// # Errors
    /// The errors of [`connect`](Self::connect). A client with certificates is refused, since its
    /// certificates cannot be read: pass them to [`builder`](Self::builder) instead.
    pub async fn from_client(client: redis::Client) -> Result<Self, Error> {
        Self::with_connector(Connector::from_client(&client)?).await
    }

    /// Connects to the server of a connector.
    pub(super) async fn with_connector(connector: Connector) -> Result<Self, Error> {
        let first = connector.checked_connection().await?;
        connector.keep_current();
        let counters = Arc::<Counters>::default();
        let pipeline = Pipeline::spawn(connector.clone(), Some(first), counters.clone());
        Ok(Self {
            settings: Settings::default(),
            options: Arc::default(),
            shared: Arc::new(SharedHandle::new(connector, pipeline, counters)),
            rpc: Arc::default(),
        })
    }

    /// Returns a limit that all workers of the group share. Limits with the same name share their
    /// permits.
    ///
    /// A permit lasts for the lease of this handle, and is renewed while it is in use. So the
    /// permits of a dead worker end one lease after their last renewal.
    ///
    /// # Errors
    /// If the name is empty, longer than 512 bytes, or has a colon.
    pub fn limit(&self, name: impl Into<Name>) -> Result<Limit, Error> {
        Limit::new(name, RedisLimits::new(self.clone()))
    }

    /// Returns the key under which handlers of the stream store the value `name` through their
    /// [outboxes](crate::Outbox#values). The key is in the same cluster slot as the stream.
    ///
    /// # Errors
    /// If the handle has a set of streams, or a partitioned stream.
    pub fn value_key(&self, name: &str) -> Result<String, Error> {
        let stream = self.settings.one_stream()?;
        let keys = Keys::new(&self.options.namespace, stream, &self.settings.group)?;
        Ok(keys.value(name))
    }

    /// Returns the message counters, summed over all clones of this handle.
    pub fn counts(&self) -> Counts {
        self.shared.counters.snapshot()
    }
}

/// Settings of the serving half, and the stream that the sending half sends to.
impl Redis {
    consumer_settings!();
}

// The connector is omitted, since it has the user and the password.
impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("address", &self.shared.connector.address())
            .field("namespace", &self.options.namespace.name())
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
