//! Tests that a malformed context never fails a message.

use campanile::{Client, Router, transport::Broker};
use campanile_middleware::TraceLayer;
use http::HeaderValue;

use crate::{
    exported::{self, is_root, span},
    on_both,
    support::worker::Worker,
};

on_both!(a_malformed_traceparent_is_ignored_and_logged);

const MALFORMED: [&[u8]; 9] = [
    b"",
    b"nonsense",
    b"00-xyz-abc-01",
    b"00-00000000000000000000000000000000-0000000000000000-00",
    b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
    b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
    b"------------------------------------------------------",
    b"\xff\xfe",
];

async fn a_malformed_traceparent_is_ignored_and_logged(broker: impl Broker, name: &'static str) {
    exported::start();
    let names: Vec<_> = (0..MALFORMED.len())
        .map(|n| format!("{name}.{n}"))
        .collect();
    let app = names.iter().fold(Router::new(), |app: Router, name| {
        app.rpc(name.clone(), async || "handled")
    });
    let client = Client::new(broker.clone());
    let _worker = Worker::start(broker, app.layer(TraceLayer::new()));
    let before = exported::malformed();
    for (name, bytes) in names.iter().zip(MALFORMED) {
        let value = HeaderValue::from_bytes(bytes).unwrap();
        let answer = client
            .request(name.as_str(), ())
            .header("traceparent", value);
        let answer: String = answer.await.unwrap();
        assert_eq!(answer, "handled");
        let process = span(&format!("process {name}")).await;
        assert!(is_root(&process) && process.links.is_empty(), "{name}");
    }
    // Other tests may log such lines too.
    assert!(exported::malformed() >= before + MALFORMED.len());
}

#[tokio::test]
async fn a_malformed_context_is_replaced_by_that_of_the_sending_span() {
    exported::start();
    let (tell, told) = std::sync::mpsc::channel();
    let service = tower::service_fn(move |message: campanile::Message| {
        tell.send(message.headers().clone()).unwrap();
        std::future::ready(Ok::<_, campanile::BoxError>(campanile::Reply::default()))
    });
    let client = Client::new(tower::Layer::layer(&TraceLayer::new_for_client(), service));
    let call = client
        .enqueue("replaced", "")
        .header("traceparent", "nonsense");
    call.await.unwrap();
    let send = span("send replaced").await;
    let header = told.recv().unwrap()["traceparent"].clone();
    let sent = send.span_context.span_id().to_string();
    assert!(header.to_str().unwrap().contains(&sent), "{header:?}");
}
