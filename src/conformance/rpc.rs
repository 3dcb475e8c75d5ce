//! Checks of requests and replies, in both reply modes.

use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use super::{
    Factory,
    scene::{QUIET, Scene, answer, call, message, outcome, redeliver_after, settle, spawn_request},
};
use crate::{
    RpcCode,
    error::{Error, RpcError},
    message::{Deadline, Message, ReplyMode},
    reply::Reply,
    transport::{Discarded, Verdict},
};

/// Returns the reply modes that the transport supports.
fn supported_modes<F: Factory>(factory: &F) -> impl Iterator<Item = ReplyMode> + use<F> {
    let capabilities = factory.capabilities();
    [
        (ReplyMode::Reliable, capabilities.reliable_rpc),
        (ReplyMode::Fast, capabilities.fast_rpc),
    ]
    .into_iter()
    .filter_map(|(mode, is_supported)| is_supported.then_some(mode))
}

fn rpc_request(mode: ReplyMode, payload: impl Into<bytes::Bytes>) -> Message {
    let mut message = Message::rpc("user.get", payload);
    message.parts_mut().reply_mode = mode;
    message
}

fn with_deadline(mut message: Message, after: Duration) -> Message {
    message.parts_mut().deadline = Some(Deadline::after(after));
    message
}

/// Returns the code of an error reply.
fn error_code(outcome: Result<Reply, Error>) -> RpcCode {
    let error = outcome.expect_err("an error was answered");
    let answer = error.rpc();
    answer
        .unwrap_or_else(|| panic!("no typed answer: {}", error.chain()))
        .code()
        .clone()
}

/// Checks that a reply arrives with its payload and its headers, which may have any bytes.
pub async fn a_request_gets_its_reply<F: Factory>(factory: &F) {
    for mode in supported_modes(factory) {
        let scene = Scene::new(factory);
        let handle = scene.handle().await;
        let mut worker = scene.worker().await;
        for payload in [&b""[..], b"{\"id\":42}", b"\x00\xff\xfe"] {
            let request = spawn_request(&handle, rpc_request(mode, payload));
            let delivery = worker.one().await;
            assert_eq!(message(&delivery).payload(), payload);
            assert_eq!(message(&delivery).parts().reply_mode, mode);
            let mut reply = Reply::new(payload);
            let binary = HeaderValue::from_bytes(b"\xff").expect("a valid value");
            reply.headers.append("x-a", HeaderValue::from_static("1"));
            reply.headers.append("x-a", binary);
            let headers = reply.headers.clone();
            answer(delivery, Ok(reply)).await;
            let reply = outcome(request).await.expect("a reply");
            assert_eq!(reply.payload, payload, "{mode:?}");
            assert_eq!(reply.headers, headers, "{mode:?}");
        }
        worker
            .nothing_for(QUIET, "an answered request came back")
            .await;
        worker.close().await;
    }
}

/// Checks that an error reply arrives with its code and its text, even if the text is empty.
pub async fn a_request_gets_its_error<F: Factory>(factory: &F) {
    for mode in supported_modes(factory) {
        let scene = Scene::new(factory);
        let handle = scene.handle().await;
        let mut worker = scene.worker().await;
        for error in [
            RpcError::not_found("no such user"),
            RpcError::new(RpcCode::Other("quota".into()), "größer als erlaubt"),
            RpcError::internal(""),
        ] {
            let request = spawn_request(&handle, rpc_request(mode, "{}"));
            answer(worker.one().await, Err(error.clone())).await;
            let got = outcome(request).await.expect_err("an error was answered");
            let got = got.rpc().expect("a typed answer");
            assert_eq!(got.code(), error.code());
            if !error.message().is_empty() {
                assert_eq!(got.message(), error.message());
            }
        }
        worker.close().await;
    }
}

/// Checks that concurrent requests each get their own reply, even if the replies come in another
/// order.
pub async fn concurrent_requests_get_their_own_replies<F: Factory>(factory: &F) {
    const REQUESTS: usize = 50;
    for mode in supported_modes(factory) {
        let scene = Scene::new(factory);
        let handles = [scene.handle().await, scene.handle().await];
        let mut worker = scene.worker().await;
        let requests: Vec<_> = (0..REQUESTS)
            .map(|number| {
                spawn_request(&handles[number % 2], rpc_request(mode, number.to_string()))
            })
            .collect();
        let mut deliveries = worker.exactly(REQUESTS).await;
        deliveries.reverse();
        for delivery in deliveries {
            let reply = Reply::new(message(&delivery).payload().clone());
            answer(delivery, Ok(reply)).await;
        }
        for (number, request) in requests.into_iter().enumerate() {
            let reply = outcome(request).await.expect("a reply");
            assert_eq!(reply.payload, number.to_string());
        }
        worker.close().await;
    }
}

/// Checks that a redelivered request is answered by its last delivery.
pub async fn a_redelivered_request_is_answered_in_the_end<F: Factory>(factory: &F) {
    for mode in supported_modes(factory) {
        let scene = Scene::new(factory);
        let handle = scene.handle().await;
        let mut one = scene.worker().await;
        let request = spawn_request(&handle, rpc_request(mode, "{}"));
        settle(one.one().await, redeliver_after(Duration::ZERO)).await;
        one.close().await;
        let mut other = scene.worker().await;
        answer(other.one().await, Ok(Reply::new("at last"))).await;
        assert_eq!(outcome(request).await.expect("a reply").payload, "at last");
        other.close().await;
    }
}

/// Checks that a request that becomes a dead letter or is discarded is answered with the error of
/// the verdict. A request that has used up its deliveries is answered with `unavailable`.
pub async fn a_request_that_is_given_up_is_answered<F: Factory>(factory: &F) {
    for mode in supported_modes(factory) {
        let scene = Scene::new(factory).with(|settings| settings.max_deliveries = 1);
        let handle = scene.handle().await;
        let mut worker = scene.worker().await;
        let verdicts = [
            (
                Verdict::DeadLetter {
                    reason: "bad".into(),
                    answer: Some(RpcError::invalid("bad")),
                },
                RpcCode::Invalid,
            ),
            (
                Verdict::Discard {
                    reason: Discarded::Requested,
                    answer: Some(RpcError::internal("dropped")),
                },
                RpcCode::Internal,
            ),
            (redeliver_after(Duration::ZERO), RpcCode::Unavailable),
        ];
        for (verdict, expected) in verdicts {
            let request = spawn_request(&handle, rpc_request(mode, "{}"));
            settle(worker.one().await, verdict).await;
            assert_eq!(error_code(outcome(request).await), expected);
        }
        worker.close().await;
    }
}

/// Checks that a caller waits until its deadline, and that the delivery has the deadline.
pub async fn a_request_ends_at_its_deadline<F: Factory>(factory: &F) {
    const BUDGET: Duration = Duration::from_millis(500);
    for mode in supported_modes(factory) {
        let scene = Scene::new(factory);
        let handle = scene.handle().await;
        let mut worker = scene.worker().await;
        let start = Instant::now();
        let request = spawn_request(&handle, with_deadline(rpc_request(mode, "{}"), BUDGET));
        let delivery = worker.one().await;
        let deadline = message(&delivery).parts().deadline;
        let deadline = deadline.expect("the deadline did not travel");
        assert!(!deadline.has_passed(), "it arrived as expired");
        assert!(deadline.remaining() <= BUDGET, "the deadline moved away");
        let error = outcome(request).await.expect_err("nobody answered");
        assert!(error.is_timeout(), "{error:?}");
        assert!(
            start.elapsed() >= BUDGET,
            "it gave up after {:?}",
            start.elapsed()
        );
        assert!(
            start.elapsed() < BUDGET * 10,
            "it waited {:?}",
            start.elapsed()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(deadline.has_passed(), "the worker's deadline is later");
        // A late reply is accepted and dropped.
        answer(delivery, Ok(Reply::new("late"))).await;
        worker.close().await;
    }
}

/// Checks that a request without a worker fails at its deadline. A worker that starts later gets
/// the request with a deadline that has passed.
pub async fn a_request_without_a_worker_ends_at_its_deadline<F: Factory>(factory: &F) {
    for mode in supported_modes(factory) {
        let scene = Scene::new(factory);
        let handle = scene.handle().await;
        let expiring = with_deadline(rpc_request(mode, "{}"), Duration::from_millis(200));
        let error = call(&handle, expiring).await.expect_err("nobody answered");
        assert!(error.is_timeout(), "{error:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut worker = scene.worker().await;
        let delivery = worker.one().await;
        let deadline = message(&delivery).parts().deadline;
        assert!(
            deadline.is_some_and(Deadline::has_passed),
            "an expired request looks alive: {deadline:?}"
        );
        answer(delivery, Err(RpcError::deadline("too late"))).await;
        worker.close().await;
    }
}

/// Checks that neither a dropped request nor a reply to it affects other requests.
pub async fn a_dropped_request_disturbs_no_other<F: Factory>(factory: &F) {
    for mode in supported_modes(factory) {
        let scene = Scene::new(factory);
        let handle = scene.handle().await;
        let mut worker = scene.worker().await;
        let dropped = spawn_request(&handle, rpc_request(mode, "dropped"));
        let first = worker.one().await;
        dropped.abort();
        let _ = dropped.await;
        let waiting = spawn_request(&handle, rpc_request(mode, "kept"));
        let second = worker.one().await;
        answer(first, Ok(Reply::new("for nobody"))).await;
        answer(second, Ok(Reply::new("for you"))).await;
        assert_eq!(outcome(waiting).await.expect("a reply").payload, "for you");
        worker.close().await;
    }
}
