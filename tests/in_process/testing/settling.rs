//! Tests of the conditions under which all messages count as settled.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use campanile::{
    Attempt, BoxError, Client, Failure, Json, Router, State,
    testing::{Harness, event, rpc, task},
    transport::memory::Memory,
};
use tokio::{sync::mpsc, time::Instant};

use super::{HOUR, failure_in, placeless};

type Own = State<Client<Memory>>;

/// A harness with an application that has a client of the same transport.
async fn with_client(app: Router<Client<Memory>>) -> Harness {
    let memory = Memory::new();
    let mut harness = Harness::over(memory.clone());
    harness.serve(app.with_state(Client::new(memory))).await;
    harness
}

/// A task that causes a task that publishes an event whose handler makes two requests.
fn chain() -> Router<Client<Memory>> {
    Router::new()
        .task("first", async |State(client): Own| {
            client.enqueue("second", "2").await.map(drop)
        })
        .task("second", async |State(client): Own| {
            client.publish("third", "3").await
        })
        .event("third", async |State(client): Own| {
            let Json(n): Json<u32> = client.request("fourth", Json(4)).await?;
            let Json(n): Json<u32> = client.request_fast("fourth", Json(n)).await?;
            client.enqueue("last", Json(n)).await.map(drop)
        })
        .rpc("fourth", async |Json(n): Json<u32>| Json(n + 1))
        .task("last", async || {})
}

#[tokio::test(start_paused = true)]
async fn what_a_message_causes_is_handled_before_the_wait_ends_and_no_time_passes() {
    let harness = with_client(chain()).await;
    let begun = Instant::now();
    harness.client().enqueue("first", ()).await.unwrap();
    harness.settled().await;
    harness.assert_acknowledged(task("first").once());
    harness.assert_acknowledged(task("second").once());
    harness.assert_acknowledged(event("third").once());
    harness.assert_acknowledged(rpc("fourth").times(2));
    harness.assert_acknowledged(task("last").json(6).once());
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

/// On several threads there are moments in which no message seems to be left. They must not count.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_wait_ends_no_sooner_on_many_threads_in_real_time() {
    let harness = with_client(chain()).await;
    for round in 1..=200 {
        harness.client().enqueue("first", ()).await.unwrap();
        harness.settled().await;
        harness.assert_acknowledged(task("last").times(round));
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_that_a_handler_spawned_counts_as_far_as_it_can_run_at_once() {
    let app = Router::new()
        .task("spawns", async |State(client): Own| {
            let (wake, mut woken) = mpsc::channel(1);
            tokio::spawn(async move {
                woken.recv().await;
                client.enqueue("spawned", ()).await
            });
            tokio::spawn(async move { wake.send(()).await });
        })
        .task("spawned", async || {});
    let harness = with_client(app).await;
    harness.client().enqueue("spawns", ()).await.unwrap();
    harness.settled().await;
    harness.assert_acknowledged(task("spawned").once());
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_sleeps_is_waited_for_and_the_clock_goes_on_as_far_as_that_takes() {
    let app: Router = Router::new().task("slow", async || tokio::time::sleep(HOUR).await);
    let mut harness = Harness::new().patience(2 * HOUR);
    harness.serve(app).await;
    let begun = Instant::now();
    harness.client().enqueue("slow", ()).await.unwrap();
    harness.settled().await;
    harness.assert_acknowledged(task("slow").once());
    assert_eq!(begun.elapsed(), HOUR);
}

#[tokio::test(start_paused = true)]
async fn delayed_messages_are_not_waited_for() {
    let app: Router = Router::new().task("later", async || {
        Err::<(), _>(Failure::redeliver_after(HOUR))
    });
    let harness = Harness::start(app).await;
    let begun = Instant::now();
    let client = harness.client();
    client.enqueue("later", ()).await.unwrap();
    client.enqueue("delayed", ()).delay(HOUR).await.unwrap();
    harness.settled().await;
    harness.assert_redelivered(task("later").once());
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn messages_without_a_worker_are_not_waited_for() {
    let app: Router = Router::new().task("a", async || {});
    let harness = Harness::start(app).await;
    let elsewhere = Client::new(harness.memory().stream("elsewhere"));
    elsewhere.enqueue("a", ()).await.unwrap();
    elsewhere.enqueue("b", ()).delay(HOUR).await.unwrap();
    harness.settled().await;
    assert_eq!(harness.advance_to_next().await, None);
    harness.assert_sent(task("a").stream("elsewhere").once());
    harness.assert_acknowledged(task("a").never());
}

#[tokio::test(start_paused = true)]
async fn messages_that_wait_for_a_permit_are_waited_for() {
    let most = Arc::new(AtomicUsize::new(0));
    let running = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&most);
    let app: Router = Router::new()
        .task("work", async move || {
            seen.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(1)).await;
            running.fetch_sub(1, Ordering::SeqCst);
        })
        .layer(tower::limit::ConcurrencyLimitLayer::new(2));
    let harness = Harness::start(app).await;
    for receipt in harness.client().enqueue_all("work", [(); 9]).await {
        receipt.unwrap();
    }
    harness.settled().await;
    harness.assert_acknowledged(task("work").times(9));
    assert_eq!(most.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_never_ends_fails_the_wait_which_lists_what_still_runs() {
    let app: Router = Router::new()
        .task("quick", async || {})
        .task("stuck", async |Attempt(attempt): Attempt| {
            if attempt == 1 {
                return Err(Failure::redeliver_after(Duration::ZERO));
            }
            pending::<Result<(), _>>().await
        })
        .rpc("asks", async |_: String| pending::<()>().await)
        .event("news", async || pending::<()>().await);
    let harness = Harness::start(app).await;
    let client = harness.client();
    client.enqueue("quick", ()).await.unwrap();
    client.enqueue("stuck", Json([1, 2])).await.unwrap();
    client.publish("news", "late").await.unwrap();
    let asking = tokio::spawn({
        let client = client.clone();
        async move { client.request::<()>("asks", "why?").timeout(HOUR).await }
    });
    let begun = Instant::now();
    let (line, text) = (line!(), failure_in(harness.settled()).await);
    assert_eq!(begun.elapsed(), Duration::from_secs(60));
    assert!(
        text.contains(&format!("({}:{line}:", file!()))
            || text.contains(&format!("{}:{line}:", file!())),
        "{text}"
    );
    let (head, log) = text.split_once("\n\nwhat has happened:\n").unwrap();
    let mut lines: Vec<_> = head.lines().map(placeless).collect();
    lines[3..].sort();
    assert_eq!(
        lines,
        [
            "not everything was handled within 60.000s (waited for at HERE)",
            "",
            "still running:",
            "  event `news` late, attempt 1, for 60.000s",
            "  rpc `asks` why?, attempt 1, for 60.000s",
            "  task `stuck` [1,2], attempt 2, for 60.000s",
        ]
    );
    assert!(
        log.contains("  0.000s task `quick`: acknowledged\n"),
        "{log}"
    );
    asking.abort();
}

#[tokio::test(start_paused = true)]
async fn messages_that_no_worker_takes_fail_the_wait_which_says_how_many_are_left() {
    let app: Router = Router::new().task("stuck", async || pending::<()>().await);
    let mut harness =
        Harness::over(Memory::new().max_in_flight(1)).patience(Duration::from_secs(5));
    harness.serve(app).await;
    for _ in 0..3 {
        harness.client().enqueue("stuck", ()).await.unwrap();
    }
    let text = placeless(&failure_in(harness.settled()).await);
    let expected = "not everything was handled within 5.000s (waited for at HERE)

still running:
  task `stuck`, attempt 1, for 5.000s

still in line:
  2 for group `app_group` of stream `app_stream`

what has happened:
  0.000s task `stuck`: sent
  0.000s task `stuck`: sent
  0.000s task `stuck`: sent";
    assert_eq!(text, expected);
}

#[tokio::test(start_paused = true)]
async fn messages_that_cause_one_another_for_ever_fail_the_wait() {
    let app = Router::new().task("again", async |State(client): Own| {
        client.enqueue("again", ()).await.map(drop)
    });
    let memory = Memory::new();
    let mut harness = Harness::over(memory.clone()).max_deliveries(500);
    harness.serve(app.with_state(Client::new(memory))).await;
    harness.client().enqueue("again", ()).await.unwrap();
    let text = placeless(&failure_in(harness.settled()).await);
    let expected =
        "there were more than 500 deliveries, and there is no end to it (waited for at HERE)\n";
    assert!(text.starts_with(expected), "{text}");
    assert!(
        text.contains("more before that"),
        "not all are shown: {text}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_comes_back_for_ever_fails_the_wait_for_the_end() {
    let app: Router = Router::new().task("again", async || {
        Err::<(), _>(Failure::redeliver_after(HOUR).uncounted())
    });
    let mut harness = Harness::new().max_deliveries(50);
    harness.serve(app).await;
    harness.client().enqueue("again", ()).await.unwrap();
    let text = failure_in(harness.finished()).await;
    assert!(
        text.starts_with("there were more than 50 deliveries"),
        "{text}"
    );
    harness.assert_redelivered(task("again").attempt(1).because("redelivered"));
    assert!(
        text.contains("redelivered after 3600.000s, not counted"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_application_that_ends_by_itself_fails_the_wait() {
    #[derive(Clone)]
    struct Broken(Arc<AtomicUsize>);
    impl tower::Service<campanile::Message> for Broken {
        type Response = campanile::Reply;
        type Error = BoxError;
        type Future = std::future::Ready<Result<campanile::Reply, BoxError>>;
        fn poll_ready(
            &mut self,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Result<(), BoxError>> {
            std::task::Poll::Ready(match self.0.load(Ordering::SeqCst) {
                0 => Ok(()),
                _ => Err("the disk is full".into()),
            })
        }
        fn call(&mut self, _: campanile::Message) -> Self::Future {
            self.0.fetch_add(1, Ordering::SeqCst);
            std::future::ready(Ok(campanile::Reply::default()))
        }
    }
    let mut harness = Harness::start(campanile::WithInterest::stream(Broken(Arc::default()))).await;
    harness.client().enqueue("a", ()).await.unwrap();
    tokio::task::yield_now().await;
    harness.client().enqueue("b", ()).await.unwrap();
    let text = placeless(&failure_in(harness.settled()).await);
    let expected = "the application that serves group `app_group` of stream `app_stream` has ended: \
                    the service is broken and cannot serve: the disk is full (waited for at HERE)\n";
    assert!(text.starts_with(expected), "{text}");
    let text = failure_in(harness.shutdown()).await;
    assert!(
        text.contains("was not graceful: the application that serves"),
        "{text}"
    );
}
