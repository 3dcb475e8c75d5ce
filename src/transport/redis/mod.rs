//! Redis: tasks and requests on a stream, events on Pub/Sub.
//!
//! A [`Redis`] is both halves of the transport in one handle: a `tower::Service<Message>` that
//! sends, and a [`Transport`](crate::transport::Transport) to serve from. Its clones share their
//! connections. Redis 6.2 or newer is required.
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
//! Messages are added to the stream in the order of the calls that sent them, as long as no call
//! has to wait for a place in the queue. Two messages that are sent during a reconnect may be added
//! in reverse order.
//!
//! # Back-pressure
//! The handle is always ready. At most 4096 commands, with at most 32 MiB in all, are queued or in
//! flight. The future of a call beyond these limits waits, first come, first served. A message of
//! more than 32 MiB waits until no other command is queued or in flight.
//!
//! These limits do not depend on the workers: the number of messages that wait on a stream may grow
//! without limit, unless the handle has a [bound](Redis::max_waiting). See
//! [operations](crate::guide::operations).
//!
//! # Cancel safety
//! Dropping the future of a call does not stop a message that was sent. The handle forgets a
//! request immediately: a reply that comes later is counted as stray.
//!
//! # Errors
//! Without a connection, a call waits for 5 s, from its start or from the loss of the connection,
//! whichever is later. Then it fails as [disconnected](crate::Error::is_disconnected): nothing was
//! sent, and the error's [source](std::error::Error::source) is the reason why no connection could
//! be made. If the connection is lost before the server's response, the [outcome is
//! unknown](crate::Error::is_unknown_outcome): a message that is sent again may be on the stream
//! twice. If the server refuses a message, the text of the error says what to do.
//!
//! A handle never stops trying: it reconnects without limit. The delay between two attempts grows
//! up to 2 s. The delay is reset once a connection has received a response to a command, or has
//! lasted for more than 2 s. The connections of a handle are tasks of the runtime on which the
//! handle connected: after that runtime has ended, every call fails, and the state is
//! [`Closed`](crate::transport::ConnectionState::Closed).
//!
//! # Delivery guarantee
//! A task with a receipt is handled at least once. An event reaches the current listeners, at most
//! once. A reliable request (the default) gets its reply within its deadline even if the caller's
//! connection or the worker is lost in between. A fast request fails immediately if its reply could
//! be missed.
//!
//! # Connections
//! One connection sends everything except tasks that [replicas](crate::client::Call::replicas) must
//! confirm. The first such task opens a separate connection for these tasks, so that no other
//! command waits for the replicas. The first request opens a connection that subscribes to this
//! client's reply channel, and the first reliable request opens another one, which reads all reply
//! streams. All connections close with the last clone of the handle.
//!
//! A source with events has a connection for its subscriptions. On a cluster the source has another
//! connection to each node with channels of its [sharded events](crate::Router::event_sharded).
//!
//! # Credentials and TLS
//! A URL has a fixed user and password. [`RedisBuilder::credentials`] takes a provider instead, for
//! passwords that are rotated and tokens that expire:
//!
//! ```no_run
//! use campanile::{BoxError, Redis, transport::redis::Credentials};
//! use std::time::Duration;
//!
//! # struct Token { text: String, seconds_left: u64 }
//! # async fn fetch_token() -> Result<Token, std::io::Error> { unimplemented!() }
//! async fn current() -> Result<Credentials, BoxError> {
//!     let token = fetch_token().await?;
//!     let lifetime = Duration::from_secs(token.seconds_left);
//!     Ok(Credentials::new("worker", token.text).expires_in(lifetime))
//! }
//!
//! # async fn run() -> Result<(), campanile::Error> {
//! let redis = Redis::builder("rediss://redis.internal/").credentials(current).connect().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Each new connection asks the provider. A password without an expiry may change at any time: open
//! connections stay logged in, and new ones ask the provider again.
//!
//! Credentials that expire are renewed when a quarter of their lifetime is left, or five minutes if
//! that is less. The connection sends `AUTH` between its other commands: it stays open, and no
//! command is lost or repeated. A connection in a blocking read sends `AUTH` after the read, which
//! takes up to 2 s. This must happen within the last quarter of the lifetime, so a lifetime of less
//! than 10 s is too short. If the provider fails, or the server refuses its credentials, the old
//! login stays in use and a warning says why. Another attempt follows, with a back-off of up to
//! 2 s.
//!
//! A connection that subscribes to events or to fast replies renews its credentials in the same way
//! over RESP3, which every server since Redis 6 speaks. Over RESP2 a subscriber may not log in
//! again, so it makes a new connection before the expiry. Events in between are lost, and fast
//! requests that wait for a reply fail, as with any other loss of this connection.
//!
//! With the feature `redis-rustls`, [`RedisBuilder`] takes certificates for `rediss` URLs
//! (`ca_certificate`, `client_certificate`), and the name to expect in the certificates of servers
//! that Sentinels or a cluster announce by address (`server_name`). The crypto provider of the
//! process is neither used nor installed.
//!
//! # Topologies
//! | URL | servers |
//! |---|---|
//! | `redis://host:6379/0`, `redis+unix:///run/redis.sock` | one server, or an address that leads to the primary |
//! | `redis+sentinel://host1,host2,host3/mymaster/0` | the primary with this name, found by asking the Sentinels |
//! | `redis+cluster://host1,host2,host3` | a Redis Cluster; the hosts are some of its nodes, and any may be down |
//!
//! With `rediss` instead of `redis` the connections, also those to Sentinels, use TLS. The user and
//! the password in a URL are for the Redis servers. The login of the Sentinels is
//! `?sentinel_username=…&sentinel_password=…`, or [`RedisBuilder::sentinel_credentials`].
//!
//! A connection is made to the primary of its stream, not to a fixed address. The primary is looked
//! up for each connection, and again every 5 s. A connection ends when a look-up names another
//! server as the primary. All connections to a demoted server end within seconds. This includes the
//! connections of subscribers, although the server would still serve them. On a cluster, all keys
//! of a stream are in one slot. Each primary in use has one connection for commands, and each slot
//! with reliable requests has one that reads replies. A worker reads each slot of its streams over
//! a separate connection. If it serves more than 64 slots, or several slots with a priority or
//! weights, it reads the slots of each node over one shared connection.
//!
//! # Namespaces
//! [`Redis::namespace`], or `?namespace=staging` in the URL, separates applications and
//! environments that share a server. Separate databases are not enough: events and fast replies
//! reach all databases of a server, and a cluster has one database. Without namespaces, two
//! services that use the default names would share a stream, and take each other's tasks.
//!
//! | without | in the namespace `staging` |
//! |---|---|
//! | the stream `orders`, its other keys `{orders}:…` | `staging:orders`, `{staging:orders}:…` |
//! | the stream `{shop}.mails`, its other keys `12:{shop}.mails:…` (12 is the length of the name) | `staging:{shop}.mails`, `20:staging:{shop}.mails:…`; it stays in its slot |
//! | the registry `campanile:registry:all` | `staging:campanile:registry:all`, with the names of streams as senders gave them |
//! | the channel `news` of an event; `shop.news` with an event prefix `shop.` | `staging:news`, `staging:shop.news` |
//! | the channels `campanile:reply:…` and `reply:…` of fast replies | `staging:campanile:reply:…`, `staging:reply:…` |
//!
//! Everything outside of Redis shows names without the namespace: messages, receipts, statistics,
//! dead letters, errors and logs. Go-Broker, the Go library with the same wire format, has no
//! namespaces: its services exchange messages only with handles without a namespace. Such a handle
//! can read the stream `orders` of the namespace `staging` under the name `staging:orders`. The
//! `RedisStore` of `campanile-middleware` has its own prefix.
//!
//! | who | `ACL SETUSER …` |
//! |---|---|
//! | anything in the namespace `staging` | `~staging:* ~{staging:* ~[0-9][0-9]:staging:* &staging:*` |
//!
//! The third pattern is for streams whose names contain a hash tag, and have fewer than 100 bytes
//! with the namespace. Longer names need a pattern with more digits, such as
//! `~[0-9][0-9][0-9]:staging:*`. The commands are those below, and each pattern of events needs its
//! own `&staging:<pattern>`.
//!
//! # Rights
//! The table lists the permissions for the stream `s`. If a stream's name contains a hash tag, the
//! keys of the stream begin with the length of the name: `6:{s}.v2:dead:g` for the stream `{s}.v2`.
//! The parts in parentheses are selectors, which need Redis 7.0: with them a user who adds to the
//! stream may not read or delete it. For Redis 6.2 leave out the parentheses, write `~` instead of
//! `%R~`, and begin with `resetchannels`. The user may then use each command on each of the keys.
//! `%R~campanile:orders:…` lets a worker read the orders of operators, but not give orders.
//!
//! A row that begins with `…` is needed in addition to the nearest row above it without `…`.
//!
//! | who | `ACL SETUSER …` |
//! |---|---|
//! | sends tasks | `~s +xadd` |
//! | … with a delay or an idempotency key | `+time (~s ~{s}:due ~{s}:bodies ~{s}:idem:* +evalsha +eval) (~s +xadd) (~{s}:due ~{s}:bodies ~{s}:idem:* +get +set +del +zadd +zrangebyscore +zrange +zscore +zrem +hset +hget +hdel)` |
//! | … that are [unique](crate::client::Call::unique) or [tracked](crate::client::Call::tracked) | `(~s ~{s}:* +time +xadd +xrange +zscore +get +set +del +zadd +zrem +zremrangebyrank +hset +hget +hmget +hdel +type +pttl +pexpire +evalsha +eval)` |
//! | … to partitions, with `~s:*` instead of `~s` | `(~{s}:partitions +lrange +rpush +evalsha +eval)` |
//! | … that replicas confirm | `+wait` |
//! | … with a [bound](Redis::max_waiting) on what waits | `(~s ~{s}:retry:* +xinfo +xlen +xrange +exists +time +evalsha +eval)` |
//! | serves tasks and requests | `~s ~{s}:* %R~campanile:orders:{s}:* &campanile:reply:* &reply:* +xreadgroup +xack +xdel +xadd +xpending +xclaim +xrange +xlen +xgroup +xinfo +xtrim +zadd +zrangebyscore +zrange +zrem +zcard +zscore +zremrangebyscore +zremrangebyrank +hset +hget +hmget +hgetall +hexists +hdel +hkeys +hincrby +get +set +del +persist +pttl +pexpire +type +exists +time +evalsha +eval +publish +role +client\|id +client\|unblock` |
//! | … over more than 64 slots of a cluster, or several with a priority or weights | `+client\|tracking` |
//! | … whose [outboxes](crate::Outbox) send to a stream `t` | `~t ~{t}:due ~{t}:bodies ~{t}:idem:*` |
//! | … with rates that workers [share](Redis::limit) | `+zcount +zrevrange` |
//! | looks up and cancels [`tasks`](Redis::tasks) | `~s ~{s}:* +hgetall +hget +hmget +hset +hdel +get +del +exists +type +zscore +zadd +zrem +zremrangebyrank +zremrangebyscore +zrange +zcard +xadd +xrange +xpending +xack +xdel +pttl +pexpire +persist +time +evalsha +eval` |
//! | … lists them, waits for them and follows their changes | `+zrevrange +zrevrank +zcount +xrevrange +xread` |
//! | … and handles [dead letters](Redis::dead_letters) | `+xrevrange` |
//! | … on partitions, with `~s:* ~{s:*` instead of the keys above | `~{s}:partitions ~{s}:members:* +lrange +rpush +hlen` |
//! | … that workers own, in addition to the row above | `+hincrby +hgetall` |
//! | stores, runs and lists [`schedules`](Redis::schedules) | `(~s ~{s}:* +time +xadd +xrange +zscore +get +set +del +zadd +zrem +hset +hget +hmget +hgetall +hdel +hincrby +type +pexpire +evalsha +eval)` |
//! | listens to events | `&<event names and patterns> +subscribe +psubscribe +ping +role` |
//! | … and to sharded events | `&<event names> +ssubscribe +ping +role` |
//! | scrapes [`stats`](Redis::stats), lists [`consumers`](Redis::consumers) | `~s ~{s}:* +xlen +zcard +zrange +xinfo +xpending +xrange +exists +time +evalsha +eval` |
//! | scales by the [`backlog`](Redis::backlog) | `~s ~{s}:* +xlen +zcard +zcount +zrange +xinfo +xrange +exists +time +evalsha +eval` |
//! | pauses and purges, with [`control`](Redis::control) | `~s ~{s}:* +hset +hget +hdel +hgetall +exists +xrange +xadd +xdel +xinfo +xgroup +zadd +zrange +zrem +zcard +zscore +zremrangebyscore +zremrangebyrank +hmget +pttl +pexpire +get +del +type +time +evalsha +eval` |
//! | lists [`workers`](Redis::workers), asks them and reads the [`history`](Redis::history) | `~s ~{s}:* +hscan +hgetall +xinfo +get +set +time +evalsha +eval` |
//! | … and gives them orders | `(~{s}:workers:* ~campanile:orders:{s}:* +hexists +xadd +pexpire +evalsha +eval)` |
//! | [drops groups](Redis::drop_group) and consumers | `~s ~{s}:* +xgroup +xinfo +xlen +xrange +xadd +xack +xdel +xpending +zadd +zrem +zrange +zrevrange +zrevrank +zcount +zcard +zscore +zremrangebyscore +zremrangebyrank +hset +hget +hmget +hgetall +hdel +get +del +persist +pttl +pexpire +type +exists +time +evalsha +eval` |
//! | looks at a stream with [`tail`](Redis::tail) | `~s +xread +xrevrange` |
//! | publishes events | `&<event names> +publish +role` |
//! | … that are sharded | `&<event names> +spublish +role` |
//! | runs a [`Script`] | `~<key> <commands of the script> +evalsha +eval` |
//! | requests | `&campanile:reply:* +subscribe +ping +role (~s +xadd) (~{s}:rpc:* +xadd +xread +xtrim +pexpire +unlink)` |
//!
//! With `+info` the server's version and its kind are checked, and with `+select` the URL may
//! choose a database. A connection asks for the role of its server every few seconds; without
//! `+role` it assumes that the server is the primary. On a cluster each row also needs
//! `+cluster\|slots +cluster\|info +asking`; a Sentinel asks for
//! `+sentinel\|get-master-addr-by-name +ping`.

mod backlog;
mod connection;
mod consumer;
mod control;
mod dead_letters;
#[cfg(any(test, fuzzing))]
pub(crate) mod decoders;
mod entry;
mod entry_size;
mod error;
pub(crate) mod handle;
mod ids;
mod keys;
mod limits;
mod messages;
mod msgpack;
mod namespace;
mod options;
mod partitions;
mod pipeline;
mod producer;
mod removal;
mod response;
mod rpc;
#[cfg(feature = "schedule")]
mod schedules;
mod script_call;
mod scripts;
mod server;
#[cfg(test)]
mod simulation;
mod source_state;
mod state;
mod stats;
mod tail;
mod task_feed;
mod tasks;
pub(crate) mod value;
mod workers;

pub(crate) use self::handle::Redis;
pub use self::{
    consumer::{RedisSettler, RedisSource},
    producer::SendFuture,
    script_call::{ScriptCall, ScriptResponse},
    scripts::Script,
    server::{Credentials, CredentialsFuture, CredentialsProvider, RedisBuilder},
    tail::{Tail, TailEntry, TailFrom},
};
