//! Tests of handlers that take many messages at once.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    time::Duration,
};

use campanile::{
    Batch, BoxError, Client, Failure, Handler, Json, Message, Reply, Router, State, error::find,
    handler::batch::BatchError, serve, transport::memory::Memory,
};
use futures_util::{FutureExt, future::join_all};
use tokio::{sync::oneshot, time::Instant};
use tower::{Service, ServiceExt, limit::ConcurrencyLimitLayer, timeout::TimeoutLayer};

const LINGER: Duration = Duration::from_secs(1);

/// The batches that the handler was called with.
type Seen<T> = Arc<Mutex<Vec<Vec<T>>>>;

async fn note(State(seen): State<Seen<u32>>, numbers: Vec<Json<u32>>) {
    let numbers = numbers.into_iter().map(|Json(number)| number).collect();
    seen.lock().unwrap().push(numbers);
}

fn task(payload: impl ToString) -> Message {
    Message::task("n", payload.to_string())
}

/// Calls the service with all of these messages at the same time.
async fn all<S>(service: &S, messages: Vec<Message>) -> Vec<Result<Reply, BoxError>>
where
    S: Service<Message, Response = Reply, Error = BoxError> + Clone,
{
    join_all(messages.into_iter().map(|m| service.clone().oneshot(m))).await
}

fn numbers(range: std::ops::Range<u32>) -> Vec<Message> {
    range.map(task).collect()
}

#[tokio::test(start_paused = true)]
async fn a_full_batch_is_handled_at_once_and_in_order() {
    let seen = Seen::default();
    let service = Batch::new(note)
        .size(4)
        .linger(LINGER)
        .with_state(seen.clone());
    let began = Instant::now();
    for outcome in all(&service, numbers(0..8)).await {
        outcome.unwrap();
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(*seen.lock().unwrap(), [[0, 1, 2, 3], [4, 5, 6, 7]]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_not_full_waits_as_long_as_its_first_message_may() {
    let seen = Seen::default();
    let service = Batch::new(note)
        .size(4)
        .linger(LINGER)
        .with_state(seen.clone());
    let began = Instant::now();
    let later = async {
        tokio::time::sleep(LINGER / 2).await;
        all(&service, numbers(2..3)).await
    };
    tokio::join!(all(&service, numbers(0..2)), later);
    assert_eq!(began.elapsed().as_millis(), LINGER.as_millis());
    assert_eq!(*seen.lock().unwrap(), [[0, 1, 2]]);
}

#[tokio::test(start_paused = true)]
async fn without_a_linger_only_what_comes_at_the_same_time_is_a_batch() {
    let seen = Seen::default();
    let service = Batch::new(note)
        .linger(Duration::ZERO)
        .with_state(seen.clone());
    all(&service, numbers(0..3)).await;
    all(&service, numbers(3..4)).await;
    assert_eq!(*seen.lock().unwrap(), [vec![0, 1, 2], vec![3]]);
}

#[tokio::test(start_paused = true)]
async fn a_bad_payload_fails_its_own_message() {
    let seen = Seen::default();
    let service = Batch::new(note).with_state(seen.clone());
    let outcomes = all(&service, vec![task(1), task("one"), task(3)]).await;
    assert!(
        outcomes[1]
            .as_ref()
            .unwrap_err()
            .is::<campanile::Rejection>()
    );
    assert!(outcomes[0].is_ok() && outcomes[2].is_ok());
    assert_eq!(*seen.lock().unwrap(), [[1, 3]]);
}

#[tokio::test(start_paused = true)]
async fn each_message_has_the_reply_in_its_place() {
    async fn halves(numbers: Vec<Json<u32>>) -> Vec<Result<Json<u32>, Failure>> {
        let half = |Json(number): Json<u32>| match number % 2 {
            0 => Ok(Json(number / 2)),
            _ => Err(Failure::dead_letter()),
        };
        numbers.into_iter().map(half).collect()
    }
    let service = Batch::new(halves).with_state(());
    let outcomes = all(&service, numbers(4..7)).await;
    assert_eq!(outcomes[0].as_ref().unwrap().payload, "2");
    assert!(find::<Failure>(&**outcomes[1].as_ref().unwrap_err()).is_some());
    assert_eq!(outcomes[2].as_ref().unwrap().payload, "3");
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_function_fails_each_message() {
    async fn fail(_: Vec<Message>) -> Result<(), Failure> {
        Err(Failure::dead_letter())
    }
    let service = Batch::new(fail).with_state(());
    for outcome in all(&service, numbers(0..2)).await {
        let error = outcome.unwrap_err();
        assert_eq!(error.to_string(), "the batch failed");
        assert!(find::<Failure>(&*error).is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn replies_that_do_not_match_their_messages_go_to_none() {
    async fn too_few(messages: Vec<Message>) -> Vec<()> {
        vec![(); messages.len() - 1]
    }
    let service = Batch::new(too_few).with_state(());
    for outcome in all(&service, numbers(0..3)).await {
        let error = outcome.unwrap_err();
        assert!(error.is::<BatchError>());
        assert!(
            error.to_string().contains("2 replies to 3 messages"),
            "{error}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_fails_its_batch_and_no_other() {
    async fn touchy(numbers: Vec<Json<u32>>) {
        assert!(numbers.iter().all(|Json(number)| *number < 10));
    }
    let service = Batch::new(touchy).size(2).with_state(());
    let outcomes = all(&service, numbers(9..13)).await;
    for outcome in outcomes {
        assert!(outcome.unwrap_err().to_string().contains("panicked"));
    }
    all(&service, numbers(0..1)).await.remove(0).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_given_up_is_left_out() {
    let seen = Seen::default();
    let service = Batch::new(note)
        .size(3)
        .linger(LINGER)
        .with_state(seen.clone());
    let mut given_up = service.clone().oneshot(task(0)).boxed();
    assert!((&mut given_up).now_or_never().is_none());
    drop(given_up);
    all(&service, numbers(1..2)).await.remove(0).unwrap();
    assert_eq!(*seen.lock().unwrap(), [[1]]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_nobody_waits_for_is_dropped() {
    struct Running(Option<oneshot::Sender<()>>);
    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.take().unwrap().send(());
        }
    }
    let (dropped, was_dropped) = oneshot::channel();
    let running = Arc::new(Mutex::new(Some(Running(Some(dropped)))));
    let handler = move |_: Vec<Message>| {
        let running = running.lock().unwrap().take();
        async move {
            let _running = running;
            std::future::pending::<()>().await
        }
    };
    let service = Batch::new(handler).size(2).with_state(());
    let impatient = TimeoutLayer::new(LINGER);
    let service = tower::ServiceBuilder::new()
        .layer(impatient)
        .service(service);
    for outcome in all(&service, numbers(0..2)).await {
        assert!(outcome.unwrap_err().is::<tower::timeout::error::Elapsed>());
    }
    was_dropped.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn layers_apply_to_each_message() {
    let seen = Seen::default();
    let limited = Batch::new(note)
        .size(8)
        .linger(LINGER)
        .layer(ConcurrencyLimitLayer::new(2));
    let service = limited.with_state(seen.clone());
    let began = Instant::now();
    all(&service, numbers(0..4)).await;
    // The limit has fewer permits than the batch has messages, so each batch waits for its linger.
    assert_eq!(*seen.lock().unwrap(), [[0, 1], [2, 3]]);
    assert_eq!(began.elapsed().as_millis(), 2 * LINGER.as_millis());
}

#[tokio::test(start_paused = true)]
async fn each_delivery_of_a_batch_is_settled_on_its_own() {
    async fn odd_ones_die(numbers: Vec<Json<u32>>) -> Vec<Result<(), Failure>> {
        let settle = |Json(number): Json<u32>| match number % 2 {
            0 => Ok(()),
            _ => Err(Failure::dead_letter()),
        };
        numbers.into_iter().map(settle).collect()
    }
    let heard = Seen::default();
    let app = Router::new()
        .task("n", Batch::new(odd_ones_die).size(16))
        .event("n", Batch::new(note).size(16))
        .with_state(heard.clone());
    let memory = Memory::new();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = serve(memory.clone(), app)
        .with_graceful_shutdown(stopped.map(drop))
        .into_future();
    let worker = tokio::spawn(serving);
    tokio::time::sleep(LINGER).await;
    let client = Client::new(memory.clone());
    for number in 0..5 {
        client.publish("n", Json(number)).await.unwrap();
    }
    for receipt in client.enqueue_all("n", (0..40).map(Json)).await {
        receipt.unwrap();
    }
    tokio::time::sleep(LINGER).await;
    drop(stop);
    worker.await.unwrap().unwrap();
    let counts = memory.counts();
    assert_eq!((counts.done, counts.dead), (20, 20));
    assert_eq!(heard.lock().unwrap().concat(), [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn a_batch_larger_than_what_may_be_in_flight_is_refused() {
    let app = || -> Router {
        Router::new().nest(
            "a",
            Router::new().task("n", Batch::new(async |_: Vec<Message>| ()).size(65)),
        )
    };
    assert_eq!(app().interest().batch_size, 65);
    let memory = Memory::new();
    let error = serve(memory.clone().max_in_flight(64), app())
        .await
        .unwrap_err();
    assert!(error.is_config());
    let text = error.to_string();
    assert!(
        text.contains("65") && text.contains("raise `max_in_flight`"),
        "{text}"
    );
    // A worker of the same app whose limit is as large as the batch is not refused.
    let serving = serve(memory.max_in_flight(65), app()).into_future();
    assert!(tokio::time::timeout(LINGER / 10, serving).await.is_err());
}

#[test]
fn a_batch_of_none_panics_where_it_is_made() {
    let hook = std::panic::take_hook();
    let at = Arc::new(Mutex::new(None));
    let note = at.clone();
    std::panic::set_hook(Box::new(move |panic| {
        *note.lock().unwrap() = panic.location().map(|at| at.file().to_owned());
    }));
    let made = catch_unwind(AssertUnwindSafe(|| {
        Batch::new(async |_: Vec<Message>| ()).size(0)
    }));
    std::panic::set_hook(hook);
    assert!(made.is_err());
    assert_eq!(at.lock().unwrap().as_deref(), Some(file!()));
}
