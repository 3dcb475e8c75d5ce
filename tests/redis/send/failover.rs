//! A primary that is demoted behind a proxy. The proxy leads to the demoted server for some time
//! more, like a load balancer or a DNS name that changes late.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use campanile::{Client, Deadline, Error, Message, Redis, Reply, ReplyMode, Router};
use futures_util::StreamExt;
use tokio::time::{sleep, timeout};

use super::{
    SECOND, send,
    support::{RedisServer, proxy::Proxy, raw, worker::Worker},
};

/// The time for which the proxy leads to the demoted server: long enough for a first attempt to
/// reconnect.
const LATE: Duration = Duration::from_secs(3);
/// The longest time in which the new primary must be found after that.
const FOUND: Duration = Duration::from_secs(15);

/// The replication of the demoted server: it follows the new primary, or a server that cannot be
/// reached.
#[derive(Debug, Clone, Copy)]
enum Demoted {
    Follows,
    CutOff,
}

const BOTH: [Demoted; 2] = [Demoted::Follows, Demoted::CutOff];

struct Failover {
    old: RedisServer,
    new: RedisServer,
    proxy: Proxy,
}

impl Failover {
    async fn start() -> Self {
        let old = RedisServer::start().await;
        let new = old.replica().await;
        let proxy = Proxy::start(old.port()).await;
        Self { old, new, proxy }
    }

    /// A handle that reaches the primary through the proxy.
    async fn handle(&self) -> Redis {
        let redis = Redis::connect(&self.proxy.url()).await;
        redis.expect("the proxy is there").stream("s").group("g")
    }

    /// A worker that reaches this server without the proxy.
    async fn worker(&self, server: &RedisServer) -> Worker {
        let redis = Redis::connect(&server.url()).await;
        let redis = redis.expect("the server is there").stream("s").group("g");
        Worker::start(redis, Router::new().rpc("r", async || "here"))
    }

    /// Promotes the new primary, and returns when the proxy leads to it.
    async fn switch(&self, demoted: Demoted) {
        self.new.command(&["REPLICAOF", "NO", "ONE"]).await;
        let followed = match demoted {
            Demoted::Follows => self.new.port(),
            Demoted::CutOff => 1,
        };
        self.old.follow(followed).await;
        sleep(LATE).await;
        self.proxy.lead_to(self.new.port());
    }
}

async fn request(redis: &Redis, mode: ReplyMode) -> Result<Reply, Error> {
    let mut message = Message::rpc("r", "");
    message.parts_mut().reply_mode = mode;
    message.parts_mut().deadline = Some(Deadline::after(2 * SECOND));
    send(redis, message).await
}

/// Sends requests until one is answered, and then some more, which must all be answered.
async fn requests_are_answered_again(mode: ReplyMode, demoted: Demoted) {
    let servers = Failover::start().await;
    let redis = servers.handle().await;
    let worker = servers.worker(&servers.old).await;
    request(&redis, mode).await.expect("an answer");
    drop(worker);
    servers.switch(demoted).await;
    let _worker = servers.worker(&servers.new).await;
    let (switched, mut failures) = (Instant::now(), Vec::new());
    while let Err(error) = request(&redis, mode).await {
        failures.push(error.to_string());
        assert!(
            switched.elapsed() < FOUND,
            "{demoted:?}: no answer within {FOUND:?}, and the state is {:?}: {failures:#?}",
            redis.state()
        );
        sleep(SECOND / 10).await;
    }
    for _ in 0..5 {
        request(&redis, mode).await.expect("an answer");
    }
}

#[tokio::test]
async fn reliable_requests_are_answered_again_after_a_demotion() {
    let all = BOTH.map(|demoted| requests_are_answered_again(ReplyMode::Reliable, demoted));
    futures_util::future::join_all(all).await;
}

#[tokio::test]
async fn fast_requests_are_answered_again_after_a_demotion() {
    let all = BOTH.map(|demoted| requests_are_answered_again(ReplyMode::Fast, demoted));
    futures_util::future::join_all(all).await;
}

/// Publishes until the new primary's subscriber receives it.
async fn events_reach_the_new_primary(demoted: Demoted) {
    let servers = Failover::start().await;
    let redis = servers.handle().await;
    let publish = async || send(&redis, Message::event("e", "")).await;
    publish().await.expect("the message is sent");
    servers.switch(demoted).await;
    let mut subscriber = servers.new.client().get_async_pubsub().await.unwrap();
    subscriber.subscribe("e").await.unwrap();
    let mut heard = subscriber.into_on_message();
    let (switched, mut sent) = (Instant::now(), 0);
    loop {
        sent += usize::from(publish().await.is_ok());
        if timeout(SECOND / 4, heard.next()).await.is_ok() {
            return;
        }
        assert!(
            switched.elapsed() < FOUND,
            "{demoted:?}: none of {sent} events arrived within {FOUND:?}, and the state is {:?}",
            redis.state()
        );
    }
}

#[tokio::test]
async fn a_handle_that_only_publishes_leaves_a_demoted_server() {
    futures_util::future::join_all(BOTH.map(events_reach_the_new_primary)).await;
}

// A demoted server refuses scripts too. Redis 6.2 wraps that error.
#[tokio::test]
async fn a_worker_and_tasks_with_a_key_find_the_new_primary_after_a_demotion() {
    for demoted in BOTH {
        let servers = Failover::start().await;
        let handled = Arc::<AtomicUsize>::default();
        let count = handled.clone();
        let app = Router::new().task("t", async move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let worker = Worker::start(servers.handle().await, app);
        let client = Client::new(servers.handle().await);
        let keyed = async |n: usize| {
            let sent = client.enqueue("t", ()).idempotency_key(format!("key {n}"));
            sent.await
        };
        let all_handled = |count: usize| {
            let handled = handled.clone();
            let all = move || {
                let handled = handled.load(Ordering::SeqCst);
                async move { (handled == count).then_some(()) }
            };
            raw::eventually(all, FOUND)
        };
        keyed(0).await.expect("the message is sent");
        all_handled(1).await;
        servers.switch(demoted).await;
        let (switched, mut failures) = (Instant::now(), Vec::new());
        while let Err(error) = keyed(1).await {
            failures.push(error.to_string());
            assert!(
                switched.elapsed() < FOUND,
                "{demoted:?}: no task is accepted within {FOUND:?}: {failures:#?}"
            );
        }
        for n in 2..20 {
            keyed(n).await.expect("the message is sent");
        }
        all_handled(20).await;
        worker.stop().await.expect("the worker stops");
    }
}
