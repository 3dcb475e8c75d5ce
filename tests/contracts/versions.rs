//! Tests of versions of payloads.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use campanile::{
    Attempt, BoxError, Client, Failure, Json, Kind, Message, Rejection, Router,
    contract::{NewerVersion, Rpc, Task, VERSION, breakages},
    error::{FailureVerdict, find},
    message::PermitRequest,
    serve,
    transport::memory::Memory,
};
use http::HeaderValue;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tower::ServiceExt;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    id: u64,
    customer: String,
    currency: String,
}

#[derive(Serialize, Deserialize)]
struct SecondOrder {
    id: u64,
    customer: String,
}

const FIRST: Task<Value> = Task::new("orders.create");
const SECOND: Task<SecondOrder> = Task::new("orders.create").version(2);
const THIRD: Task<Order> = Task::new("orders.create").version(3);

type Seen = Arc<Mutex<Vec<(Order, Attempt)>>>;

fn third(seen: &Seen) -> Router {
    let seen = seen.clone();
    let lifting = THIRD
        .lift(2, |old: SecondOrder| Order {
            id: old.id,
            customer: old.customer,
            currency: "EUR".to_owned(),
        })
        .lift(1, |mut order: Value| {
            order["customer"] = "unknown".into();
            order
        });
    Router::new().task(
        lifting,
        async move |attempt: Attempt, Json(order): Json<Order>| {
            seen.lock().unwrap().push((order, attempt));
        },
    )
}

fn order(customer: &str, currency: &str) -> Order {
    Order {
        id: 7,
        customer: customer.to_owned(),
        currency: currency.to_owned(),
    }
}

#[tokio::test]
async fn older_payloads_are_lifted_step_by_step() {
    let seen = Seen::default();
    let client = Client::new(third(&seen));
    client.enqueue(FIRST, json!({ "id": 7 })).await.unwrap();
    let second = SecondOrder {
        id: 7,
        customer: "Ann".to_owned(),
    };
    client.enqueue(SECOND, second).await.unwrap();
    client.enqueue(THIRD, order("Bob", "CHF")).await.unwrap();
    let seen: Vec<_> = seen
        .lock()
        .unwrap()
        .drain(..)
        .map(|(order, _)| order)
        .collect();
    assert_eq!(
        seen,
        [
            order("unknown", "EUR"),
            order("Ann", "EUR"),
            order("Bob", "CHF")
        ]
    );
}

/// A rolling deploy: a task of the new version reaches an old worker first.
#[tokio::test(start_paused = true)]
async fn a_newer_payload_waits_for_a_newer_worker_and_loses_no_attempt() {
    let memory = Memory::new().max_deliveries(2);
    let old: Router = Router::new().task(FIRST, async |_: Json<Value>| {
        unreachable_handler();
    });
    let old = tokio::spawn(serve(memory.clone(), old).into_future());
    let client = Client::new(memory.clone());
    client.enqueue(THIRD, order("Bob", "CHF")).await.unwrap();
    // Longer than an attempt after each back-off would last.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let seen = Seen::default();
    let new = tokio::spawn(serve(memory.clone(), third(&seen)).into_future());
    // The old worker may take it a few times more.
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(*seen.lock().unwrap(), [(order("Bob", "CHF"), Attempt(1))]);
    old.abort();
    new.abort();
}

fn unreachable_handler() {
    panic!("this worker cannot read it");
}

async fn outcome(app: Router, message: Message) -> BoxError {
    app.oneshot(message).await.expect_err("it is refused")
}

fn versioned(version: &[u8], payload: &'static str) -> Message {
    let mut message = Message::task("orders.create", payload);
    message
        .headers_mut()
        .insert(VERSION, HeaderValue::from_bytes(version).unwrap());
    message
}

#[tokio::test]
async fn a_newer_version_is_parked_or_redelivered_uncounted_and_says_both_versions() {
    let app: Router = Router::new().task(SECOND, async || {});
    let error = outcome(app, versioned(b"3", "{}")).await;
    let newer = find::<NewerVersion>(&*error).expect("the cause");
    assert_eq!((newer.version(), newer.known_version()), (3, 2));
    let text = "version 3 of `orders.create` is newer than version 2, which this worker knows";
    assert_eq!(newer.to_string(), text);
    let again = FailureVerdict::Redeliver {
        after: None,
        counted: false,
    };
    assert_eq!(
        FailureVerdict::of(Kind::Task, &*error),
        Some(FailureVerdict::Park)
    );
    let request = find::<Failure>(&*error).and_then(Failure::permit_request);
    assert_eq!(
        request.and_then(PermitRequest::awaited_version),
        Some(("orders.create", 3))
    );
    let app: Router =
        Router::new().rpc(Rpc::<u8, u8>::new("double").version(2), async || Json(0_u8));
    let mut request = Message::rpc("double", "1");
    request.headers_mut().insert(VERSION, 3.into());
    let error = outcome(app, request).await;
    assert_eq!(FailureVerdict::of(Kind::Rpc, &*error), Some(again));
}

#[tokio::test]
async fn an_old_version_without_a_step_is_refused_for_good() {
    let rejected = async |app: Router, message: Message| {
        let error = outcome(app, message).await;
        let rejection = find::<Rejection>(&*error).expect("a rejection");
        assert!(rejection.is_permanent());
        rejection.to_string()
    };
    let app: Router = Router::new().task(SECOND, async || {});
    assert_eq!(
        rejected(app, Message::task("orders.create", "{}")).await,
        "the payload has version 1, and this worker reads versions 2 to 2"
    );
    let seen = Seen::default();
    assert_eq!(
        rejected(third(&seen), versioned(b"2", r#"{"id":"secret"}"#)).await,
        "version 2 of the payload cannot be lifted: the payload is JSON of another shape: \
         expected u64 at line 1 column 14"
    );
    assert!(
        rejected(third(&seen), versioned(b"1", "{"))
            .await
            .contains("cannot be lifted")
    );
}

#[tokio::test]
async fn a_header_that_is_no_version_is_refused_for_good() {
    let long = vec![b'9'; 1 << 20];
    for value in [
        &b"0"[..],
        b"-1",
        b"",
        b" 2",
        b"two",
        b"1.5",
        b"\xff",
        b"9999999999",
        &long,
    ] {
        let error = outcome(third(&Seen::default()), versioned(value, "{}")).await;
        let rejection = find::<Rejection>(&*error).expect("a rejection");
        assert!(rejection.is_permanent());
        let text = rejection.to_string();
        assert!(
            text.contains("which is no version") && text.len() < 150,
            "{text}"
        );
    }
}

#[tokio::test]
async fn only_a_constant_with_a_version_writes_and_checks_it() {
    let plain: Router = Router::new().task("orders.create", async |message: Message| {
        let version = message
            .headers()
            .get(VERSION)
            .map(|it| it.to_str().unwrap().to_owned());
        assert_eq!(
            version.as_deref(),
            message
                .headers()
                .get("expected")
                .map(|it| it.to_str().unwrap())
        );
    });
    let client = Client::new(plain);
    client.enqueue(FIRST, json!({})).await.unwrap();
    client
        .enqueue(THIRD, order("Bob", "CHF"))
        .header("expected", "3")
        .await
        .unwrap();
}

#[test]
fn a_raised_version_breaks_old_senders_unless_it_is_lifted() {
    let router = || Router::<()>::new();
    let first = router().task(FIRST, async || {}).describe();
    let second = router().task(SECOND, async || {}).describe();
    let found: Vec<_> = breakages(&first, &second)
        .iter()
        .map(ToString::to_string)
        .collect();
    let text = "old senders: task `orders.create`: version 1 is no longer taken, the oldest is 2";
    assert_eq!(found, [text]);
    let found: Vec<_> = breakages(&second, &first)
        .iter()
        .map(ToString::to_string)
        .collect();
    let text = "old senders: task `orders.create`: their payloads have version 2, and the version is 1 now";
    assert_eq!(found, [text]);
    let third = third(&Seen::default()).describe();
    assert_eq!(
        (third.routes[0].version, third.routes[0].oldest_version),
        (3, 1)
    );
    assert_eq!(breakages(&first, &third), []);
}

#[test]
#[should_panic(expected = "version 2 cannot be lifted to the next: the constant has version 2")]
fn a_step_from_the_current_version_is_a_mistake() {
    let _ = SECOND.lift(2, |old: Value| old);
}

#[tokio::test]
async fn requests_are_lifted_too() {
    const OLD: Rpc<u8, u8> = Rpc::new("double");
    const NEW: Rpc<(u8, u8), u8> = Rpc::new("double").version(2);
    let app: Router = Router::new().rpc(
        NEW.lift(1, |n: u8| (n, n)),
        async |Json((a, b)): Json<(u8, u8)>| Json(a + b),
    );
    let client = Client::new(app);
    assert_eq!(client.call(OLD, 2).await.unwrap(), 4);
    assert_eq!(client.call(NEW, (2, 3)).await.unwrap(), 5);
}
