//! Tests of the client over services that are not transports.

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use campanile::{
    BoxError, Client, Json, Kind, Message, MessageId, MessageService, Reply, ReplyMode, Router,
    RpcError, State,
};
use tokio::time::Instant;
use tower::{ServiceBuilder, service_fn};

type Sent = Arc<Mutex<Vec<Message>>>;

/// A client of a service that accepts every message, and the messages that the service received.
fn recording() -> (Client<impl MessageService<Error = BoxError> + Clone>, Sent) {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let log = sent.clone();
    let service = service_fn(move |message: Message| {
        let mut log = log.lock().unwrap();
        log.push(message);
        let id = MessageId::from(format!("{}-0", log.len()));
        async move { Ok::<_, BoxError>(Reply::accepted(id)) }
    });
    (Client::new(service), sent)
}

#[tokio::test]
async fn nested_clients_join_prefixes_in_order_and_an_empty_prefix_adds_nothing() {
    let (client, sent) = recording();
    client.enqueue("create", ()).await.unwrap();
    client.nest("").enqueue("create", ()).await.unwrap();
    let nested = client.nest("shop").nest("orders");
    nested.enqueue("create", ()).await.unwrap();
    nested.publish("events", ()).await.unwrap();
    let sent = sent.lock().unwrap();
    let names: Vec<_> = sent.iter().map(|m| m.name().as_str()).collect();
    assert_eq!(
        names,
        [
            "create",
            "create",
            "shop.orders.create",
            "shop.orders.events"
        ]
    );
    assert_eq!(sent[3].kind(), Kind::Event);
}

#[tokio::test]
async fn the_two_modes_of_a_request_and_its_deadline_are_in_its_parts() {
    let (client, sent) = recording();
    client.request::<()>("a", ()).await.unwrap();
    client
        .request_fast::<()>("a", ())
        .timeout(Duration::from_secs(5))
        .await
        .unwrap();
    client
        .enqueue("a", ())
        .timeout(Duration::from_secs(5))
        .await
        .unwrap();
    let sent = sent.lock().unwrap();
    let remaining = |i: usize| {
        sent[i]
            .parts()
            .deadline
            .map(|d| d.remaining().as_secs_f64().round())
    };
    assert_eq!(sent[0].parts().reply_mode, ReplyMode::Reliable);
    assert_eq!(remaining(0), Some(30.0));
    assert_eq!(sent[1].parts().reply_mode, ReplyMode::Fast);
    assert_eq!(remaining(1), Some(5.0));
    assert_eq!(
        remaining(2),
        None,
        "the timeout of a task limits its sending, and sets no deadline"
    );
}

#[tokio::test]
async fn many_tasks_have_a_result_each_in_their_order() {
    let service = service_fn(async |message: Message| {
        let n: u64 = String::from_utf8_lossy(message.payload()).parse()?;
        tokio::time::sleep(Duration::from_micros(n % 7)).await;
        match n % 10 {
            3 => Err(BoxError::from("not this one")),
            _ => Ok(Reply::accepted(MessageId::from(n.to_string()))),
        }
    });
    let payloads = (0..10_000).map(|n: u32| n.to_string());
    let results = Client::new(service).enqueue_all("a", payloads).await;
    assert_eq!(results.len(), 10_000);
    for (n, result) in results.iter().enumerate() {
        match result {
            Ok(receipt) => assert_eq!(receipt.to_string(), n.to_string()),
            Err(_) => assert_eq!(n % 10, 3),
        }
    }
}

#[tokio::test]
async fn many_calls_keep_their_own_names_and_options() {
    let (client, sent) = recording();
    let shop = client.nest("shop");
    let calls = (1..=3).map(|n: u32| {
        let call = shop.enqueue(format!("n{n}"), "x").max_attempts(n);
        call.delay(Duration::from_secs(60))
            .expires_after(Duration::from_secs(5))
            .idempotency_key(format!("k{n}"))
    });
    let bad = client.enqueue("bad", "x").expires_after(Duration::ZERO);
    let results = client.enqueue_calls(calls.chain([bad])).await;
    let ids: Vec<_> = results[..3]
        .iter()
        .map(|it| it.as_ref().unwrap().to_string())
        .collect();
    assert_eq!(ids, ["1-0", "2-0", "3-0"]);
    assert!(results[3].as_ref().unwrap_err().is_invalid());
    let sent = sent.lock().unwrap();
    for (n, message) in (1..).zip(&*sent) {
        let parts = message.parts();
        assert_eq!(message.name().as_str(), format!("shop.n{n}"));
        assert_eq!(parts.max_attempts, Some(n));
        assert_eq!(parts.idempotency_key, Some(format!("k{n}").into()));
        let life = parts.deadline.unwrap().remaining();
        assert!(life > Duration::from_secs(60) && life <= Duration::from_secs(65));
    }
}

#[tokio::test(start_paused = true)]
async fn each_of_many_calls_has_its_own_timeout() {
    let never = Client::new(service_fn(|_: Message| {
        pending::<Result<Reply, BoxError>>()
    }));
    let started = Instant::now();
    let calls = [1, 2].map(|n| never.enqueue("a", "").timeout(Duration::from_secs(n)));
    let results = never.enqueue_calls(calls).await;
    assert!(
        results
            .iter()
            .all(|it| it.as_ref().unwrap_err().is_timeout())
    );
    assert_eq!(started.elapsed(), Duration::from_secs(2));
}

#[tokio::test]
async fn a_limit_that_waits_for_what_is_under_way_does_not_stop_the_rest() {
    let service = ServiceBuilder::new()
        .concurrency_limit(2)
        .service_fn(async |_: Message| {
            tokio::task::yield_now().await;
            Ok::<_, BoxError>(Reply::default())
        });
    let results = Client::new(service).enqueue_all("a", [(); 100]).await;
    assert_eq!(results.into_iter().filter(Result::is_ok).count(), 100);
}

#[tokio::test]
async fn one_payload_that_cannot_be_serialized_fails_alone() {
    let (client, sent) = recording();
    // JSON has no map whose keys are lists.
    let bad = std::collections::HashMap::from([(vec![1], 1)]);
    let good = std::collections::HashMap::new();
    let results = client.enqueue_all("a", [Json(good), Json(bad)]).await;
    assert!(results[0].is_ok());
    assert!(results[1].as_ref().unwrap_err().is_invalid());
    assert_eq!(sent.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_times_out_and_what_is_there_in_time_is_not_late() {
    let never = Client::new(service_fn(|_: Message| {
        pending::<Result<Reply, BoxError>>()
    }));
    let start = Instant::now();
    let error = never.request::<()>("a", ()).await.unwrap_err();
    assert!(error.is_timeout());
    assert_eq!(start.elapsed().as_secs(), 30);
    let patient = never.clone().request_timeout(Duration::from_secs(90));
    assert!(
        patient
            .request::<()>("a", ())
            .await
            .unwrap_err()
            .is_timeout()
    );
    assert_eq!(start.elapsed().as_secs(), 120);

    let (punctual, _) = recording();
    punctual
        .request::<()>("a", ())
        .timeout(Duration::ZERO)
        .await
        .unwrap();
}

#[tokio::test]
async fn over_a_router_handlers_run_in_place_and_their_errors_surface() {
    let app = Router::new()
        .task(
            "add",
            async |State(sum): State<Arc<Mutex<u32>>>, Json(n): Json<u32>| {
                *sum.lock().unwrap() += n;
            },
        )
        .task("fail", async || Err::<(), BoxError>("disk full".into()))
        .rpc("fail", async || {
            Err::<(), _>(RpcError::unavailable("not now"))
        });
    let sum = Arc::new(Mutex::new(0));
    let client = Client::new(app.with_state(sum.clone()));

    let receipt = client.enqueue("add", Json(7)).await.unwrap();
    assert_eq!(receipt.id(), None, "no entry is stored");
    assert_eq!(*sum.lock().unwrap(), 7);
    let error = client.enqueue("fail", ()).await.unwrap_err();
    assert_eq!(
        std::error::Error::source(&error).unwrap().to_string(),
        "disk full"
    );
    let error = client.request::<()>("fail", ()).await.unwrap_err();
    assert_eq!(error.rpc(), Some(&RpcError::unavailable("not now")));
}

#[tokio::test(start_paused = true)]
async fn towers_timeout_around_a_client_reads_as_a_timeout() {
    let service = ServiceBuilder::new()
        .timeout(Duration::from_secs(1))
        .service_fn(|_: Message| pending::<Result<Reply, BoxError>>());
    let error = Client::new(service).enqueue("a", ()).await.unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
}

#[tokio::test]
async fn a_reply_is_read_as_what_was_asked_for() {
    let client = Client::new(service_fn(async |_: Message| {
        Ok::<_, BoxError>(Reply::new(r#"{"n":1}"#))
    }));
    let _: () = client.request("a", ()).await.unwrap();
    let raw: Bytes = client.request("a", ()).await.unwrap();
    assert_eq!(raw, r#"{"n":1}"#);
    let text: String = client.request("a", ()).await.unwrap();
    assert_eq!(text, r#"{"n":1}"#);
    let Json(json): Json<serde_json::Value> = client.request("a", ()).await.unwrap();
    assert_eq!(json["n"], 1);
    let whole: Reply = client.request("a", ()).await.unwrap();
    assert_eq!(whole.payload.len(), 7);
    let error = client.request::<Json<u32>>("a", ()).await.unwrap_err();
    assert!(error.is_decode());
}

#[tokio::test]
async fn options_of_a_task_reach_the_service_and_bad_ones_are_refused() {
    use campanile::Due;
    use std::time::SystemTime;

    let seen = Arc::new(Mutex::new(Vec::new()));
    let service = service_fn({
        let seen = seen.clone();
        move |message: Message| {
            seen.lock().unwrap().push(message.into_parts().0);
            async { Ok::<_, BoxError>(Reply::default()) }
        }
    });
    let client = Client::new(service);
    let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
    let task = || client.enqueue("a", "");
    let time = SystemTime::now() + minute;
    task().delay(second).expires_after(minute).await.unwrap();
    task().delay(second).at(time).await.unwrap();
    task().at(time).delay(Duration::ZERO).await.unwrap();
    task().idempotency_key("k").await.unwrap();
    task()
        .expires_after(Duration::MAX)
        .delay(Duration::MAX)
        .await
        .unwrap();
    let refused = task().expires_after(Duration::ZERO).await.unwrap_err();
    assert!(refused.is_invalid(), "{refused}");

    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 5);
    assert_eq!(seen[0].due, Some(Due::After(second)));
    let left = seen[0].deadline.unwrap().remaining();
    assert!(left > minute && left <= minute + second, "{left:?}");
    assert_eq!((seen[1].due, seen[1].deadline), (Some(Due::At(time)), None));
    assert_eq!(seen[2].due, None);
    assert_eq!(seen[3].idempotency_key.as_deref(), Some("k"));
}

#[tokio::test]
async fn over_a_router_a_delayed_task_runs_in_place_and_every_time() {
    use std::sync::atomic::{AtomicU32, Ordering};

    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let app: Router = Router::new().task("a", move || {
        let counted = counted.clone();
        async move {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    let client = Client::new(app);
    for _ in 0..2 {
        let call = client.enqueue("a", "").delay(Duration::from_secs(3600));
        call.idempotency_key("k").await.unwrap();
    }
    assert_eq!(runs.load(Ordering::Relaxed), 2);
}

mod boxed {
    use super::*;
    use campanile::{BoxSender, Error, transport::memory::Memory};
    use tower::{Service, ServiceExt};

    /// An application that stores its client without a type parameter and without the layers'
    /// types.
    #[derive(Clone)]
    struct Orders {
        client: Client<BoxSender>,
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_over_layers_is_stored_without_type_parameters() {
        let memory = Memory::new();
        let sender = ServiceBuilder::new()
            .buffer(64)
            .rate_limit(1, Duration::from_secs(1))
            .timeout(Duration::from_secs(5))
            .service(memory.clone());
        let orders = Orders {
            client: Client::new(BoxSender::new(sender)),
        };
        let start = Instant::now();
        let enqueue = |orders: Orders| async move { orders.client.enqueue("create", ()).await };
        let first = tokio::spawn(enqueue(orders.clone()));
        assert!(first.await.unwrap().unwrap().id().is_some());
        enqueue(orders).await.unwrap();
        assert_eq!(memory.stats().await.unwrap().entries, 2);
        assert_eq!(start.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_error_of_a_layer_becomes_the_clients() {
        let never = service_fn(|_: Message| pending::<Result<Reply, BoxError>>());
        let timed = ServiceBuilder::new()
            .timeout(Duration::from_secs(1))
            .service(never);
        let mut sender = BoxSender::new(timed);
        let client = Client::new(sender.clone());
        assert!(client.enqueue("a", ()).await.unwrap_err().is_timeout());
        let sender = sender.ready().await.map_err(Error::from_service).unwrap();
        let outcome = sender.call(Message::task("a", "")).await;
        assert!(
            outcome
                .map_err(Error::from_service)
                .unwrap_err()
                .is_timeout()
        );
    }
}
