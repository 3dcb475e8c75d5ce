//! Tests of the limits of attempts, and of the messages that a worker gives up.

use std::{future::pending, sync::Arc, time::Duration};

use campanile::{
    Attempt, BoxError, Client, Error, Failure, Json, Router, RpcError, serve,
    serve::GivenUp,
    transport::{Backoff, DeadLetter, Expired, Page, memory::Memory},
};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, sleep},
};
use tower::timeout::error::Elapsed;

use crate::logs::Logs;

const SECOND: Duration = Duration::from_secs(1);

fn memory() -> Memory {
    Memory::new().backoff(Backoff::exponential(SECOND, SECOND).jitter(0.0))
}

/// Serves an application, and returns what it gives up.
fn worker(memory: &Memory, app: Router) -> mpsc::UnboundedReceiver<GivenUp> {
    let (sender, given_up) = mpsc::unbounded_channel();
    let serving = serve(memory.clone(), app).on_give_up(move |it| drop(sender.send(it)));
    tokio::spawn(serving.into_future());
    given_up
}

/// Waits for a dead letter.
async fn dead(memory: &Memory) -> DeadLetter {
    let letters = memory.dead_letters();
    loop {
        let mut page = letters.list(Page::first(1)).await.unwrap();
        match page.letters.pop() {
            Some(letter) => return letter,
            None => sleep(SECOND / 10).await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_attempt_ends_after_its_own_time_limit_and_the_last_one_says_so() {
    let memory = memory();
    let (sender, mut attempts) = mpsc::unbounded_channel();
    let app = Router::new().task("a", async move |attempt: Attempt| {
        sender.send((attempt.0, Instant::now())).unwrap();
        pending::<()>().await;
    });
    let mut given_up = worker(&memory, app);
    let call = Client::new(memory.clone()).enqueue("a", "7");
    let call = call.attempt_timeout(5 * SECOND).max_attempts(2);
    call.await.unwrap();
    let (first, start) = attempts.recv().await.unwrap();
    let (second, again) = attempts.recv().await.unwrap();
    assert_eq!((first, second), (1, 2));
    // The limit, and then the back-off.
    let waited = again - start;
    assert!(waited >= 6 * SECOND && waited < 7 * SECOND, "{waited:?}");
    let reason = "given up by the worker after attempt 2 of 2: request timed out";
    let letter = dead(&memory).await;
    assert_eq!((letter.attempts, &*letter.reason), (2, reason));
    let given_up = given_up.recv().await.unwrap();
    assert_eq!(given_up.message.payload(), "7");
    assert_eq!(given_up.message.parts().attempt, Attempt(2));
    assert_eq!(given_up.reason, reason);
    assert!(given_up.error.is_some_and(|error| error.is::<Elapsed>()));
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_a_permit_of_a_layer_is_not_part_of_an_attempt() {
    let memory = memory();
    let permits = Arc::new(Semaphore::new(1));
    let held = permits.clone().acquire_owned().await.unwrap();
    let limit = tower::limit::GlobalConcurrencyLimitLayer::with_semaphore(permits);
    let app = Router::new()
        .task("a", async || sleep(SECOND).await)
        .layer(limit);
    worker(&memory, app);
    let call = Client::new(memory.clone()).enqueue("a", "");
    call.attempt_timeout(2 * SECOND).await.unwrap();
    sleep(60 * SECOND).await;
    drop(held);
    sleep(2 * SECOND).await;
    assert_eq!((memory.counts().done, memory.counts().redelivered), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_ends_within_its_time_limit_is_done() {
    let memory = memory();
    let app = Router::new().task("a", async || sleep(SECOND).await);
    let mut given_up = worker(&memory, app);
    let call = Client::new(memory.clone()).enqueue("a", "");
    call.attempt_timeout(2 * SECOND).await.unwrap();
    sleep(5 * SECOND).await;
    assert_eq!(memory.counts().done, 1);
    assert!(given_up.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn every_message_that_is_given_up_is_reported_once_with_who_decided() {
    let memory = memory().max_deliveries(2).expired(Expired::DeadLetter);
    let app = Router::new()
        .task("failed", async || Err::<(), BoxError>("disk full".into()))
        .task("panicked", async || panic!("a bug") as ())
        .task("permanent", async |Json(_): Json<u32>| {})
        .task("decided", async || {
            Err::<(), _>(Failure::dead_letter().because("no field"))
        })
        .task("discarded", async || Err::<(), _>(Failure::discard()))
        .task("done", async |attempt: Attempt| match attempt.0 {
            1 => Err(BoxError::from("the first time")),
            _ => Ok(()),
        })
        .rpc("asked", async || Err::<(), _>(RpcError::not_found("user")))
        .event("news", async || {
            Err::<(), BoxError>(Failure::dead_letter().into())
        });
    let mut given_up = worker(&memory, app);
    let client = Client::new(memory.clone());
    for name in [
        "failed",
        "panicked",
        "permanent",
        "decided",
        "discarded",
        "done",
    ] {
        client.enqueue(name, "x").await.unwrap();
    }
    client.request::<()>("asked", "").await.unwrap_err();
    client.publish("news", "").await.unwrap();
    sleep(10 * SECOND).await;
    let mut seen = Vec::new();
    while let Ok(GivenUp {
        message,
        reason,
        error,
        ..
    }) = given_up.try_recv()
    {
        seen.push((message.name().to_string(), reason, error.is_some()));
    }
    seen.sort();
    let expected = [
        ("decided", "the delivery failed for good: no field", true),
        (
            "failed",
            "given up by the worker after attempt 2 of 2: disk full",
            true,
        ),
        (
            "panicked",
            "given up by the worker after attempt 2 of 2: the handler panicked: a bug",
            false,
        ),
        ("permanent", "given up by the worker as permanent: ", true),
    ];
    assert_eq!(seen.len(), expected.len(), "{seen:?}");
    for ((name, reason, has_error), expected) in seen.iter().zip(expected) {
        assert_eq!((&**name, *has_error), (expected.0, expected.2));
        assert!(reason.starts_with(expected.1), "{reason}");
    }
    assert_eq!(memory.dead_letters().count().await.unwrap(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_expires_is_given_up_without_an_error() {
    let memory = memory().expired(Expired::DeadLetter);
    let call = Client::new(memory.clone()).enqueue("a", "");
    call.expires_after(SECOND).await.unwrap();
    sleep(2 * SECOND).await;
    let mut given_up = worker(&memory, Router::new().task("a", async || {}));
    let given_up = given_up.recv().await.unwrap();
    assert!(given_up.error.is_none(), "{given_up:?}");
    assert_eq!(dead(&memory).await.reason, given_up.reason);
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_function_for_given_up_messages_is_logged_and_loses_no_dead_letter() {
    let logs = Logs::start();
    let memory = memory();
    let app = Router::new().task("a", async || Err::<(), _>(Failure::dead_letter()));
    let serving = serve(memory.clone(), app).on_give_up(|_| panic!("a bug in the hook"));
    tokio::spawn(serving.into_future());
    Client::new(memory.clone()).enqueue("a", "").await.unwrap();
    assert_eq!(dead(&memory).await.attempts, 1);
    let lines = logs.lines(&["ERROR"]);
    assert!(
        lines.iter().any(|line| line.contains("a bug in the hook")),
        "{lines:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_is_replayed_with_the_limits_of_its_task() -> Result<(), Error> {
    let memory = memory();
    let app = Router::new().task("a", async || Err::<(), BoxError>("disk full".into()));
    let mut given_up = worker(&memory, app);
    Client::new(memory.clone())
        .enqueue("a", "")
        .max_attempts(3)
        .await?;
    for _ in 0..2 {
        let parts = given_up.recv().await.unwrap().message.into_parts().0;
        assert_eq!((parts.attempt, parts.max_attempts), (Attempt(3), Some(3)));
        dead(&memory).await;
        let all = campanile::transport::Selection::All;
        assert_eq!(memory.dead_letters().replay(all).await?, 1);
    }
    Ok(())
}
