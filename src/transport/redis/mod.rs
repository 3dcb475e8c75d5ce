//! (docs to come with the first working version)

mod connect;
mod dead;
mod error;
mod keys;
mod link;
mod options;
mod pubsub;
mod rpc;
mod send;
mod source;

use std::{fmt, sync::Arc};

use self::{connect::Connector, link::Link, options::Options};
pub use self::{
    send::SendFuture,
    source::{RedisSettle, RedisSource},
};
use crate::{
    error::Error,
    transport::{Counters, Counts, Settings, consumer_settings},
};

/// A handle of a Redis server. See the [module](self).
#[derive(Clone)]
pub struct Redis {
    settings: Settings,
    options: Arc<Options>,
    shared: Arc<Shared>,
    rpc: Arc<std::sync::OnceLock<Arc<rpc::Hub>>>,
}

/// What the clones of a handle share.
struct Shared {
    connector: Connector,
    link: Link,
    counters: Arc<Counters>,
}

impl Redis {
    /// Connects to the server at a URL: `redis://user:password@host:port/db`,
    /// `redis+unix:///path/to/redis.sock?db=0`, or `rediss://…` with the feature `redis-rustls`.
    /// `?protocol=resp3` chooses RESP3.
    ///
    /// # Errors
    /// Within seconds, when the server is not reached, does not let us in, or is older than 6.2.
    /// Once it is connected a handle outlives any outage.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        Self::over(Connector::from_url(url)?).await
    }

    /// Connects with a client that the application has set up itself.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn from_client(client: redis::Client) -> Result<Self, Error> {
        Self::over(Connector::from_client(client)?).await
    }

    async fn over(connector: Connector) -> Result<Self, Error> {
        let first = connector.checked().await?;
        let counters = Arc::<Counters>::default();
        let link = Link::spawn(connector.clone(), Some(first), counters.clone());
        Ok(Self {
            settings: Settings::default(),
            options: Arc::default(),
            shared: Arc::new(Shared {
                connector,
                link,
                counters,
            }),
            rpc: Arc::default(),
        })
    }

    /// What happened so far, over all clones of this handle.
    pub fn counts(&self) -> Counts {
        self.shared.counters.snapshot()
    }
}

/// Settings of the serving half, and the stream that the sending half sends to.
impl Redis {
    consumer_settings!();
}

// No user and no password, which the client knows.
impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("address", &self.shared.connector.address())
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
