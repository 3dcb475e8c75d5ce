//! Tests of the clock of the test kit: retries, delays and expiry.

use std::time::Duration;

use campanile::{
    Attempt, Failure, Router,
    testing::{Harness, MessageEvent, anything, task},
    transport::{Expired, memory::Memory},
};
use tokio::time::Instant;

use super::{HOUR, failure_in};

/// Fails until its third attempt.
fn moody() -> Router {
    Router::new().task("moody", async |Attempt(attempt): Attempt| match attempt {
        1 => Err(Failure::redeliver_after(HOUR)),
        2 => Err(Failure::redeliver_after(2 * HOUR)),
        _ => Ok(()),
    })
}

#[tokio::test(start_paused = true)]
async fn time_goes_on_to_the_next_retry_and_one_knows_when_there_is_none() {
    let harness = Harness::start(moody()).await;
    harness.client().enqueue("moody", ()).await.unwrap();
    assert_eq!(harness.next_due(), None, "nothing waits yet");
    assert_eq!(harness.advance_to_next().await, Some(HOUR));
    harness.assert_redelivered(task("moody").attempt(2).once());
    assert_eq!(harness.next_due(), Some(2 * HOUR));
    harness.assert_acknowledged(task("moody").never());
    assert_eq!(harness.advance_to_next().await, Some(2 * HOUR));
    harness.assert_acknowledged(task("moody").attempt(3).once());
    assert_eq!(harness.advance_to_next().await, None);
    assert_eq!(harness.next_due(), None);
}

#[tokio::test]
async fn in_real_time_it_takes_as_long_as_it_says() {
    let app: Router = Router::new().task("moody", async |attempt: Attempt| match attempt {
        Attempt(1) => Err(Failure::redeliver_after(Duration::from_millis(30))),
        _ => Ok(()),
    });
    let harness = Harness::start(app).await;
    let begun = std::time::Instant::now();
    harness.client().enqueue("moody", ()).await.unwrap();
    harness.finished().await;
    assert!(begun.elapsed() >= Duration::from_millis(30));
    harness.assert_acknowledged(task("moody").attempt(2).once());
}

#[tokio::test(start_paused = true)]
async fn a_message_goes_all_the_way_to_the_dead_letters() {
    let app: Router = Router::new().task("hopeless", async || Err::<(), _>("no disk"));
    let mut harness = Harness::over(Memory::new().max_deliveries(3));
    harness.serve(app).await;
    harness.client().enqueue("hopeless", ()).await.unwrap();
    harness.finished().await;
    harness.assert_redelivered(task("hopeless").because("no disk").times(2));
    harness.assert_dead_lettered(task("hopeless").attempt(3).because("no disk").once());
    let dead = harness.memory().dead_letters().count().await.unwrap();
    assert_eq!(dead, 1);
}

#[tokio::test(start_paused = true)]
async fn a_delayed_task_comes_when_it_is_due() {
    let app: Router = Router::new().task("later", async || {});
    let harness = Harness::start(app).await;
    let client = harness.client();
    client.enqueue("later", ()).delay(HOUR).await.unwrap();
    let sent = harness.assert_sent(task("later").once());
    assert_eq!(sent[0].happened, MessageEvent::Sent { delay: HOUR });
    harness.advance(HOUR / 2).await;
    harness.assert_acknowledged(task("later").never());
    assert_eq!(harness.next_due(), Some(HOUR / 2));
    harness.advance_to_next().await;
    let done = harness.assert_acknowledged(task("later").once());
    assert_eq!(
        (done[0].at, done[0].kind()),
        (HOUR, Some(campanile::Kind::Task))
    );
}

#[tokio::test(start_paused = true)]
async fn expired_and_discarded_messages_are_distinguished() {
    let app: Router = Router::new()
        .task("slow", async || tokio::time::sleep(HOUR).await)
        .task("unwanted", async || Err::<(), _>(Failure::discard()))
        .task("late", async || {});
    let memory = Memory::new().max_in_flight(1);
    let mut harness = Harness::over(memory).patience(2 * HOUR);
    harness.serve(app).await;
    let client = harness.client();
    client.enqueue("unwanted", ()).await.unwrap();
    client.enqueue("slow", ()).await.unwrap();
    let late = client.enqueue("late", ());
    late.expires_after(Duration::from_secs(1)).await.unwrap();
    harness.settled().await;
    harness.assert_expired(anything().once());
    harness.assert_expired(task("late").once());
    harness.assert_discarded(anything().once());
    harness.assert_discarded(task("unwanted").once());
}

#[tokio::test(start_paused = true)]
async fn a_message_that_expires_into_a_dead_letter_is_recorded_as_one() {
    let mut harness = Harness::over(Memory::new().expired(Expired::DeadLetter));
    let call = harness.client().enqueue("late", ());
    call.expires_after(Duration::from_secs(1)).await.unwrap();
    tokio::time::sleep(HOUR).await;
    let app: Router = Router::new().task("late", async || {});
    harness.serve(app).await;
    harness.settled().await;
    harness.assert_dead_lettered(task("late").because("not started in time").once());
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_a_time_is_no_wait_for_a_handler() {
    let app: Router = Router::new().task("stuck", async || std::future::pending::<()>().await);
    let harness = Harness::start(app).await;
    harness.client().enqueue("stuck", ()).await.unwrap();
    let begun = Instant::now();
    let text = failure_in(harness.advance_to_next()).await;
    assert!(
        text.starts_with("not everything was handled within 60.000s"),
        "{text}"
    );
    assert_eq!(begun.elapsed(), Duration::from_secs(60));
}
