use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use campanile::{
    Kind, Message, Rejection, Reply, RpcCode, RpcError,
    error::{FailureVerdict, find},
};
use http::HeaderValue;
use tokio::time::advance;
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task::Spawn as Call};
use tower::Layer;
use tower_test::mock::{self, SendResponse, Spawn};

use super::*;
use crate::{
    key::Header,
    keyed_mocks::{self, Handle, Inner, by_header, call, message, no_request, only_request, task},
    panics::panic_text,
};

const SECOND: Duration = Duration::from_secs(1);

/// A store in memory that can be made to fail.
#[derive(Debug, Clone)]
struct Faulty {
    memory: MemoryStore,
    down: Arc<AtomicBool>,
}

impl Faulty {
    fn new() -> Self {
        Self {
            memory: MemoryStore::new(),
            down: Arc::default(),
        }
    }

    fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    fn up(&self) -> Result<&MemoryStore, BoxError> {
        match self.down.load(Ordering::SeqCst) {
            true => Err("connection refused".into()),
            false => Ok(&self.memory),
        }
    }
}

impl Store for Faulty {
    async fn claim(&self, key: &str, token: Token, time: Duration) -> Result<Claim, BoxError> {
        self.up()?.claim(key, token, time).await
    }

    async fn renew(&self, key: &str, token: Token, time: Duration) -> Result<bool, BoxError> {
        self.up()?.renew(key, token, time).await
    }

    async fn finish(
        &self,
        key: &str,
        token: Token,
        outcome: Bytes,
        time: Duration,
    ) -> Result<bool, BoxError> {
        self.up()?.finish(key, token, outcome, time).await
    }

    async fn release(&self, key: &str, token: Token) -> Result<(), BoxError> {
        self.up()?.release(key, token).await
    }

    async fn forget(&self, key: &str, outcome: Bytes) -> Result<(), BoxError> {
        self.up()?.forget(key, outcome).await
    }
}

type Layered<K> = Spawn<Idempotency<Inner, Faulty, K>>;

fn by_id(store: &Faulty) -> IdempotencyLayer<Faulty> {
    IdempotencyLayer::new(store.clone())
}

fn by_key(store: &Faulty) -> IdempotencyLayer<Faulty, Header> {
    by_id(store).key(by_header())
}

fn service<K: Clone>(layer: &IdempotencyLayer<Faulty, K>) -> (Layered<K>, Handle) {
    let (inner, handle) = mock::pair();
    (Spawn::new(layer.layer(inner)), handle)
}

/// Calls the service with a message that must not reach the inner service.
fn answered<K: KeyOf>(service: &mut Layered<K>, message: Message) -> Outcome {
    assert_ready_ok!(service.poll_ready());
    assert_ready!(tokio_test::task::spawn(service.call(message)).poll())
}

/// Calls the service with a message, and lets the inner service return this outcome.
fn run<K: KeyOf>(
    service: &mut Layered<K>,
    handle: &mut Handle,
    message: Message,
    outcome: Outcome,
) -> Outcome {
    let payload = String::from_utf8(message.payload().to_vec()).unwrap();
    let mut call = call(service, message);
    let answer = only_request(handle, &payload);
    match outcome {
        Ok(reply) => answer.send_response(reply),
        Err(error) => answer.send_error(error),
    }
    assert_ready!(call.poll())
}

/// Starts a message, and lets its claim expire without polling the call.
async fn stall<K: KeyOf>(
    service: &mut Layered<K>,
    handle: &mut Handle,
) -> (Call<IdempotencyFuture>, SendResponse<Reply>) {
    let stalled = call(service, task("k", "1"));
    let answer = only_request(handle, "1");
    advance(31 * SECOND).await;
    (stalled, answer)
}

fn is_uncounted(error: &BoxError, wait: Option<Duration>) {
    let expected = FailureVerdict::Redeliver {
        after: wait,
        counted: false,
    };
    assert_eq!(FailureVerdict::of(Kind::Task, &**error), Some(expected));
}

#[tokio::test(start_paused = true)]
async fn the_first_delivery_runs_and_later_ones_get_its_reply_while_it_is_stored() {
    let layer = by_id(&Faulty::new()).keep_for(60 * SECOND);
    let (mut service, mut handle) = service(&layer);
    let mut reply = Reply::new(&b"\x00\xff"[..]);
    let value = HeaderValue::from_bytes(b"\xfe").unwrap();
    reply.headers.append("x-a", value.clone());
    reply.headers.append("x-a", HeaderValue::from_static("2"));
    run(&mut service, &mut handle, task("k", "1"), Ok(reply.clone())).unwrap();

    let repeated = answered(&mut service, task("other", "1")).unwrap();
    assert_eq!(repeated.payload, reply.payload);
    assert_eq!(repeated.headers, reply.headers);
    no_request(&mut handle);
    run(
        &mut service,
        &mut handle,
        task("k", "2"),
        Ok(Reply::default()),
    )
    .unwrap();
    advance(60 * SECOND).await;
    run(
        &mut service,
        &mut handle,
        task("k", "1"),
        Ok(Reply::default()),
    )
    .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_message_that_arrives_while_another_one_runs_is_redelivered_without_counting() {
    let layer = by_key(&Faulty::new()).retry_after(3 * SECOND);
    let (mut service, mut handle) = service(&layer);
    let mut first = call(&mut service, task("k", "1"));
    let answer = only_request(&mut handle, "1");
    let error = answered(&mut service, task("k", "2")).unwrap_err();
    assert!(find::<InProgress>(&*error).is_some());
    is_uncounted(&error, Some(3 * SECOND));
    answer.send_response(Reply::new("done"));
    assert_ready_ok!(first.poll());
    let repeated = answered(&mut service, task("k", "2")).unwrap();
    assert_eq!(repeated.payload, "done");
}

#[tokio::test(start_paused = true)]
async fn after_a_transient_failure_the_next_delivery_runs() {
    let (mut service, mut handle) = service(&by_key(&Faulty::new()));
    let passing: [(Kind, BoxError); 4] = [
        (Kind::Task, "disk full".into()),
        // A task that fails with an `RpcError` is redelivered.
        (Kind::Task, RpcError::not_found("yet").into()),
        (Kind::Rpc, RpcError::unavailable("not now").into()),
        (Kind::Rpc, "disk full".into()),
    ];
    for (kind, error) in passing {
        let text = error.to_string();
        let failed = run(
            &mut service,
            &mut handle,
            message(kind, "k", "1"),
            Err(error),
        );
        assert_eq!(failed.unwrap_err().to_string(), text);
    }
    run(
        &mut service,
        &mut handle,
        task("k", "1"),
        Ok(Reply::default()),
    )
    .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_permanent_failure_is_repeated_to_other_messages_and_its_own_message_runs_again() {
    let permanent: [(Kind, BoxError, Option<FailureVerdict>, Option<RpcCode>); 5] = [
        (
            Kind::Task,
            Failure::dead_letter().because("no such order").into(),
            Some(FailureVerdict::DeadLetter),
            None,
        ),
        (
            Kind::Task,
            Rejection::permanent("no JSON").into(),
            Some(FailureVerdict::DeadLetter),
            Some(RpcCode::Invalid),
        ),
        (
            Kind::Task,
            Failure::discard().into(),
            Some(FailureVerdict::Discard),
            None,
        ),
        (
            Kind::Rpc,
            RpcError::not_found("no such user").into(),
            None,
            Some(RpcCode::NotFound),
        ),
        (
            Kind::Rpc,
            Rejection::permanent("no JSON").into(),
            None,
            Some(RpcCode::Invalid),
        ),
    ];
    for (kind, error, settle, code) in permanent {
        let (mut service, mut handle) = service(&by_key(&Faulty::new()));
        let text = record::chain(&*error);
        run(
            &mut service,
            &mut handle,
            message(kind, "k", "1"),
            Err(error),
        )
        .unwrap_err();
        let error = answered(&mut service, message(kind, "k", "2")).unwrap_err();
        assert_eq!(FailureVerdict::of(kind, &*error), settle);
        let repeated = find::<RepeatedFailure>(&*error).unwrap();
        assert_eq!(
            repeated.to_string(),
            format!("an earlier message failed: {text}")
        );
        let answer = find::<RpcError>(&*error);
        assert_eq!(answer.map(RpcError::code), code.as_ref());
        // A replay of the dead letter runs again.
        let reply = Ok(Reply::new("at last"));
        run(&mut service, &mut handle, message(kind, "k", "1"), reply).unwrap();
        let repeated = answered(&mut service, message(kind, "k", "2")).unwrap();
        assert_eq!(repeated.payload, "at last");
    }
}

#[tokio::test(start_paused = true)]
async fn failures_are_not_stored_if_only_successes_are_to_be_remembered() {
    let layer = by_key(&Faulty::new()).remember(Remember::Successes);
    let (mut service, mut handle) = service(&layer);
    for id in ["1", "2"] {
        let dead = Failure::dead_letter().into();
        run(&mut service, &mut handle, task("k", id), Err(dead)).unwrap_err();
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_renewed_while_its_message_runs() {
    let layer = by_key(&Faulty::new()).claim_for(30 * SECOND);
    let (mut service, mut handle) = service(&layer);
    let mut first = call(&mut service, task("k", "1"));
    let _kept = only_request(&mut handle, "1");
    for _ in 0..20 {
        advance(10 * SECOND).await;
        assert!(first.is_woken());
        assert_pending!(first.poll());
    }
    answered(&mut service, task("k", "2")).unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_another_message_runs_once_the_claim_has_expired() {
    let store = Faulty::new();
    let (mut service, mut handle) = service(&by_id(&store).claim_for(30 * SECOND));
    // A process that died does not release its claim.
    let dead = call(&mut service, task("k", "1"));
    let _kept = only_request(&mut handle, "1");
    std::mem::forget(dead);
    advance(30 * SECOND - Duration::from_millis(1)).await;
    answered(&mut service, task("k", "1")).unwrap_err();
    advance(Duration::from_millis(1)).await;
    run(
        &mut service,
        &mut handle,
        task("k", "1"),
        Ok(Reply::default()),
    )
    .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_message_that_stalled_for_longer_than_its_claim_does_not_change_the_claim_of_another() {
    let (mut service, mut handle) = service(&by_key(&Faulty::new()));
    let (mut stalled, late) = stall(&mut service, &mut handle).await;
    let mut second = call(&mut service, task("k", "2"));
    let answer = only_request(&mut handle, "2");
    // The stalled message fails, and must not release the claim of the second.
    late.send_error("too late");
    assert_ready!(stalled.poll()).unwrap_err();
    answered(&mut service, task("k", "3")).unwrap_err();
    answer.send_response(Reply::new("second"));
    assert_ready_ok!(second.poll());
    let repeated = answered(&mut service, task("k", "3")).unwrap();
    assert_eq!(repeated.payload, "second");
}

#[tokio::test(start_paused = true)]
async fn of_two_messages_that_ran_at_once_the_first_outcome_is_stored() {
    let (mut service, mut handle) = service(&by_key(&Faulty::new()));
    let (mut stalled, late) = stall(&mut service, &mut handle).await;
    run(
        &mut service,
        &mut handle,
        task("k", "2"),
        Ok(Reply::new("second")),
    )
    .unwrap();
    late.send_response(Reply::new("late"));
    let own = assert_ready!(stalled.poll()).unwrap();
    assert_eq!(own.payload, "late");
    let repeated = answered(&mut service, task("k", "3")).unwrap();
    assert_eq!(repeated.payload, "second");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_future_releases_its_claim() {
    let (mut service, mut handle) = service(&by_id(&Faulty::new()));
    let dropped = call(&mut service, task("k", "1"));
    let _kept = only_request(&mut handle, "1");
    drop(dropped);
    tokio::task::yield_now().await;
    run(
        &mut service,
        &mut handle,
        task("k", "1"),
        Ok(Reply::default()),
    )
    .unwrap();
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_down_messages_are_redelivered_or_run_as_set() {
    let store = Faulty::new();
    store.set_down(true);
    let (mut service, mut handle) = service(&by_id(&store));
    let error = answered(&mut service, task("k", "1")).unwrap_err();
    let failed = find::<StoreFailed>(&*error).unwrap();
    assert_eq!(failed.source().unwrap().to_string(), "connection refused");
    is_uncounted(&error, None);
    no_request(&mut handle);
    let (mut service, mut handle) = self::service(&by_id(&store).store_down(StoreDown::Run));
    for _ in 0..2 {
        run(
            &mut service,
            &mut handle,
            task("k", "1"),
            Ok(Reply::new("ran")),
        )
        .unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_outcome_counts_even_if_it_cannot_be_stored() {
    let store = Faulty::new();
    let (mut service, mut handle) = service(&by_id(&store));
    let mut first = call(&mut service, task("k", "1"));
    let answer = only_request(&mut handle, "1");
    store.set_down(true);
    advance(10 * SECOND).await;
    assert_pending!(first.poll());
    answer.send_response(Reply::new("done"));
    assert_eq!(assert_ready_ok!(first.poll()).payload, "done");
    store.set_down(false);
    // The claim was not replaced by the outcome. It expires, like the claim of a dead worker.
    answered(&mut service, task("k", "1")).unwrap_err();
    advance(30 * SECOND).await;
    run(
        &mut service,
        &mut handle,
        task("k", "1"),
        Ok(Reply::default()),
    )
    .unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_stored_outcome_is_a_failure_of_the_store_and_is_not_shown() {
    let store = Faulty::new();
    let (mut service, mut handle) = service(&by_id(&store));
    for garbage in [&b"hunter2"[..], br#"{"outcome":"hunter2"}"#, b"{}"] {
        // Each `0:` is the length of an empty name: the message has neither a stream nor a group.
        let key = format!("task:1:a:0::0::{}", garbage.len());
        let (token, bytes) = (Token::new(), Bytes::from_static(garbage));
        store.finish(&key, token, bytes, SECOND).await.unwrap();
        let id = garbage.len().to_string();
        let error = answered(&mut service, task("k", &id)).unwrap_err();
        is_uncounted(&error, None);
        let shown = record::chain(&*error);
        assert!(
            shown.ends_with("a stored outcome cannot be read"),
            "{shown}"
        );
    }
    no_request(&mut handle);
}

#[tokio::test(start_paused = true)]
async fn equal_keys_of_different_kinds_or_names_are_separate() {
    let (mut service, mut handle) = service(&by_key(&Faulty::new()));
    let named = |name: &str, key: &str| {
        let mut message = task(key, "1");
        message.parts_mut().name = name.into();
        message
    };
    let messages = [
        named("a", "k"),
        named("b", "k"),
        named("a:k", "l"),
        named("a", "k:l"),
        message(Kind::Rpc, "k", "1"),
    ];
    for message in messages {
        run(&mut service, &mut handle, message, Ok(Reply::default())).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_without_an_id_passes() {
    let (mut service, mut handle) = service(&by_id(&Faulty::new()));
    for _ in 0..2 {
        let event = message(Kind::Event, "k", "1");
        run(&mut service, &mut handle, event, Ok(Reply::default())).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_in_memory_bounds_its_outcomes() {
    let store = MemoryStore::new().max_outcomes(2);
    for n in 1..=3 {
        let key = n.to_string();
        let outcome = Bytes::from_static(b"x");
        assert!(
            store
                .finish(&key, Token::new(), outcome, n * SECOND)
                .await
                .unwrap()
        );
    }
    assert_eq!(store.outcomes(), 2);
    let oldest = store.claim("1", Token::new(), SECOND).await.unwrap();
    assert_eq!(oldest, Claim::Won);
    advance(2 * SECOND).await;
    assert_eq!(store.outcomes(), 1);
}

#[tokio::test(start_paused = true)]
async fn readiness_reservations_and_missing_keys_are_handled_as_in_every_layer() {
    let store = Faulty::new();
    keyed_mocks::readiness_and_its_error_pass(&by_id(&store));
    keyed_mocks::a_clone_has_no_reservation(&by_id(&store));
    let passing = by_key(&store).missing_key(MissingKey::Pass);
    keyed_mocks::a_message_without_a_key_is_rejected_or_passes(&by_key(&store), &passing);
}

#[test]
fn invalid_numbers_panic_at_the_callers_location() {
    let layer = || by_id(&Faulty::new());
    panic_text(|| layer().claim_for(Duration::ZERO));
    panic_text(|| layer().keep_for(Duration::ZERO));
    panic_text(|| MemoryStore::new().max_outcomes(0));
}
