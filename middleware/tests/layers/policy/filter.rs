//! Tests of filters.

use campanile::{BoxError, Client, Failure, Message, Rejection, Router, RpcError};
use campanile_middleware::FilterLayer;
use tower::Layer;

use super::*;

on_both!(
    a_rejected_message_is_settled_as_its_error_says,
    a_client_does_not_send_a_rejected_message,
);

fn check(message: &Message) -> Result<(), BoxError> {
    match &message.payload()[..] {
        b"bad" => Err(Rejection::permanent("it is bad").into()),
        b"foreign" => Err(Failure::discard()
            .because(RpcError::not_found("not here"))
            .into()),
        _ => Ok(()),
    }
}

async fn a_rejected_message_is_settled_as_its_error_says(transport: impl Transport) {
    let log = Log::new();
    let (tasks, requests) = (log.clone(), log.clone());
    let app = Router::new()
        .task("a", async move |payload: String| tasks.add(payload))
        .rpc("b", async move |payload: String| requests.add(payload))
        .layer(FilterLayer::new(check));
    let worker = Worker::start(transport.clone(), app);
    let client = Client::new(transport.clone());
    for payload in ["bad", "foreign", "good"] {
        client.enqueue("a", payload).await.unwrap();
    }
    let letter = dead(&transport).await;
    let reason = "given up by the worker as permanent: it is bad";
    assert_eq!((letter.attempts, &*letter.reason), (1, reason));
    until(async || transport.counts().discarded == 1 && transport.counts().done == 1).await;
    let answer = async |payload| {
        let error = client.request::<()>("b", payload).await.unwrap_err();
        error.rpc().cloned().expect("an answer")
    };
    assert_eq!(answer("bad").await, RpcError::invalid("it is bad"));
    assert_eq!(answer("foreign").await, RpcError::not_found("not here"));
    client.request::<()>("b", "good").await.unwrap();
    assert_eq!(log.all(), ["good", "good"]);
    worker.stop().await.unwrap();
}

async fn a_client_does_not_send_a_rejected_message(transport: impl Transport) {
    let client = Client::new(FilterLayer::new(check).layer(transport.clone()));
    let error = client.enqueue("a", "bad").await.unwrap_err();
    assert!(campanile::error::find::<Rejection>(&error).is_some());
    client.enqueue("a", "good").await.unwrap();
    assert_eq!(transport.counts().sent, 1);
}
