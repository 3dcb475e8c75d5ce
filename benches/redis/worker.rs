//! A served router, as in an application.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use campanile::{
    Batch, Client, Message, Name, Receipt, Redis, Router, State,
    client::Call,
    transport::{Streams, WhenFull},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::util::MapRequestLayer;

use crate::{
    GROUP, NAME, STREAM,
    address::Address,
    open::Arrivals,
    setup::{Setup, number},
    workload::Handler,
};

/// The name of an event. Its arrival shows that the subscription is confirmed.
pub(crate) const WARM_UP_EVENT: &str = "bench.warm";

/// The name of a route whose handler records the arrival of numbered messages.
pub(crate) const NUMBERED_TASK: &str = "bench.numbered";

/// The maximum time for which a sender waits for room on a stream with a bound.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// A running worker, and its handle to Redis, which senders share.
pub(crate) struct Worker {
    redis: Redis,
    pub(crate) setup: Setup,
    pub(crate) seen: Seen,
    stop: CancellationToken,
    served: JoinHandle<Result<(), campanile::Error>>,
}

impl Worker {
    pub(crate) async fn start(address: &Address, setup: &Setup) -> Self {
        Self::start_with(address, setup, Handler::Single, Arrivals::new(0)).await
    }

    pub(crate) async fn start_with(
        address: &Address,
        setup: &Setup,
        handler: Handler,
        arrivals: Arrivals,
    ) -> Self {
        let redis = handle_for(connect(address).await, setup).max_in_flight(setup.max_in_flight);
        let seen = Seen::new(arrivals);
        let stop = CancellationToken::new();
        let app = app(setup, handler).with_state(seen.clone());
        let served = tokio::spawn(
            campanile::serve(redis.clone(), app)
                .with_graceful_shutdown(stop.clone().cancelled_owned())
                .into_future(),
        );
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

    /// Waits until Redis has confirmed this number of acknowledgements.
    pub(crate) async fn wait_until_done(&self, count: usize) {
        self.wait_until(|worker| worker.redis.counts().done >= count as u64)
            .await;
    }

    pub(crate) async fn wait_until(&self, reached: impl Fn(&Self) -> bool) {
        while !reached(self) {
            assert!(!self.served.is_finished(), "the worker ended early");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        let ended = self.served.await.expect("the worker does not panic");
        ended.expect("the worker ends well");
    }
}

fn app(setup: &Setup, handler: Handler) -> Router<Seen> {
    let setup = *setup;
    let mut app = Router::new()
        .task(
            NUMBERED_TASK,
            async move |State(seen): State<Seen>, payload: Bytes| {
                setup.wait().await;
                seen.arrivals.mark(number(&payload));
            },
        )
        .event(
            NAME,
            async move |State(seen): State<Seen>, payload: Bytes| {
                setup.wait().await;
                black_box(payload);
                seen.events.fetch_add(1, Ordering::Relaxed);
            },
        )
        .event(WARM_UP_EVENT, async |State(seen): State<Seen>| {
            seen.warm_up_events.fetch_add(1, Ordering::Relaxed);
        });
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
                // A batch cannot be larger than the limit in flight.
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

pub(crate) async fn connect(address: &Address) -> Redis {
    address.connect().await.group(GROUP)
}

/// Returns a handle that serves, and sends to, the streams of the setup.
fn handle_for(redis: Redis, setup: &Setup) -> Redis {
    let redis = match setup.bound {
        0 => redis,
        bound => redis.max_waiting(bound).when_full(WhenFull::Wait(MAX_WAIT)),
    };
    match setup.streams {
        partitions if setup.partitioned => redis.streams(Streams::partitioned(STREAM, partitions)),
        1 => redis.stream(STREAM),
        _ => redis.streams(Streams::in_turn(setup.streams())),
    }
}

/// Sends messages with one client. The messages use the streams, and the names, in turn.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    pub(crate) client: Client<Redis>,
    /// The streams and the names.
    targets: Arc<(Vec<Name>, Vec<Name>)>,
    /// True if the client itself chooses the stream of a call: the only stream, or a partition.
    client_chooses_stream: bool,
    pub(crate) payload: Bytes,
}

impl Sender {
    pub(crate) fn new(redis: &Redis, setup: &Setup) -> Self {
        let streams = setup.streams().map(Name::from).collect();
        Self {
            client: Client::new(handle_for(redis.clone(), setup)),
            targets: Arc::new((streams, setup.names().collect())),
            client_chooses_stream: setup.partitioned || setup.streams == 1,
            payload: setup.payload(),
        }
    }

    /// Returns the call that enqueues the task with this number.
    pub(crate) fn enqueue(&self, message: usize) -> Call<Redis, Receipt> {
        let call = (self.client).enqueue(self.name(message), self.payload.clone());
        self.on_stream(message, call)
    }

    pub(crate) fn name(&self, message: usize) -> &Name {
        let (streams, names) = &*self.targets;
        &names[message / streams.len() % names.len()]
    }

    /// Sets the stream of a call, if there are several streams.
    pub(crate) fn on_stream<R>(&self, message: usize, call: Call<Redis, R>) -> Call<Redis, R> {
        let streams = &self.targets.0;
        match self.client_chooses_stream {
            true => call,
            false => call.stream(&streams[message % streams.len()]),
        }
    }

    /// A client of one of the streams, for calls that cannot choose their stream.
    pub(crate) fn client_of(&self, chunk: usize) -> Client<Redis> {
        if self.client_chooses_stream {
            return self.client.clone();
        }
        let streams = &self.targets.0;
        let redis = self.client.service().clone();
        Client::new(redis.stream(&streams[chunk % streams.len()]))
    }
}

/// Counts the messages that handlers received.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) events: Arc<AtomicUsize>,
    pub(crate) warm_up_events: Arc<AtomicUsize>,
    arrivals: Arrivals,
}

impl Seen {
    fn new(arrivals: Arrivals) -> Self {
        Self {
            events: Arc::default(),
            warm_up_events: Arc::default(),
            arrivals,
        }
    }
}
