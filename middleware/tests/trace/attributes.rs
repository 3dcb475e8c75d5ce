//! Tests of the names and attributes of spans.

use std::time::Duration;

use campanile::{Failure, Router, transport::Broker};
use campanile_middleware::{TraceLayer, trace::DefaultMakeSpan};
use opentelemetry::trace::Status;

use crate::{
    exported::{self, attribute, span},
    on_both,
    support::{raw::eventually, worker::Worker},
    traced,
};

on_both!(
    spans_have_the_attributes_of_the_conventions,
    a_failure_has_its_class_and_its_text,
    names_without_a_route_are_no_part_of_a_spans_name,
    an_events_pattern_is_its_template,
);

async fn spans_have_the_attributes_of_the_conventions(broker: impl Broker, name: &'static str) {
    exported::start();
    let (task, rpc) = (format!("{name}.task"), format!("{name}.rpc"));
    let app: Router = Router::new()
        .task(task.clone(), async || {})
        .rpc(rpc.clone(), async || {})
        .layer(
            TraceLayer::new().make_span(DefaultMakeSpan::new().system("test").group("app_group")),
        );
    let client = traced(&broker);
    let _worker = Worker::start(broker, app);
    let receipt = client.enqueue(task.clone(), "12345").await.unwrap();
    client.request::<()>(rpc.clone(), "").await.unwrap();

    let id = receipt.id().map(|id| id.to_string());
    let is = |span: &str, expected: &[(&str, Option<&str>)]| {
        let (span, expected) = (span.to_owned(), expected.to_vec());
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.map(str::to_owned)))
            .collect();
        async move {
            let found = exported::span(&span).await;
            for (key, value) in expected {
                assert_eq!(attribute(&found, &key), value, "{key} of {span}");
            }
        }
    };
    is(
        &format!("send {task}"),
        &[
            ("messaging.system", Some("redis")),
            ("messaging.operation.name", Some("send")),
            ("messaging.operation.type", Some("send")),
            ("messaging.destination.name", Some(&task)),
            ("messaging.destination.template", None),
            ("messaging.consumer.group.name", None),
            ("messaging.message.id", id.as_deref()),
            ("messaging.message.body.size", Some("5 as a number")),
            ("campanile.message.kind", Some("task")),
            ("campanile.message.attempt", None),
            ("error.type", None),
        ],
    )
    .await;
    is(
        &format!("process {task}"),
        &[
            ("messaging.system", Some("test")),
            ("messaging.operation.name", Some("process")),
            ("messaging.operation.type", Some("process")),
            ("messaging.destination.name", Some(&task)),
            ("messaging.destination.template", None),
            ("messaging.consumer.group.name", Some("app_group")),
            ("messaging.message.id", id.as_deref()),
            ("messaging.message.conversation_id", None),
            ("messaging.message.body.size", Some("5 as a number")),
            ("campanile.message.kind", Some("task")),
            ("campanile.message.attempt", Some("1 as a number")),
            ("error.type", None),
        ],
    )
    .await;
    is(
        &format!("request {rpc}"),
        &[
            ("messaging.operation.name", Some("request")),
            ("messaging.operation.type", Some("send")),
            ("campanile.message.kind", Some("rpc")),
        ],
    )
    .await;
    let process = span(&format!("process {rpc}")).await;
    let conversation = attribute(&process, "messaging.message.conversation_id").unwrap();
    assert_eq!(conversation.len(), 36, "{conversation} is no UUID");
    assert_eq!(process.status, Status::Unset);
}

async fn a_failure_has_its_class_and_its_text(broker: impl Broker, name: &'static str) {
    exported::start();
    let names = ["fails", "panics", "hangs"].map(|end| format!("{name}.{end}"));
    let [fails, panics, hangs] = names.clone();
    let (begin, mut begun) = tokio::sync::mpsc::channel(1);
    let app: Router = Router::new()
        .task(fails, async || {
            Err::<(), _>(Failure::dead_letter().because("the disk is full"))
        })
        .rpc(panics, async || {
            if true {
                panic!("on purpose");
            }
        })
        .rpc(hangs, async move || {
            let _ = begin.send(()).await;
            std::future::pending::<()>().await;
        })
        .layer(TraceLayer::new());
    let client = traced(&broker);
    let worker = Worker::start(broker, app);
    client.enqueue(names[0].clone(), "").await.unwrap();
    client
        .request::<()>(names[1].clone(), "")
        .await
        .unwrap_err();
    let impatient = tokio::spawn(client.request::<()>(names[2].clone(), "").into_future());
    begun.recv().await.unwrap();
    impatient.abort();
    drop(worker);

    let ended = async |title: String| {
        let span = span(&title).await;
        let class = attribute(&span, "error.type");
        let Status::Error { description } = &span.status else {
            panic!("{title}: {:?}", span.status);
        };
        (class.unwrap_or_default(), description.to_string())
    };
    let (class, text) = ended(format!("process {}", names[0])).await;
    assert_eq!(class, "dead_letter");
    assert_eq!(text, "the delivery failed for good: the disk is full");
    assert_eq!(ended(format!("process {}", names[1])).await.0, "panic");
    assert_eq!(ended(format!("request {}", names[1])).await.0, "internal");
    assert_eq!(ended(format!("request {}", names[2])).await.0, "dropped");
    assert_eq!(ended(format!("process {}", names[2])).await.0, "dropped");
}

async fn names_without_a_route_are_no_part_of_a_spans_name(
    broker: impl Broker,
    name: &'static str,
) {
    exported::start();
    let inner = Router::new().fallback(async || {});
    let app: Router = Router::new().nest(name, inner).layer(TraceLayer::new());
    let client = traced(&broker);
    let _worker = Worker::start(broker, app);
    let (nested, stray) = (format!("{name}.7"), format!("stray {name}"));
    client.request::<()>(nested.clone(), "").await.unwrap();
    client.request::<()>(stray.clone(), "").await.unwrap_err();

    let fallback = span(&format!("process {name}")).await;
    assert_eq!(
        attribute(&fallback, "messaging.destination.name"),
        Some(nested)
    );
    assert_eq!(
        attribute(&fallback, "messaging.destination.template").as_deref(),
        Some(name)
    );
    let unknown = || async {
        exported::all().into_iter().find(|span| {
            span.name == "process"
                && attribute(span, "messaging.destination.name").as_ref() == Some(&stray)
        })
    };
    let unknown = eventually(unknown, Duration::from_secs(30)).await;
    assert_eq!(
        attribute(&unknown, "error.type").as_deref(),
        Some("not_found")
    );
}

async fn an_events_pattern_is_its_template(broker: impl Broker, name: &'static str) {
    exported::start();
    let pattern = format!("{name}.*");
    let app: Router = Router::new()
        .event_pattern(pattern.clone(), async || {})
        .rpc("up", async || {})
        .layer(TraceLayer::new());
    let client = traced(&broker);
    let _worker = Worker::start(broker, app);
    client.request::<()>("up", ()).await.unwrap();
    client.publish(format!("{name}.7"), "").await.unwrap();
    let process = span(&format!("process {pattern}")).await;
    assert_eq!(
        attribute(&process, "messaging.destination.template"),
        Some(pattern)
    );
    assert_eq!(
        attribute(&process, "messaging.destination.name"),
        Some(format!("{name}.7"))
    );
}
