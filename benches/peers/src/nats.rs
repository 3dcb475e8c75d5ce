//! The workloads with async-nats, set up as in its documentation. Tasks use JetStream: a stream in
//! memory with work-queue retention, which one durable pull consumer reads. Requests use core NATS.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use async_nats::{
    Client,
    jetstream::{
        self,
        consumer::{PullConsumer, pull},
        stream::{Config, RetentionPolicy, StorageType},
    },
};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::task::JoinHandle;

use crate::{
    GROUP, NAME, PAYLOAD, STREAM,
    nats_server::NatsServer,
    probe::Commands,
    process,
    workload::{Job, Round, Work, concurrently},
};

/// The number of messages that the worker holds or has requested, as for Campanile's worker.
const MAX_IN_FLIGHT: usize = 1024;

/// The mode of acknowledgements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AckMode {
    /// The worker writes acknowledgements and does not wait for the server. The bench checks at the
    /// end that the server has received all of them.
    Sent,
    /// The server confirms each acknowledgement.
    Confirmed,
}

pub(crate) async fn round(server: &NatsServer, ack_mode: AckMode, job: &Job) -> Round {
    let count = job.count;
    match job.work {
        Work::Task { senders } => task(server, ack_mode, senders, count).await,
        Work::Drain { .. } => drain(server, ack_mode, count).await,
        Work::Rpc { in_flight, .. } => rpc(server, in_flight, count).await,
        _ => unreachable!("it is not asked to do that"),
    }
}

async fn task(server: &NatsServer, ack_mode: AckMode, senders: usize, count: usize) -> Round {
    let mut queue = Queue::create(server).await;
    let context = queue.context.clone();
    let clock = Clock::start(server);
    let worker = queue.start_worker(server, ack_mode, count).await;
    concurrently(senders, count, move |_| {
        let context = context.clone();
        async move {
            let stored = context
                .publish(NAME, Bytes::from_static(PAYLOAD.as_bytes()))
                .await
                .expect("a task");
            black_box(stored.await.expect("the task is stored"));
        }
    })
    .await;
    queue.wait_until_done(worker).await;
    let round = clock.stop(count, Vec::new());
    queue.delete().await;
    round
}

async fn drain(server: &NatsServer, ack_mode: AckMode, count: usize) -> Round {
    let mut queue = Queue::create(server).await;
    let context = queue.context.clone();
    concurrently(512, count, move |_| {
        let context = context.clone();
        async move {
            let stored = context.publish(NAME, PAYLOAD.into()).await.expect("a task");
            stored.await.expect("the task is stored");
        }
    })
    .await;
    let clock = Clock::start(server);
    let worker = queue.start_worker(server, ack_mode, count).await;
    queue.wait_until_done(worker).await;
    let round = clock.stop(count, Vec::new());
    queue.delete().await;
    round
}

async fn rpc(server: &NatsServer, in_flight: usize, count: usize) -> Round {
    let responder = connect(server).await;
    let mut requests = responder
        .queue_subscribe(NAME, GROUP.to_owned())
        .await
        .expect("a subscription");
    responder.flush().await.expect("the subscription stands");
    let worker = tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let reply = request.reply.expect("a request has a reply subject");
            responder
                .publish(reply, request.payload)
                .await
                .expect("a reply");
        }
    });
    let client = connect(server).await;
    let ask = move |_| {
        let client = client.clone();
        async move {
            let asked = Instant::now();
            let reply = client
                .request(NAME, Bytes::from_static(PAYLOAD.as_bytes()))
                .await
                .expect("a reply");
            assert_eq!(reply.payload, PAYLOAD);
            asked.elapsed()
        }
    };
    ask(0).await;
    let clock = Clock::start(server);
    let latencies = concurrently(in_flight, count, ask).await;
    let round = clock.stop(count, latencies);
    worker.abort();
    round
}

async fn connect(server: &NatsServer) -> Client {
    async_nats::connect(server.url())
        .await
        .expect("a connection")
}

/// A stream and its one consumer.
struct Queue {
    context: jetstream::Context,
    consumer: PullConsumer,
}

impl Queue {
    async fn create(server: &NatsServer) -> Self {
        let context = jetstream::new(connect(server).await);
        let stream = context
            .create_stream(Config {
                name: STREAM.to_owned(),
                subjects: vec![NAME.to_owned()],
                retention: RetentionPolicy::WorkQueue,
                storage: StorageType::Memory,
                ..Config::default()
            })
            .await
            .expect("a stream");
        let consumer = stream
            .create_consumer(pull::Config {
                durable_name: Some(GROUP.to_owned()),
                max_ack_pending: MAX_IN_FLIGHT as i64,
                ..pull::Config::default()
            })
            .await
            .expect("a consumer");
        Self { context, consumer }
    }

    /// Starts a worker that handles and acknowledges `count` messages, over a separate connection.
    async fn start_worker(
        &self,
        server: &NatsServer,
        ack_mode: AckMode,
        count: usize,
    ) -> JoinHandle<()> {
        let client = connect(server).await;
        let consumer: PullConsumer = jetstream::new(client.clone())
            .get_consumer_from_stream(GROUP, STREAM)
            .await
            .expect("the consumer");
        let messages = consumer
            .stream()
            .max_messages_per_batch(MAX_IN_FLIGHT)
            .messages()
            .await
            .expect("messages")
            .take(count);
        tokio::spawn(async move {
            match ack_mode {
                AckMode::Sent => {
                    messages
                        .for_each(|message| async move {
                            let message = message.expect("a message");
                            black_box(&message.payload);
                            message.ack().await.expect("an ack");
                        })
                        .await;
                }
                AckMode::Confirmed => {
                    messages
                        .for_each_concurrent(MAX_IN_FLIGHT, |message| async move {
                            let message = message.expect("a message");
                            black_box(&message.payload);
                            message.double_ack().await.expect("a confirmed ack");
                        })
                        .await;
                }
            }
            // The last acknowledgements may not be written yet, and would be lost with the client.
            client
                .flush()
                .await
                .expect("the acknowledgements are written");
        })
    }

    /// Waits until the server has every acknowledgement.
    async fn wait_until_done(&mut self, worker: JoinHandle<()>) {
        worker.await.expect("the worker ends well");
        loop {
            let info = self.consumer.info().await.expect("the consumer's state");
            if info.num_pending == 0 && info.num_ack_pending == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Deletes the stream, which would also store the requests of later rounds: they are sent to
    /// its subject.
    async fn delete(self) {
        let deleted = self.context.delete_stream(STREAM).await;
        deleted.expect("the stream was there");
    }
}

/// Measures the time and the CPU time of a round, as `clock.rs` does for Redis.
struct Clock<'a> {
    server: &'a NatsServer,
    client_cpu: Duration,
    nats_cpu: Duration,
    started: Instant,
}

impl<'a> Clock<'a> {
    fn start(server: &'a NatsServer) -> Self {
        Self {
            server,
            client_cpu: process::cpu(std::process::id()),
            nats_cpu: process::cpu(server.pid()),
            started: Instant::now(),
        }
    }

    fn stop(self, count: usize, latencies: Vec<Duration>) -> Round {
        Round {
            elapsed: self.started.elapsed(),
            client_cpu: process::cpu(std::process::id()).saturating_sub(self.client_cpu),
            server_cpu: process::cpu(self.server.pid()).saturating_sub(self.nats_cpu),
            // Not reported.
            commands: Commands::new(),
            peak_kib: 0,
            reads: 0,
            count,
            latencies,
        }
    }
}
