//! Tests of tower's timeouts, retries and hedging.

use std::{
    future::Future,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
};

use campanile::{Handler, Kind, Router, RpcError};
use tower::{
    ServiceBuilder,
    hedge::{self, Hedge},
    retry::{Policy, RetryLayer},
    timeout::TimeoutLayer,
};

use super::*;

/// A retry policy with this number of retries, each after 100 ms.
#[derive(Clone)]
struct Again(u32);

impl<E> Policy<Message, Reply, E> for Again {
    type Future = Pin<Box<dyn Future<Output = ()> + Send>>;

    fn retry(&mut self, _: &mut Message, result: &mut Result<Reply, E>) -> Option<Self::Future> {
        result.as_ref().err()?;
        self.0 = self.0.checked_sub(1)?;
        Some(Box::pin(sleep(SECOND / 10)))
    }

    fn clone_request(&mut self, message: &Message) -> Option<Message> {
        Some(message.clone())
    }
}

/// A handler whose first two calls fail.
async fn moody(State(work): State<Work>, attempt: Attempt) -> Result<&'static str, RpcError> {
    work.run(attempt, Duration::ZERO).await;
    match work.calls() {
        1 | 2 => Err(RpcError::unavailable("not now")),
        _ => Ok("now"),
    }
}

async fn fails(State(work): State<Work>, attempt: Attempt) -> Result<(), BoxError> {
    work.run(attempt, Duration::ZERO).await;
    Err("no".into())
}

mod timeout {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn drops_a_handler_and_the_task_is_redelivered() {
        let work = Work::default();
        let app = Router::new()
            .task("hangs", hangs)
            .layer(TimeoutLayer::new(SECOND))
            .with_state(work.clone());
        let scene = serving(app);
        scene.enqueue(["hangs"]).await;
        let memory = scene.memory.clone();
        let counts = scene.settled().await;
        assert_eq!(work.attempts(), Vec::from_iter(1..=10));
        assert_eq!(work.most(), 1, "each call was dropped before the next one");
        assert_eq!((counts.redelivered, counts.dead), (9, 1));
        let reason = &deaths(&memory).await[0];
        assert!(reason.contains("request timed out"), "{reason}");
    }

    #[tokio::test(start_paused = true)]
    async fn answers_a_request_with_deadline() {
        let app = Router::new()
            .rpc("hangs", hangs.layer(TimeoutLayer::new(SECOND)))
            .with_state(Work::default());
        assert_eq!(code(serving(app).ask("hangs").await), RpcCode::Deadline);
    }

    #[tokio::test(start_paused = true)]
    async fn ends_a_call_as_one_that_timed_out() {
        let scene = serving(
            Router::new()
                .rpc("hangs", hangs)
                .with_state(Work::default()),
        );
        let service = ServiceBuilder::new()
            .timeout(SECOND)
            .service(scene.memory.clone());
        let start = Instant::now();
        let error = Client::new(service).request::<()>("hangs", ()).await;
        assert!(error.unwrap_err().is_timeout());
        assert!(start.elapsed() < 2 * SECOND);
    }
}

mod retry {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn in_place_is_one_delivery() {
        let work = Work::default();
        let app = Router::new()
            .rpc("moody", moody)
            .layer(RetryLayer::new(Again(2)))
            .with_state(work.clone());
        let scene = serving(app);
        assert_eq!(scene.ask("moody").await.unwrap(), "now");
        assert_eq!(work.attempts(), [1; 3]);
        assert_eq!(scene.settled().await.delivered, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn that_gives_up_leaves_the_rest_to_redelivery() {
        let work = Work::default();
        let app = Router::new()
            .task("fails", fails.layer(RetryLayer::new(Again(1))))
            .with_state(work.clone());
        let scene = serving(app);
        scene.enqueue(["fails"]).await;
        assert_eq!(scene.settled().await.dead, 1);
        let twice_each: Vec<_> = (1..=10).flat_map(|attempt| [attempt; 2]).collect();
        assert_eq!(work.attempts(), twice_each);
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_call_sends_it_again() {
        let work = Work::default();
        let scene = serving(Router::new().rpc("moody", moody).with_state(work.clone()));
        let service = ServiceBuilder::new()
            .retry(Again(2))
            .service(scene.memory.clone());
        let answer: String = Client::new(service).request("moody", ()).await.unwrap();
        assert_eq!(answer, "now");
        assert_eq!(scene.memory.counts().sent, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_task_with_a_key_sends_it_once() {
        let work = Work::default();
        let scene = serving(Router::new().task("quick", quick).with_state(work.clone()));
        let lost = Arc::new(AtomicBool::new(false));
        let loses_the_first = move |result: Result<Reply, Error>| {
            if lost.swap(true, Ordering::SeqCst) {
                return result;
            }
            Err(Error::unknown_outcome("the answer was lost"))
        };
        let service = ServiceBuilder::new()
            .retry(Again(1))
            .map_result(loses_the_first)
            .service(scene.memory.clone());
        let call = Client::new(service).enqueue("quick", ());
        let receipt = call.idempotency_key("order 7").await.unwrap();
        assert!(receipt.id().is_some());
        scene.settled().await;
        assert_eq!(work.calls(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn around_a_timeout_gives_each_try_its_time_and_within_it_all_share_one() {
        let work = Work::default();
        let each = ServiceBuilder::new().retry(Again(2)).timeout(SECOND);
        let all = ServiceBuilder::new().timeout(SECOND).retry(Again(2));
        let app = Router::new()
            .rpc("each", hangs.layer(each))
            .rpc("all", hangs.layer(all))
            .with_state(work.clone());
        let scene = serving(app);
        for (name, calls, most) in [("each", 3, 3200), ("all", 1, 1000)] {
            let (before, start) = (work.calls(), Instant::now());
            assert_eq!(code(scene.ask(name).await), RpcCode::Deadline);
            assert_eq!(work.calls() - before, calls, "{name}");
            let most = Duration::from_millis(most);
            let took = start.elapsed();
            assert!(took >= most && took < most + SECOND / 10, "{took:?}");
        }
    }
}

/// tower's `Hedge` is not `Clone`, so a buffer is around it.
mod hedging {
    use super::*;

    /// A hedge policy that sends only requests twice.
    #[derive(Clone)]
    struct Requests;

    impl hedge::Policy<Message> for Requests {
        fn clone_request(&self, message: &Message) -> Option<Message> {
            (message.kind() == Kind::Rpc).then(|| message.clone())
        }

        fn can_retry(&self, _: &Message) -> bool {
            true
        }
    }

    /// The first call takes ten seconds.
    async fn warms_up(State(work): State<Work>, attempt: Attempt) -> &'static str {
        let first = work.calls() == 0;
        let time = if first { 10 * SECOND } else { Duration::ZERO };
        work.run(attempt, time).await;
        "warm"
    }

    /// Sends a second request after a tenth of a second.
    fn hedge<S>(inner: S) -> Hedge<S, Requests>
    where
        S: tower::Service<Message, Error: Into<BoxError>> + Clone,
    {
        Hedge::new_with_mock_latencies(inner, Requests, 1, 0.9, 60 * SECOND, &[100])
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_request_is_sent_a_second_time_and_the_first_answer_counts() {
        let work = Work::default();
        let scene = serving(Router::new().rpc("a", warms_up).with_state(work.clone()));
        let service = ServiceBuilder::new()
            .buffer(1)
            .layer_fn(hedge)
            .service(scene.memory.clone());
        let start = Instant::now();
        let answer: String = Client::new(service).request("a", ()).await.unwrap();
        assert_eq!(answer, "warm");
        assert!(start.elapsed() < SECOND);
        assert_eq!(scene.memory.counts().sent, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn around_a_handler_runs_it_twice() {
        let work = Work::default();
        let app = Router::new()
            .rpc("a", warms_up)
            .layer(ServiceBuilder::new().buffer(1).layer_fn(hedge))
            .with_state(work.clone());
        let scene = serving(app);
        assert_eq!(scene.ask("a").await.unwrap(), "warm");
        assert_eq!((work.calls(), scene.memory.counts().delivered), (2, 1));
    }
}
