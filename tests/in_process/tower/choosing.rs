//! Tests of tower's middleware over several services, and of related middleware.

use campanile::{Kind, Router, WithInterest};
use futures_util::future::join_all;
use tower::{
    Service, ServiceBuilder, ServiceExt,
    balance::p2c::Balance,
    discover::ServiceList,
    load::{CompleteOnResponse, PendingRequests},
    spawn_ready::SpawnReadyLayer,
    steer::Steer,
};

use super::*;

fn slow_app(work: &Work) -> Router {
    Router::new().rpc("slow", slow).with_state(work.clone())
}

/// A `Balance` over these services by their pending calls. `Balance` is not `Clone`, so a buffer is
/// around it.
macro_rules! balance {
    ($services:expr) => {{
        let services = $services.map(|it| PendingRequests::new(it, CompleteOnResponse::default()));
        let list = ServiceList::new::<Message>(services);
        ServiceBuilder::new().buffer(1).service(Balance::new(list))
    }};
}

#[tokio::test(start_paused = true)]
async fn a_client_over_two_streams_steers_by_the_message() {
    let work = Work::default();
    let memory = Memory::new();
    let worker = Worker::start(memory.clone().stream("requests"), slow_app(&work));
    let streams = ["tasks", "requests"].map(|stream| memory.clone().stream(stream));
    let by_kind = |message: &Message, _: &[Memory]| usize::from(message.kind() == Kind::Rpc);
    let client = Client::new(Steer::new(streams, by_kind));
    client.request::<()>("slow", ()).await.unwrap();
    client.enqueue("a", ()).await.unwrap();
    worker.stop().await.unwrap();
    assert_eq!(work.calls(), 1);
    assert_eq!(
        memory
            .clone()
            .stream("tasks")
            .stats()
            .await
            .unwrap()
            .entries,
        1
    );
}

#[tokio::test(start_paused = true)]
async fn a_worker_steers_between_two_routers_and_waits_for_both() {
    let work = Work::default();
    let app = |limit| {
        let router = Router::new().task("slow", slow).rpc("slow", slow);
        let stack = ServiceBuilder::new().concurrency_limit(limit);
        router.layer(stack).with_state(work.clone())
    };
    let by_kind = |message: &Message, _: &[_]| usize::from(message.kind() == Kind::Rpc);
    let scene = serving(WithInterest::stream(Steer::new([app(1), app(64)], by_kind)));
    scene.enqueue(["slow"; 3]).await;
    let start = Instant::now();
    scene.ask("slow").await.unwrap();
    // If one router is at its limit, the other has to wait. It would not wait if one router had the
    // routes of both, with a layer around each part.
    assert!(start.elapsed() > SECOND, "{:?}", start.elapsed());
    assert_eq!(scene.settled().await.done, 4);
}

/// This is the behaviour of tower's `Steer`: limits must be around it, not inside.
#[tokio::test]
#[should_panic(expected = "max requests in-flight")]
async fn a_clone_of_a_steer_that_was_ready_believes_that_it_is() {
    let limited = ServiceBuilder::new()
        .concurrency_limit(1)
        .service(Memory::new());
    let mut steer = Steer::new([limited], |_: &Message, _: &[_]| 0);
    steer.ready().await.unwrap();
    let mut clone = steer.clone();
    let ready = clone.ready().await.unwrap();
    let _ = ready.call(Message::task("a", "")).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_balances_over_two_brokers() {
    let work = [Work::default(), Work::default()];
    let scenes = work.each_ref().map(|work| serving(slow_app(work)));
    let client = Client::new(balance!(scenes.each_ref().map(|it| it.memory.clone())));
    let calls = (0..10).map(|_| client.request::<()>("slow", ()).into_future());
    assert!(join_all(calls).await.iter().all(Result::is_ok));
    assert_eq!(work.each_ref().map(Work::calls), [5, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_route_balances_over_two_services() {
    let work = [Work::default(), Work::default()];
    let services = work.each_ref().map(|work| {
        let router = Router::new().task("slow", slow);
        router.with_state(work.clone())
    });
    let scene = serving(Router::new().task_service("slow", balance!(services)));
    scene.enqueue(["slow"; 10]).await;
    assert_eq!(scene.settled().await.done, 10);
    assert_eq!(work.each_ref().map(Work::calls), [5, 5]);
}

/// tower's `SpawnReady` is not `Clone`, so a buffer is around it.
#[tokio::test(start_paused = true)]
async fn readiness_is_driven_by_a_task_on_both_sides() {
    let work = Work::default();
    let stack = ServiceBuilder::new()
        .buffer(1)
        .layer(SpawnReadyLayer::new())
        .concurrency_limit(1);
    let scene = serving(
        Router::new()
            .rpc("slow", slow)
            .layer(stack)
            .with_state(work.clone()),
    );
    let stack = ServiceBuilder::new()
        .buffer(1)
        .layer(SpawnReadyLayer::new())
        .concurrency_limit(2);
    let client = Client::new(stack.service(scene.memory.clone()));
    let calls = (0..4).map(|_| client.request::<()>("slow", ()).into_future());
    assert!(join_all(calls).await.iter().all(Result::is_ok));
    assert_eq!((work.calls(), work.most()), (4, 1));
}
