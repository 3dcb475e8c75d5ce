//! Tests of tower's limits of concurrency and rate, and of messages above a limit.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll},
};

use campanile::{Router, error::find};
use futures_util::future::join_all;
use tower::{
    Service, ServiceBuilder,
    buffer::{BufferLayer, error::Closed, error::ServiceError},
    layer::layer_fn,
    limit::{ConcurrencyLimitLayer, GlobalConcurrencyLimitLayer},
    load_shed::error::Overloaded,
};

use super::*;

mod concurrency {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn is_limited_over_all_deliveries() {
        let work = Work::default();
        let app = Router::new()
            .task("a", slow)
            .task("b", slow)
            .layer(ConcurrencyLimitLayer::new(2))
            .with_state(work.clone());
        let scene = serving(app);
        scene.enqueue(["a", "b"].repeat(5)).await;
        assert_eq!(scene.settled().await.done, 10);
        assert_eq!(work.most(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn is_limited_over_all_calls_of_a_client() {
        let work = Work::default();
        let scene = serving(Router::new().rpc("slow", slow).with_state(work.clone()));
        let service = ServiceBuilder::new()
            .concurrency_limit(2)
            .service(scene.memory.clone());
        let client = Client::new(service);
        let calls = (0..10).map(|_| client.request::<()>("slow", ()).into_future());
        assert!(join_all(calls).await.iter().all(Result::is_ok));
        assert_eq!(work.most(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn is_limited_over_several_workers_by_a_global_layer() {
        let work = Work::default();
        let limit = GlobalConcurrencyLimitLayer::new(2);
        let app = || {
            let router = Router::new().task("slow", slow).layer(limit.clone());
            router.with_state(work.clone())
        };
        let (one, other) = (serving(app()), serving(app()));
        one.enqueue(["slow"; 5]).await;
        other.enqueue(["slow"; 5]).await;
        assert_eq!(one.settled().await.done + other.settled().await.done, 10);
        assert_eq!(work.most(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn is_limited_over_several_clients_by_a_global_layer() {
        let work = Work::default();
        let scene = serving(Router::new().rpc("slow", slow).with_state(work.clone()));
        let limit = ServiceBuilder::new().layer(GlobalConcurrencyLimitLayer::new(2));
        let clients = ["one", "other"].map(|_| Client::new(limit.service(scene.memory.clone())));
        let calls = (0..10).map(|n| clients[n % 2].request::<()>("slow", ()).into_future());
        assert!(join_all(calls).await.iter().all(Result::is_ok));
        assert_eq!(work.most(), 2);
    }
}

mod shedding {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn redelivers_a_task_and_is_no_attempt() {
        let work = Work::default();
        let app = Router::new()
            .task("slow", slow)
            .layer(ServiceBuilder::new().load_shed().concurrency_limit(1))
            .with_state(work.clone());
        let scene = serving(app);
        scene.enqueue(["slow"; 5]).await;
        let counts = scene.settled().await;
        assert_eq!(counts.done, 5);
        assert!(counts.redelivered >= 4, "{counts:?}");
        assert_eq!(work.attempts(), [1; 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_a_request_with_unavailable_at_once() {
        let app = Router::new()
            .rpc("slow", slow)
            .layer(ServiceBuilder::new().load_shed().concurrency_limit(1))
            .with_state(Work::default());
        let scene = serving(app);
        let start = Instant::now();
        let shed = async {
            let answer = scene.ask("slow").await;
            (answer, start.elapsed())
        };
        let (first, (second, after)) = tokio::join!(scene.ask("slow"), shed);
        first.unwrap();
        assert_eq!(code(second), RpcCode::Unavailable);
        assert!(after < SECOND, "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn fails_a_call_at_once_and_sends_nothing() {
        let scene = serving(Router::new().rpc("slow", slow).with_state(Work::default()));
        let service = ServiceBuilder::new()
            .load_shed()
            .concurrency_limit(1)
            .service(scene.memory.clone());
        let client = Client::new(service);
        let (first, second) = tokio::join!(
            client.request::<()>("slow", ()),
            client.request::<()>("slow", ())
        );
        first.unwrap();
        let error = second.unwrap_err();
        assert!(find::<Overloaded>(&error).is_some(), "{error:?}");
        assert_eq!(scene.memory.counts().sent, 1);
    }
}

/// tower's `RateLimit` is not `Clone`, so a buffer is around it.
mod rate {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn is_limited_over_all_deliveries_behind_a_buffer() {
        let work = Work::default();
        let app = Router::new()
            .task("a", quick)
            .task("b", quick)
            .layer(ServiceBuilder::new().buffer(1).rate_limit(2, SECOND))
            .with_state(work.clone());
        let scene = serving(app);
        scene.enqueue(["a", "b"].repeat(4)).await;
        assert_eq!(scene.settled().await.done, 8);
        work.assert_rate(2, SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn is_limited_over_all_calls_of_a_client_behind_a_buffer() {
        let work = Work::default();
        let scene = serving(Router::new().rpc("quick", quick).with_state(work.clone()));
        let service = ServiceBuilder::new()
            .buffer(1)
            .rate_limit(2, SECOND)
            .service(scene.memory.clone());
        let client = Client::new(service);
        let calls = (0..8).map(|_| client.request::<()>("quick", ()).into_future());
        assert!(join_all(calls).await.iter().all(Result::is_ok));
        work.assert_rate(2, SECOND);
    }
}

mod buffer {
    use super::*;

    /// A service that can be made to fail in `poll_ready`.
    #[derive(Clone)]
    struct Breaks<S> {
        inner: S,
        broken: Arc<AtomicBool>,
    }

    impl<S> Service<Message> for Breaks<S>
    where
        S: Service<Message, Response = Reply, Error: Into<BoxError>>,
    {
        type Response = Reply;
        type Error = BoxError;
        type Future = futures_util::future::MapErr<S::Future, fn(S::Error) -> BoxError>;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            if self.broken.load(Ordering::SeqCst) {
                return Poll::Ready(Err("the pool is gone".into()));
            }
            self.inner.poll_ready(cx).map_err(Into::into)
        }

        fn call(&mut self, message: Message) -> Self::Future {
            use futures_util::TryFutureExt;
            self.inner.call(message).map_err(Into::into)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_one_place_holds_up_nothing_for_ever() {
        let work = Work::default();
        let app = Router::new()
            .task("slow", slow)
            .layer(ServiceBuilder::new().buffer(1).concurrency_limit(2))
            .with_state(work.clone());
        let scene = serving(app);
        scene.enqueue(["slow"; 20]).await;
        assert_eq!(scene.settled().await.done, 20);
        assert_eq!(work.most(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn around_a_client_sends_everything_and_nothing_that_nobody_waits_for() {
        let memory = Memory::new();
        let service = ServiceBuilder::new()
            .buffer(10)
            .rate_limit(1, SECOND)
            .service(memory.clone());
        let client = Client::new(service);
        let results = client.enqueue_all("a", [(); 3]).await;
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        // This call has to wait. It is dropped while it waits, so it is not sent.
        let dropped = tokio::time::timeout(SECOND / 10, client.enqueue("a", ()).into_future());
        dropped.await.unwrap_err();
        client.enqueue("a", ()).await.unwrap();
        assert_eq!(memory.counts().sent, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn outlives_a_panic_of_a_handler() {
        let work = Work::default();
        let panics = async || -> () { panic!("on purpose") };
        let app = Router::new()
            .task("panics", panics)
            .rpc("quick", quick)
            .layer(BufferLayer::new(1))
            .with_state(work.clone());
        let scene = serving(app);
        scene.enqueue(["panics"]).await;
        scene.ask("quick").await.unwrap();
        assert_eq!(scene.settled().await.dead, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn whose_service_broke_ends_the_worker_and_burns_no_attempt() {
        let (work, broken) = (Work::default(), Arc::new(AtomicBool::new(true)));
        let breaks = layer_fn(move |inner| Breaks {
            inner,
            broken: broken.clone(),
        });
        let router = || Router::new().task("quick", quick).rpc("quick", quick);
        let app = router()
            .layer(ServiceBuilder::new().buffer(1).layer(breaks))
            .with_state(work.clone());
        let scene = serving(app);
        // The message was not started, so another worker may handle it.
        assert_eq!(code(scene.ask("quick").await), RpcCode::Unavailable);
        scene.enqueue(["quick"]).await;
        let error = scene.worker.ended().await.unwrap_err();
        assert_eq!(error.to_string(), "the service is broken and cannot serve");
        assert!(find::<ServiceError>(&error).is_some(), "{error:?}");

        let healthy = router().with_state(work.clone());
        let healthy = Worker::start(scene.memory.clone(), healthy);
        ended(&scene.memory).await;
        healthy.stop().await.unwrap();
        assert_eq!(work.attempts(), [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn whose_layer_panicked_ends_the_worker_and_burns_an_attempt() {
        let work = Work::default();
        let panics = |message: Message| -> Message { panic!("{} on purpose", message.name()) };
        let app = Router::new()
            .task("quick", quick)
            .layer(ServiceBuilder::new().buffer(1).map_request(panics))
            .with_state(work.clone());
        let scene = serving(app);
        // If a panic of a layer did not count as an attempt, such a message would be redelivered
        // for ever.
        scene.enqueue(["quick"]).await;
        let error = scene.worker.ended().await.unwrap_err();
        assert!(find::<Closed>(&error).is_some(), "{error:?}");

        let healthy = Router::new().task("quick", quick).with_state(work.clone());
        let healthy = Worker::start(scene.memory.clone(), healthy);
        ended(&scene.memory).await;
        healthy.stop().await.unwrap();
        assert!(work.attempts()[0] > 1, "{:?}", work.attempts());
    }

    #[tokio::test(start_paused = true)]
    async fn around_a_client_whose_service_broke_fails_the_call_and_sends_nothing() {
        let memory = Memory::new();
        let breaks = Breaks {
            inner: memory.clone(),
            broken: Arc::new(AtomicBool::new(true)),
        };
        let client = Client::new(ServiceBuilder::new().buffer(1).service(breaks));
        for _ in 0..2 {
            let error = client.enqueue("a", ()).await.unwrap_err();
            assert!(find::<ServiceError>(&error).is_some(), "{error:?}");
        }
        assert_eq!(memory.counts().sent, 0);
    }
}
