//! Requests with bare redis-rs: a stream for the requests, one channel for all replies.

use std::{
    borrow::Cow,
    collections::HashMap,
    hint::black_box,
    sync::{Arc, Mutex},
    time::Instant,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures_util::{StreamExt, future::join_all};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{
    clock::Clock,
    open::{self, Arrivals},
    probe::Probe,
    raw_stream::{EntryWriter, Reader, subscribe},
    workload::{Job, Round, concurrently},
};

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    correlation_id: Cow<'a, str>,
    body: Cow<'a, str>,
    error: Cow<'a, str>,
}

/// The requests without a reply, by their correlation ids.
type PendingRequests = Arc<Mutex<HashMap<Uuid, oneshot::Sender<Vec<u8>>>>>;

pub(crate) async fn round(probe: &Probe, job: &Job, in_flight: usize) -> Round {
    let reply_to = format!("reply:{}", Uuid::new_v4());
    let (waiting, count) = (PendingRequests::default(), job.count);
    // One subscription receives the replies to all requests.
    let subscription = subscribe(probe, &reply_to).await;
    let replies = tokio::spawn({
        let waiting = waiting.clone();
        async move {
            let mut replies = subscription.into_on_message().take(count);
            while let Some(reply) = replies.next().await {
                resolve(&waiting, reply.get_payload_bytes());
            }
        }
    });

    let caller = Caller {
        writer: EntryWriter::connect(probe, &job.setup).await,
        waiting,
        reply_to: reply_to.into(),
    };
    let reader = Reader::connect(probe.address(), &job.setup).await;
    let clock = Clock::start(probe, &[]).await;
    let worker = tokio::spawn(answer_requests(reader, count));
    // With a rate, latencies are measured from the times at which requests are due. Without one,
    // they are measured from the sends.
    let latencies = match job.rate {
        Some(rate) => {
            let arrivals = Arrivals::new(count);
            let replied = arrivals.clone();
            open::send_paced(rate, &arrivals, move |message| {
                let (caller, replied) = (caller.clone(), replied.clone());
                async move {
                    caller.ask(message).await;
                    replied.mark(message);
                }
            })
            .await
        }
        None => {
            concurrently(in_flight, count, move |message| {
                let caller = caller.clone();
                async move {
                    let asked = Instant::now();
                    caller.ask(message).await;
                    asked.elapsed()
                }
            })
            .await
        }
    };
    worker.await.expect("the worker ends well");
    let round = clock.stop(count, latencies).await;
    replies.await.expect("the subscription ends well");
    round
}

#[derive(Clone)]
struct Caller {
    writer: EntryWriter,
    waiting: PendingRequests,
    reply_to: Arc<str>,
}

impl Caller {
    async fn ask(mut self, message: usize) {
        let payload: Bytes = self.writer.payload();
        let id = Uuid::new_v4();
        let (sender, receiver) = oneshot::channel();
        self.waiting.lock().unwrap().insert(id, sender);
        let mut add = self.writer.command("rpc", message, &payload);
        add.arg("reply_to").arg(&*self.reply_to);
        add.arg("correlation_id")
            .arg(id.hyphenated().encode_lower(&mut Uuid::encode_buffer()) as &str);
        black_box(self.writer.run(&add).await);
        assert_eq!(receiver.await.expect("a reply"), payload);
    }
}

/// Passes a reply to the request that waits for it.
fn resolve(waiting: &PendingRequests, reply: &[u8]) {
    let envelope: Envelope<'_> = serde_json::from_slice(reply).expect("the envelope");
    assert!(envelope.error.is_empty());
    let body = BASE64_STANDARD
        .decode(envelope.body.as_bytes())
        .expect("base64");
    let id = Uuid::try_parse(&envelope.correlation_id).expect("our id");
    let sender = waiting
        .lock()
        .unwrap()
        .remove(&id)
        .expect("a request waits for this reply");
    let _ = sender.send(body);
}

/// Reads and answers `count` requests with their own payloads.
async fn answer_requests(mut reader: Reader, count: usize) {
    let mut done = 0;
    while done < count {
        let read = reader.read().await;
        if reader.setup.handlers_wait {
            join_all(read.iter().map(|_| reader.setup.wait())).await;
        }
        let mut pipeline = redis::pipe();
        for entry in &read {
            let envelope = Envelope {
                correlation_id: String::from_utf8_lossy(entry.field("correlation_id")),
                body: BASE64_STANDARD.encode(entry.payload()).into(),
                error: "".into(),
            };
            pipeline
                .publish(
                    entry.field("reply_to"),
                    serde_json::to_vec(&envelope).expect("the envelope"),
                )
                .ignore();
        }
        done += reader.acknowledge(&read, pipeline).await;
    }
}
