//! Redis: tasks and requests on a stream, events on Pub/Sub.
//!
//! A [`Redis`] is both halves of the transport in one handle: a `tower::Service<Message>` that
//! sends, and a [`Transport`](crate::transport::Transport) to serve from. Its clones share their
//! connections. Any server from 6.2 on will do; nothing newer is used.
//!
//! ```no_run
//! use campanile::{Message, Redis};
//! use tower::ServiceExt;
//!
//! # async fn run() -> Result<(), campanile::Error> {
//! let redis = Redis::connect("redis://127.0.0.1/").await?;
//! let reply = redis.oneshot(Message::task("orders.create", r#"{"id":7}"#)).await?;
//! println!("on the stream as {}", reply.receipt().expect("a task has one"));
//! # Ok(())
//! # }
//! ```
//!
//! With another stream and group, and settings that only Redis has:
//!
//! ```no_run
//! use campanile::Redis;
//! use std::time::Duration;
//!
//! # async fn run() -> Result<(), campanile::Error> {
//! let redis = Redis::connect("redis+unix:///run/redis.sock?db=2")
//!     .await?
//!     .stream("billing")
//!     .group("invoices")
//!     .max_in_flight(256)
//!     .foreign_lease(Duration::from_secs(600));
//! # Ok(())
//! # }
//! ```
//!
//! # Ordering
//! Messages are on the stream in the order of the calls that sent them, as long as none of them has to
//! wait for its turn. Two that are sent over a lost connection may change places.
//!
//! # Back-pressure
//! The handle is always ready. Commands that are queued or in flight are bounded, by 4096 commands and by
//! 32 MiB; a call beyond that waits in its future, first come, first served. A larger message passes
//! alone.
//!
//! # Cancel safety
//! Dropping the future of a call does not take back what was sent. The place of a request is freed
//! at once, and a late reply to it is counted as stray.
//!
//! # Errors
//! Without a connection a call waits for 5 s, from its beginning or from the loss, then fails as
//! [disconnected](crate::Error::is_disconnected): nothing was sent, and the error's
//! [source](std::error::Error::source) is why no connection could be made. When the connection is lost
//! before the server's answer its [outcome is unknown](crate::Error::is_unknown_outcome): sending it
//! again may do it twice. What the server refuses says what to do. A handle never gives up: it
//! connects again, without limit, with a back-off until the server has answered a command. The
//! connections of a handle are tasks of the runtime that it was connected on: once that has ended,
//! every call says so, and the state is
//! [`Closed`](crate::transport::ConnectionState::Closed).
//!
//! # Delivery guarantee
//! A task that got its receipt is handled at least once. An event reaches who listens right now. A
//! reliable request (the default) gets its reply even when the caller's connection or the worker is
//! lost in between, within its deadline; a fast one fails at once when its reply could not be heard.
//!
//! # Connections
//! One for all that is sent. The first request adds one that is subscribed to this client's own
//! reply channel, and the first reliable request one that reads the replies on all streams. They
//! end with the last clone of the handle. [`Redis::builder`] takes certificates for TLS; the crypto
//! provider of the process is neither used nor installed.
//!
//! # Rights
//! What users with few rights need, for the stream `s`. Keys of a stream whose name holds a hash tag
//! begin with its length instead: `6:{s}.v2:dead:g` for the stream `{s}.v2`. The parts in brackets
//! are selectors, which Redis knows from 7.0 on: who may add to the stream may not read or delete it.
//! For 6.2 leave the brackets out; there a user may use each command on each of its keys.
//!
//! | who | `ACL SETUSER …` |
//! |---|---|
//! | sends tasks | `~s +xadd` |
//! | … with a delay or an idempotency key | `+time (~s ~{s}:due ~{s}:bodies ~{s}:idem:* +evalsha +eval) (~s +xadd) (~{s}:due ~{s}:bodies ~{s}:idem:* +get +set +del +zadd +zrangebyscore +zrange +zrem +hset +hget +hdel)` |
//! | serves tasks and requests | `~s ~{s}:* &campanile:reply:* &reply:* +xreadgroup +xack +xdel +xadd +xpending +xclaim +xrange +xlen +xgroup +xinfo +xtrim +zadd +zrangebyscore +zrange +zrem +hset +hget +hdel +set +pttl +type +exists +time +evalsha +eval +publish +client\|id +client\|unblock` |
//! | … and handles [dead letters](Redis::dead_letters) | `+xrevrange` |
//! | listens to events | `&<event names and patterns> +subscribe +psubscribe +ping` |
//! | scrapes [`stats`](Redis::stats) | `~s ~{s}:* +xlen +zcard +xinfo +xpending +xrange +exists +time +evalsha +eval` |
//! | looks at a stream with [`tail`](Redis::tail) | `~s +xread +xrevrange` |
//! | publishes events | `&<event names> +publish` |
//! | requests | `&campanile:reply:* +subscribe +ping (~s +xadd) (~{s}:rpc:* +xadd +xread +xtrim +pexpire +unlink)` |
//!
//! `+info` lets the server's version be checked, and `+select` chooses a database.

mod connection;
mod consumer;
mod dead_letters;
mod entry;
mod entry_size;
mod error;
mod ids;
mod keys;
mod msgpack;
mod options;
mod pipeline;
mod producer;
#[cfg(any(test, fuzzing))]
pub(crate) mod readers;
pub(crate) mod response;
mod rpc;
mod scripts;
mod server;
#[cfg(test)]
mod simulation;
mod state;
mod stats;
mod tail;

use std::{fmt, sync::Arc};

#[doc(hidden)]
pub use self::error::script_error;
pub use self::{
    consumer::{RedisSettle, RedisSource},
    producer::SendFuture,
    server::RedisBuilder,
    tail::{Tail, TailEntry, TailFrom},
};
use self::{options::Options, pipeline::Pipeline, server::Connector};
use crate::{
    error::Error,
    transport::{Counters, Counts, Settings, consumer_settings},
};

/// A handle of a Redis server: it sends, and it can be served from. See the [module](self).
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
    pipeline: Pipeline,
    counters: Arc<Counters>,
    promoters: producer::schedule::Promoters,
    registrations: producer::Registrations,
    hearts: state::Hearts,
}

impl Redis {
    /// Connects to the server at a URL: `redis://user:password@host:port/db`,
    /// `redis+unix:///path/to/redis.sock?db=0`, or `rediss://…` with the feature `redis-rustls`.
    /// `?protocol=resp3` chooses RESP3. [`builder`](Self::builder) takes certificates as well.
    ///
    /// # Errors
    /// Within seconds, when the server is not reached, does not let us in, or is older than 6.2.
    /// Once it is connected a handle outlives any outage, and a worker that begins during one waits
    /// for its end. [`connect_when_ready`](Self::connect_when_ready) waits too.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        Self::builder(url).connect().await
    }

    /// Like [`connect`](Self::connect), and waits for a server that is away or not ready: it tries
    /// again without limit, with a back-off, and logs the cause as a warning every few seconds.
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
    /// At once for what does not pass: a URL that cannot be read, a wrong password, a server that is
    /// older than 6.2.
    ///
    /// # Cancel safety
    /// Dropping the future gives up.
    pub async fn connect_when_ready(url: &str) -> Result<Self, Error> {
        Self::builder(url).connect_when_ready().await
    }

    async fn over_when_ready(connector: Connector) -> Result<Self, Error> {
        let mut outage = server::Outage::default();
        loop {
            match Self::over(connector.clone()).await {
                Err(error) if error::is_temporary(&error) => {
                    outage.refused(connector.address(), "connect to Redis", &error);
                    tokio::time::sleep(outage.wait()).await;
                }
                connected => return connected,
            }
        }
    }

    /// Connects as a client of the crate `redis` is set up to: with its address, login, database,
    /// protocol and TCP settings. The client itself, and its connections, are not used.
    ///
    /// The client is one of `redis` 1: an application with another major version connects with a URL,
    /// or with [`builder`](Self::builder).
    ///
    /// # Errors
    /// As [`connect`](Self::connect). A client with certificates is refused, for nobody can read them:
    /// they are given to [`builder`](Self::builder) in place of that.
    pub async fn from_client(client: redis::Client) -> Result<Self, Error> {
        Self::over(Connector::from_client(&client)?).await
    }

    async fn over(connector: Connector) -> Result<Self, Error> {
        let first = connector.checked().await?;
        let counters = Arc::<Counters>::default();
        let pipeline = Pipeline::spawn(connector.clone(), Some(first), counters.clone());
        Ok(Self {
            settings: Settings::default(),
            options: Arc::default(),
            shared: Arc::new(Shared {
                connector,
                pipeline,
                counters,
                promoters: Default::default(),
                registrations: Default::default(),
                hearts: Default::default(),
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
