//! Tests of the harness with applications that have layers, several groups, panics or an end.

use std::{future::pending, time::Duration};

use campanile::{
    BoxError, Failure, Json, Router, RpcError, WithInterest, serve,
    testing::{Harness, MessageEvent, anything, event, rpc, task},
    transport::{Start, UnknownNames, memory::Memory},
};
use tokio::sync::oneshot;
use tower::ServiceBuilder;

use super::{HOUR, failure_in, failure_of, paused, placeless};

async fn panics() {
    panic!("out of cheese");
}

#[tokio::test(start_paused = true)]
async fn handlers_fail_in_every_way_that_there_is() {
    let app: Router = Router::new()
        .task("errs", async || Err::<(), BoxError>("disk full".into()))
        .task("panics", panics)
        .task("dies", async || Err::<(), _>(Failure::dead_letter()))
        .task("reads", async |Json(_): Json<u32>| {})
        .rpc("refuses", async || {
            Err::<(), _>(RpcError::not_found("no user 7"))
        })
        .rpc("panics", panics)
        .event("errs", async || Err::<(), BoxError>("disk full".into()))
        .event("panics", panics);
    let harness = Harness::start(app).await;
    let client = harness.client();
    for name in ["errs", "panics", "dies", "reads", "unknown"] {
        client.enqueue(name, "x").await.unwrap();
    }
    client.publish("errs", ()).await.unwrap();
    client.publish("panics", ()).await.unwrap();
    client.request::<()>("refuses", ()).await.unwrap_err();
    client.request_fast::<()>("panics", ()).await.unwrap_err();
    // The caller has its reply, so the request has ended.
    harness.assert_failed(rpc("refuses").because("no user 7 (not_found)").once());
    harness.assert_failed(rpc("panics").because("internal error").once());
    harness.settled().await;
    harness.assert_redelivered(task("errs").because("disk full").once());
    harness.assert_redelivered(
        task("panics")
            .because("the handler panicked: out of cheese")
            .once(),
    );
    harness.assert_redelivered(task("unknown").because("no route").once());
    harness.assert_redelivered(anything().times(3));
    harness.assert_dead_lettered(task("dies").because("for good").once());
    harness.assert_dead_lettered(task("reads").once());
    harness.assert_failed(event("errs").because("disk full").once());
    harness.assert_failed(event("panics").because("out of cheese").once());
    harness.assert_acknowledged(anything().never());
}

#[tokio::test(start_paused = true)]
async fn layers_around_the_whole_are_part_of_it() {
    let router: Router = Router::new()
        .task("slow", async || pending::<()>().await)
        .event("news", async || {});
    let interest = router.interest();
    let service = ServiceBuilder::new()
        .concurrency_limit(1)
        .timeout(Duration::from_secs(30))
        .service(router);
    let harness = Harness::start(WithInterest::new(service, interest)).await;
    harness.client().enqueue("slow", ()).await.unwrap();
    harness.client().publish("news", "1").await.unwrap();
    harness.settled().await;
    harness.assert_redelivered(task("slow").because("timed out").once());
    harness.assert_acknowledged(event("news").once());
}

#[tokio::test(start_paused = true)]
async fn several_groups_on_one_transport_are_distinguished() {
    let memory = Memory::new().unknown_names(UnknownNames::Ignore);
    let mut harness = Harness::over(memory.clone());
    let billing: Router = Router::new().task("order", async || Err::<(), _>("the bank is closed"));
    let mailing: Router = Router::new()
        .task("order", async || {})
        .task("mail", async || {});
    harness
        .run(serve(memory.clone().group("billing"), billing))
        .await;
    let second = memory.clone().group("mailing").start(Start::Beginning);
    harness
        .run(serve(second, mailing).expose_error_text())
        .await;
    harness.client().enqueue("order", ()).await.unwrap();
    harness.client().enqueue("mail", ()).await.unwrap();
    harness.settled().await;
    harness.assert_sent(anything().times(2));
    harness.assert_redelivered(task("order").group("billing").once());
    harness.assert_acknowledged(task("order").group("mailing").once());
    harness.assert_acknowledged(task("mail").group("mailing").once());
    let text = failure_of(|| harness.assert_acknowledged(task("order").group("billing")));
    assert!(
        text.starts_with("task `order` in the group `billing` was never acknowledged\n"),
        "{text}"
    );
    let line = "task `order`: acknowledged [group `mailing`]   <- another group\n";
    assert!(text.contains(line), "{text}");
    assert!(
        text.contains("ignored, its name is unknown [group `billing`]"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_is_no_message_is_seen_as_well() {
    let app: Router = Router::new().task("a", async || {});
    let harness = Harness::start(app).await;
    harness.memory().add_raw([("type", "task")]);
    harness.settled().await;
    let dead = harness.assert_dead_lettered(anything().because("`name` is missing").once());
    assert!(dead[0].message.is_none());
    let text = failure_of(|| harness.assert_dead_lettered(anything().payload("x")));
    assert!(
        text.contains("an entry that is no message: dead-lettered"),
        "{text}"
    );
    assert!(text.ends_with("<- no message"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_lost_leaves_its_messages_to_the_next() {
    let memory = Memory::new();
    let mut harness = Harness::over(memory.clone());
    let (kill, killed) = oneshot::channel::<()>();
    let stuck: Router = Router::new()
        .task("work", async || pending::<()>().await)
        .event("news", async || pending::<()>().await);
    let serving = serve(memory, stuck).with_forced_shutdown(async { drop(killed.await) });
    harness.run(serving).await;
    harness.client().enqueue("work", ()).await.unwrap();
    harness.client().publish("news", ()).await.unwrap();
    tokio::task::yield_now().await;
    drop(kill);
    let app: Router = Router::new().task("work", async || {});
    harness.serve(app).await;
    harness.settled().await;
    let lost = harness.records();
    let lost = lost
        .iter()
        .filter(|record| record.happened == MessageEvent::Abandoned);
    assert_eq!(lost.count(), 2);
    assert_eq!(
        harness.advance_to_next().await,
        Some(Duration::from_secs(10))
    );
    harness.assert_acknowledged(task("work").attempt(2).once());
    harness.shutdown().await;
}

#[test]
fn a_dropped_harness_leaves_nothing_running() {
    let runtime = paused();
    runtime.block_on(async {
        let app: Router = Router::new().task("stuck", async || pending::<()>().await);
        let harness = Harness::start(app).await;
        harness.client().enqueue("stuck", ()).await.unwrap();
        let metrics = tokio::runtime::Handle::current().metrics();
        tokio::task::yield_now().await;
        assert!(metrics.num_alive_tasks() > 0);
        drop(harness);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(metrics.num_alive_tasks(), 0);
    });
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_lets_handlers_end_and_leaves_the_rest_to_the_next() {
    let app = || -> Router {
        Router::new()
            .task("slow", async || {
                tokio::time::sleep(Duration::from_secs(20)).await
            })
            .task("quick", async || {})
    };
    let mut harness = Harness::over(Memory::new().max_in_flight(1));
    harness.serve(app()).await;
    harness.client().enqueue("slow", ()).await.unwrap();
    tokio::task::yield_now().await;
    harness.client().enqueue("quick", ()).await.unwrap();
    harness.shutdown().await;
    harness.assert_acknowledged(task("slow").once());
    harness.assert_acknowledged(task("quick").never());
    harness.serve(app()).await; // as after a restart
    harness.settled().await;
    harness.assert_acknowledged(task("quick").once());
    harness.shutdown().await;
    harness.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_that_drops_handlers_fails() {
    let app: Router = Router::new().task("stuck", async || pending::<()>().await);
    let mut harness = Harness::start(app).await;
    harness.client().enqueue("stuck", "x").await.unwrap();
    tokio::time::sleep(HOUR).await;
    let text = placeless(&failure_in(harness.shutdown()).await);
    let expected = "the shutdown at HERE was not graceful: \
                    handlers were still running 30s after the shutdown's signal\n\n\
                    what has happened:\n  \
                    0.000s task `stuck` x: sent\n  \
                    3630.000s task `stuck` x: abandoned by its worker";
    assert_eq!(text, expected);
}

#[tokio::test(start_paused = true)]
async fn an_application_that_cannot_be_served_says_where_and_why() {
    let app = || -> Router { Router::new().task("a", async || {}) };
    let mut harness = Harness::start(app()).await;
    let second = serve(harness.memory().group("second"), app());
    let (line, text) = (line!(), failure_in(harness.run(second)).await);
    assert!(
        text.contains("group `second` of stream `app_stream` has ended"),
        "{text}"
    );
    assert!(text.contains("unknown_names"), "{text}");
    assert!(
        text.contains(&format!("(served at {}:{line}:", file!())),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_application_that_panics_when_it_is_made_is_told_of() {
    #[derive(Clone)]
    struct Bad;
    impl<S> tower::Layer<S> for Bad {
        type Service = S;
        fn layer(&self, _: S) -> S {
            panic!("no such thing")
        }
    }
    let app = Router::<()>::new().task("a", async || {}).layer(Bad);
    let text = failure_in(Harness::start(app)).await;
    assert!(text.contains("has ended: it panicked"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_transport_is_watched_by_one_harness_which_serves_from_no_other() {
    let memory = Memory::new();
    let mut harness = Harness::over(memory.clone());
    let text = failure_of(|| drop(Harness::over(memory.clone().stream("other"))));
    assert_eq!(text, "this memory transport has a harness already");
    let elsewhere = serve(Memory::new(), Router::<()>::new());
    let text = failure_of(|| drop(harness.run(elsewhere)));
    assert!(text.contains("another memory transport"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_said_of_payloads_by_debug() {
    let app: Router = Router::new().task("a", async || {});
    let harness = Harness::start(app).await;
    harness.client().enqueue("a", "secret").await.unwrap();
    harness.settled().await;
    let shown = format!("{harness:?} {:?}", harness.records());
    assert!(!shown.contains("secret"), "{shown}");
}
