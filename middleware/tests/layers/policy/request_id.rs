//! Tests of request ids through a chain of messages.

use campanile::{Client, Message, Reply, Router, State};
use campanile_middleware::{RequestId, RequestIdLayer};
use http::HeaderValue;
use tower::Layer;

use super::*;

on_both!(
    an_id_goes_from_a_request_to_the_task_of_its_handler_and_back,
    an_invalid_id_is_replaced_by_the_worker,
);

const HEADER: &str = "x-request-id";

async fn an_id_goes_from_a_request_to_the_task_of_its_handler_and_back(transport: impl Transport) {
    let log = Log::new();
    let seen = log.clone();
    let client = Client::new(RequestIdLayer::new().layer(transport.clone()));
    let inner = client.clone();
    let app = Router::new()
        .rpc("create", async move |id: RequestId| {
            inner.enqueue("mail", "").await?;
            Ok::<_, campanile::Error>(id.to_string())
        })
        .task(
            "mail",
            async move |State(log): State<Log<String>>, id: RequestId| {
                log.add(id.to_string());
            },
        )
        .layer(RequestIdLayer::new())
        .with_state(seen);
    let worker = Worker::start(transport.clone(), app);
    let answers: [Reply; 2] = [
        client.send(Message::rpc("create", "")).await.unwrap(),
        client.send(Message::rpc("create", "")).await.unwrap(),
    ];
    until(async || log.len() == 2).await;
    let ids = answers.map(|reply| {
        assert_eq!(reply.headers[HEADER], &reply.payload[..]);
        String::from_utf8(reply.payload.to_vec()).unwrap()
    });
    assert_ne!(ids[0], ids[1]);
    assert_eq!(log.all(), ids);
    client.publish("news", "").await.unwrap();
    worker.stop().await.unwrap();
}

async fn an_invalid_id_is_replaced_by_the_worker(transport: impl Transport) {
    let app = Router::new()
        .rpc("a", async |id: RequestId| id.to_string())
        .layer(RequestIdLayer::new());
    let worker = Worker::start(transport.clone(), app);
    let client = Client::new(transport);
    let long = "x".repeat(10_000);
    for value in [&b"two words"[..], b"\xff\xfe", long.as_bytes(), b""] {
        let mut message = Message::rpc("a", "");
        let value = HeaderValue::from_bytes(value).unwrap();
        message.headers_mut().insert(HEADER, value);
        let reply = client.send(message).await.unwrap();
        assert_eq!(
            reply.payload.len(),
            "00000000-0000-0000-0000-000000000000".len()
        );
        assert_eq!(reply.headers[HEADER], &reply.payload[..]);
    }
    worker.stop().await.unwrap();
}
