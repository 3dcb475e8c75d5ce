//! Requests of both reply modes and events, which go on after a failover.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Instant,
};

use bytes::Bytes;
use campanile::{Client, Json, Redis, Router};
use futures_util::StreamExt;
use tokio::time::{sleep, timeout};

use crate::{
    FOUND, SECOND,
    support::{RedisServer, worker::Worker},
};

/// The channel of the events.
const EVENT: &str = "news";

/// A worker that answers requests and handles events, and a client that sends them on the same
/// handle.
pub(crate) struct Calls {
    client: Client<Redis>,
    heard: Arc<Mutex<BTreeSet<Bytes>>>,
    _worker: Worker,
}

impl Calls {
    pub(crate) async fn start(redis: &Redis, stream: &str) -> Self {
        let redis = redis.clone().stream(stream).group("workers");
        let heard = Arc::<Mutex<BTreeSet<Bytes>>>::default();
        let hears = heard.clone();
        let app = Router::new()
            .rpc("double", async |Json(n): Json<u64>| Json(2 * n))
            .event(EVENT, async move |payload: Bytes| {
                hears.lock().unwrap().insert(payload);
            });
        Self {
            client: Client::new(redis.clone()).request_timeout(2 * SECOND),
            heard,
            _worker: Worker::start(redis, app),
        }
    }

    /// Asserts that each kind of call works within [`FOUND`], and keeps working. Requests are
    /// answered. The worker receives events that a bare connection to `server` publishes. A
    /// listener on a bare connection to `server` receives events of the handle.
    pub(crate) async fn work(&self, server: &RedisServer) {
        tokio::join!(
            self.until("a reliable request is answered", async || {
                let reply = self.client.request::<Json<u64>>("double", Json(21)).await;
                reply
                    .map(|Json(n)| n == 42)
                    .map_err(|error| format!("{error:?}"))
            }),
            self.until("a fast request is answered", async || {
                let reply = self
                    .client
                    .request_fast::<Json<u64>>("double", Json(4))
                    .await;
                reply
                    .map(|Json(n)| n == 8)
                    .map_err(|error| format!("{error:?}"))
            }),
            self.until("an event from elsewhere is heard", async || {
                Ok(self.hears(server).await)
            }),
            self.until("an event of the handle is heard elsewhere", async || {
                self.is_heard(server).await
            }),
        );
    }

    /// Calls `works` until it succeeds, and then a few times more, which all must succeed.
    async fn until(&self, what: &str, works: impl AsyncFn() -> Result<bool, String>) {
        let started = Instant::now();
        let mut tries = 0;
        loop {
            let result = works().await;
            if result == Ok(true) {
                break;
            }
            tries += 1;
            assert!(
                started.elapsed() < FOUND,
                "failed for {FOUND:?}, {tries} times: {what}; the last result is {result:?}"
            );
            sleep(SECOND / 10).await;
        }
        for _ in 0..5 {
            assert_eq!(works().await, Ok(true), "{what} once, but not again");
        }
    }

    async fn hears(&self, server: &RedisServer) -> bool {
        let text = Bytes::from(format!("{}", fastrand::u64(..)));
        server.command(&[b"PUBLISH", EVENT.as_bytes(), &text]).await;
        let started = Instant::now();
        while started.elapsed() < SECOND {
            if self.heard.lock().unwrap().remove(&text) {
                return true;
            }
            sleep(SECOND / 100).await;
        }
        false
    }

    async fn is_heard(&self, server: &RedisServer) -> Result<bool, String> {
        let mut listener = server
            .client()
            .get_async_pubsub()
            .await
            .expect("a connection");
        listener.subscribe(EVENT).await.expect("subscribed");
        let mut heard = listener.into_on_message();
        let text = format!("{}", fastrand::u64(..));
        let sent = self.client.publish(EVENT, text.clone()).await;
        sent.map_err(|error| format!("{error:?}"))?;
        let mine = async {
            while let Some(message) = heard.next().await {
                if message.get_payload_bytes() == text.as_bytes() {
                    return true;
                }
            }
            false
        };
        Ok(timeout(SECOND, mine).await.unwrap_or(false))
    }
}
