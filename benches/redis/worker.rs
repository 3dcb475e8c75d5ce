//! A served router, as an application would have it.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use campanile::{Batch, Client, Message, Name, Redis, Router, extract::State};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::util::MapRequestLayer;

use crate::{
    GROUP, NAME,
    open::Arrivals,
    setup::{Setup, number},
    workload::Handler,
};

/// An event that tells that subscriptions stand.
pub(crate) const WARM: &str = "bench.warm";

/// Tells when it has which of the messages that have numbers.
pub(crate) const NUMBERED: &str = "bench.numbered";

/// A worker, and all that is sent to it; one handle to Redis for both.
pub(crate) struct Worker {
    redis: Redis,
    pub(crate) setup: Setup,
    pub(crate) seen: Seen,
    stop: CancellationToken,
    served: JoinSet<Result<(), campanile::Error>>,
}

impl Worker {
    pub(crate) async fn start(url: &str, setup: &Setup) -> Self {
        Self::with(url, setup, Handler::Single, Arrivals::new(0)).await
    }

    pub(crate) async fn with(
        url: &str,
        setup: &Setup,
        handler: Handler,
        arrivals: Arrivals,
    ) -> Self {
        let redis = connect(url).await;
        let seen = Seen::new(arrivals);
        let stop = CancellationToken::new();
        let mut served = JoinSet::new();
        // A worker of several streams is several that share a handle. One of them hears events.
        for stream in setup.streams() {
            let app = app(setup, handler, served.is_empty()).with_state(seen.clone());
            let redis = redis
                .clone()
                .stream(stream)
                .max_in_flight(setup.max_in_flight);
            let stopped = stop.clone().cancelled_owned();
            served.spawn(
                campanile::serve(redis, app)
                    .with_graceful_shutdown(stopped)
                    .into_future(),
            );
        }
        Self {
            redis,
            setup: *setup,
            seen,
            stop,
            served,
        }
    }

    pub(crate) fn sender(&self) -> Sender {
        Sender::new(&self.redis, &self.setup)
    }

    /// Waits until Redis has confirmed so many acknowledgements.
    pub(crate) async fn done(&self, count: usize) {
        self.until(|worker| worker.redis.counts().done >= count as u64)
            .await;
    }

    pub(crate) async fn until(&self, reached: impl Fn(&Self) -> bool) {
        while !reached(self) {
            assert_eq!(
                self.served.len(),
                self.setup.streams,
                "the worker ended early"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        for served in self.served.join_all().await {
            served.expect("the worker ends well");
        }
    }
}

fn app(setup: &Setup, handler: Handler, listens: bool) -> Router<Seen> {
    let setup = *setup;
    let mut app = Router::new().task(
        NUMBERED,
        async move |State(seen): State<Seen>, payload: Bytes| {
            setup.wait().await;
            seen.arrivals.mark(number(&payload));
        },
    );
    if listens {
        app = app.event(
            NAME,
            async move |State(seen): State<Seen>, payload: Bytes| {
                setup.wait().await;
                black_box(payload);
                seen.events.fetch_add(1, Ordering::Relaxed);
            },
        );
        app = app.event(WARM, async |State(seen): State<Seen>| {
            seen.warm.fetch_add(1, Ordering::Relaxed);
        });
    }
    for name in setup.names() {
        app = match handler {
            Handler::Single => app.task(name.clone(), async move |payload: Bytes| {
                setup.wait().await;
                black_box(payload);
            }),
            Handler::Batch => {
                let on_batch = async move |payloads: Vec<Bytes>| {
                    setup.wait().await;
                    black_box(payloads);
                };
                // A batch cannot be larger than what may be in flight.
                let batch = Batch::new(on_batch).size(256.min(setup.max_in_flight));
                app.task(name.clone(), batch)
            }
        };
        app = app.rpc(name, async move |payload: Bytes| {
            setup.wait().await;
            payload
        });
    }
    app.layer(MapRequestLayer::new(|message: Message| message))
}

pub(crate) async fn connect(url: &str) -> Redis {
    Redis::connect(url)
        .await
        .expect("a connection")
        .group(GROUP)
}

/// Sends to the streams and names in turn.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    to: Arc<(Vec<Client<Redis>>, Vec<Name>)>,
    pub(crate) payload: Bytes,
}

impl Sender {
    pub(crate) fn new(redis: &Redis, setup: &Setup) -> Self {
        let client = |stream| Client::new(redis.clone().stream(stream));
        Self {
            to: Arc::new((
                setup.streams().map(client).collect(),
                setup.names().collect(),
            )),
            payload: setup.payload(),
        }
    }

    pub(crate) fn client(&self, message: usize) -> &Client<Redis> {
        let clients = &self.to.0;
        &clients[message % clients.len()]
    }

    pub(crate) fn name(&self, message: usize) -> &Name {
        let (clients, names) = &*self.to;
        &names[message / clients.len() % names.len()]
    }
}

/// What handlers saw.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) events: Arc<AtomicUsize>,
    pub(crate) warm: Arc<AtomicUsize>,
    arrivals: Arrivals,
}

impl Seen {
    fn new(arrivals: Arrivals) -> Self {
        Self {
            events: Arc::default(),
            warm: Arc::default(),
            arrivals,
        }
    }
}
