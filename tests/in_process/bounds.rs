//! The bound on what waits on a stream, in memory.

use std::time::Duration;

use campanile::{
    Client, Error, Reply, Router, serve,
    transport::{
        Interest, Settings, Source, Transport, Verdict, WhenFull,
        memory::{Memory, MemorySource},
    },
};
use tokio::time::Instant;

use crate::panics::panic_text;

const SECOND: Duration = Duration::from_secs(1);

async fn open(memory: &Memory) -> MemorySource {
    memory.clone().open(Interest::stream()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn senders_on_several_threads_never_exceed_the_bound() {
    let memory = Memory::new().max_waiting(100);
    let _worker = open(&memory).await;
    let senders = (0..8).map(|_| {
        let client = Client::new(memory.clone());
        tokio::spawn(async move {
            let mut sent = 0;
            while client.enqueue("n", "p").await.is_ok() {
                sent += 1;
            }
            sent
        })
    });
    let mut sent = 0;
    for sender in senders.collect::<Vec<_>>() {
        sent += sender.await.unwrap();
    }
    assert_eq!(sent, 100);
}

#[tokio::test(start_paused = true)]
async fn the_wait_that_an_error_names_follows_the_rate_of_the_workers() {
    let memory = Memory::new();
    let mut worker = open(&memory).await;
    let client = Client::new(memory.max_waiting(100));
    let refused = async || {
        loop {
            if let Err(error) = client.enqueue("n", "p").await {
                break error;
            }
        }
    };
    assert_eq!(refused().await.retry_after(), Some(5 * SECOND));
    for _ in 0..10 {
        tokio::time::sleep(SECOND).await;
        for delivery in worker.next(2).await.unwrap() {
            let done = Verdict::Done(Ok(Reply::default()));
            delivery.settle(done).await.unwrap();
        }
        refused().await;
    }
    // About two messages a second are taken, and ten are a tenth of the bound.
    let wait = refused().await.retry_after().unwrap();
    assert!((4 * SECOND..=7 * SECOND).contains(&wait), "{wait:?}");
    let text = refused().await.to_string();
    assert!(
        text.contains("`app_stream` is full") && text.contains("`app_group`"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_handler_meets_a_full_stream_is_delivered_again_uncounted() {
    let full = Memory::new().stream("full").max_waiting(1);
    let mut slow = open(&full).await;
    let sender = Client::new(full);
    sender.enqueue("first", "").await.unwrap();
    let app: Router = Router::new().task("work", {
        let sender = sender.clone();
        async move |attempt: campanile::Attempt| {
            assert_eq!(attempt.0, 1);
            sender.enqueue("second", "").await?;
            Ok::<_, Error>(())
        }
    });
    let memory = Memory::new();
    let worker = tokio::spawn(serve(memory.clone(), app).into_future());
    Client::new(memory.clone())
        .enqueue("work", "")
        .await
        .unwrap();
    tokio::time::sleep(60 * SECOND).await;
    assert!(memory.counts().uncounted > 1);
    drop(slow.next(1).await.unwrap());
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!((memory.counts().done, memory.counts().dead), (1, 0));
    worker.abort();
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_room_ends_at_its_deadline() {
    let memory = Memory::new().max_waiting(1);
    let _worker = open(&memory).await;
    let client = Client::new(memory.when_full(WhenFull::Wait(3600 * SECOND)));
    client.enqueue("n", "p").await.unwrap();
    let start = Instant::now();
    let error = client
        .request::<String>("ask", "")
        .timeout(7 * SECOND)
        .await;
    let error = error.unwrap_err();
    assert!(error.is_overloaded() || error.is_timeout(), "{error}");
    assert_eq!(start.elapsed().as_secs(), 7);
}

#[test]
fn a_bound_of_nothing_panics_where_it_is_set() {
    let memory = Memory::new;
    assert_eq!(
        panic_text(|| memory().max_waiting(0)),
        "max_waiting must be at least 1"
    );
    assert_eq!(
        panic_text(|| memory().max_waiting_age(Duration::ZERO)),
        "max_waiting_age must be longer than zero"
    );
    assert_eq!(
        panic_text(|| memory().when_full(WhenFull::Wait(Duration::ZERO))),
        "a wait for room takes time; leave it out to fail at once"
    );
    assert_eq!(Settings::default().when_full, WhenFull::Fail);
}
