//! Tests of the parents and links of spans.

use campanile::{Client, Kind, Message, Router, transport::Broker};
use campanile_middleware::{TraceLayer, TraceTransport, trace::DefaultMakeSpan};
use http::HeaderValue;
use opentelemetry::{
    propagation::TextMapPropagator,
    trace::{SpanKind, TraceContextExt},
};
use opentelemetry_sdk::{propagation::TraceContextPropagator, trace::SpanData};
use tower::{Layer, ServiceExt, service_fn};
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::{
    exported::{self, has_parent, is_root, links_to, span},
    on_both,
    support::worker::Worker,
    traced,
};

const FOREIGN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const FOREIGN_TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const FOREIGN_SPAN: &str = "00f067aa0ba902b7";

on_both!(
    a_trace_runs_from_an_http_request_through_a_task_to_a_request_and_back,
    a_task_can_start_a_new_trace,
    a_received_batch_links_to_the_spans_that_sent_its_messages,
    events_are_published_without_a_context,
);

/// The span that an HTTP server makes of a request with this `traceparent`.
fn http_span(name: &str) -> tracing::Span {
    let span = tracing::info_span!("http", otel.name = name, otel.kind = "server");
    let headers = [("traceparent".to_owned(), FOREIGN.to_owned())];
    let context = TraceContextPropagator::new().extract(&std::collections::HashMap::from(headers));
    span.set_parent(context).unwrap();
    span
}

async fn a_trace_runs_from_an_http_request_through_a_task_to_a_request_and_back(
    broker: impl Broker,
    name: &'static str,
) {
    exported::start();
    let (order, price) = (format!("{name}.order"), format!("{name}.price"));
    let client = traced(&broker);
    let (asked, calls) = (price.clone(), client.clone());
    let app: Router = Router::new()
        .task(order.clone(), async move || {
            calls.request::<String>(asked, "tea").await.map(drop)
        })
        .rpc(price.clone(), async |_: String| "three pounds")
        .layer(TraceLayer::new());
    let _worker = Worker::start(broker, app);

    let get = format!("GET /{name}");
    let enqueued = client.enqueue(order.clone(), "").into_future();
    enqueued.instrument(http_span(&get)).await.unwrap();

    let process_order = span(&format!("process {order}")).await;
    let request = span(&format!("request {price}")).await;
    let process_price = span(&format!("process {price}")).await;
    let send = span(&format!("send {order}")).await;
    let http = span(&get).await;

    // All spans are of one trace, and the parent of each span is the span that caused it.
    assert_eq!(http.span_context.trace_id().to_string(), FOREIGN_TRACE);
    assert!(has_parent(&send, &http));
    assert!(has_parent(&process_order, &send));
    assert!(has_parent(&request, &process_order));
    assert!(has_parent(&process_price, &request));
    assert!(process_order.parent_span_is_remote && process_price.parent_span_is_remote);
    // A `process` span links to the span that sent its message, and to nothing else.
    assert!(links_to(&process_order, &send) && links_to(&process_price, &request));
    assert_eq!(process_order.links.len(), 1);
    assert!(send.links.is_empty() && request.links.is_empty());
    // The request ends after it was handled.
    assert!(request.end_time >= process_price.start_time);
    assert_eq!(send.span_kind, SpanKind::Producer);
    assert_eq!(process_order.span_kind, SpanKind::Consumer);
    assert_eq!(request.span_kind, SpanKind::Client);
    assert_eq!(process_price.span_kind, SpanKind::Consumer);
}

async fn a_task_can_start_a_new_trace(broker: impl Broker, name: &'static str) {
    exported::start();
    let (task, rpc) = (format!("{name}.task"), format!("{name}.rpc"));
    let app: Router = Router::new()
        .task(task.clone(), async || {})
        .rpc(rpc.clone(), async || {})
        .layer(TraceLayer::new().own_trace_for(Kind::Task));
    let client = traced(&broker);
    let _worker = Worker::start(broker, app);
    client.enqueue(task.clone(), "").await.unwrap();
    client.request::<()>(rpc.clone(), "").await.unwrap();

    let process = span(&format!("process {task}")).await;
    let send = span(&format!("send {task}")).await;
    assert!(is_root(&process) && links_to(&process, &send));
    assert_ne!(
        process.span_context.trace_id(),
        send.span_context.trace_id()
    );
    let process = span(&format!("process {rpc}")).await;
    assert!(has_parent(&process, &span(&format!("request {rpc}")).await));
}

async fn a_received_batch_links_to_the_spans_that_sent_its_messages(
    broker: impl Broker,
    name: &'static str,
) {
    exported::start();
    let client = traced(&broker);
    // A worker's first read brings a single message, to learn the size of messages. The other two
    // arrive together.
    for _ in 0..3 {
        client.enqueue(name, "").await.unwrap();
    }
    let app: Router = Router::new().task(name, async || {});
    // Other tests receive from a stream of the same name. The links identify the spans of this
    // test.
    let spans = DefaultMakeSpan::new().system("test");
    let _worker = Worker::start(TraceTransport::new(broker).make_span(spans), app);
    let send = format!("send {name}");
    let sent = || exported::all().into_iter().filter(|span| span.name == send);
    let linked = |span: &SpanData| sent().filter(|sent| links_to(span, sent)).count();
    let receiving = || {
        let spans = exported::all().into_iter();
        spans.filter(|span| span.name == "receive app_stream" && linked(span) > 0)
    };
    let all =
        || async { (receiving().map(|span| linked(&span)).sum::<usize>() == 3).then_some(()) };
    crate::support::raw::eventually(all, std::time::Duration::from_secs(30)).await;
    let received = receiving().find(|span| linked(span) > 1);
    let received = received.expect("some were received together");
    let together = format!("{} as a number", linked(&received));
    assert_eq!(received.span_kind, SpanKind::Client);
    let attribute = |key| exported::attribute(&received, key);
    assert_eq!(attribute("messaging.batch.message_count"), Some(together));
    assert_eq!(
        attribute("messaging.consumer.group.name").as_deref(),
        Some("app_group")
    );
    assert_eq!(attribute("messaging.system").as_deref(), Some("test"));
}

async fn events_are_published_without_a_context(broker: impl Broker, name: &'static str) {
    exported::start();
    let app: Router = Router::new()
        .event(name, async || {})
        .rpc("up", async || {})
        .layer(TraceLayer::new());
    let client = traced(&broker);
    let _worker = Worker::start(broker, app);
    // The reply shows that the worker runs, and so has subscribed.
    client.request::<()>("up", ()).await.unwrap();
    client.publish(name, "news").await.unwrap();

    let process = span(&format!("process {name}")).await;
    let publish = span(&format!("publish {name}")).await;
    assert!(is_root(&process) && process.links.is_empty());
    assert_eq!(publish.span_kind, SpanKind::Producer);
}

#[tokio::test]
async fn a_message_handled_within_another_span_is_its_child_and_links_to_the_sender() {
    exported::start();
    let app: Router = Router::new()
        .task("within", async || {})
        .layer(TraceLayer::new());
    let mut message = Message::task("within", "");
    let foreign = HeaderValue::from_static(FOREIGN);
    message.headers_mut().insert("traceparent", foreign);
    let around = tracing::info_span!("around", otel.name = "around it");
    app.oneshot(message).instrument(around).await.unwrap();

    let process = span("process within").await;
    assert!(has_parent(&process, &span("around it").await));
    let link = process.links.iter().next().unwrap();
    assert_eq!(link.span_context.trace_id().to_string(), FOREIGN_TRACE);
    assert_eq!(link.span_context.span_id().to_string(), FOREIGN_SPAN);
}

/// Sends a task with this `traceparent` (none if empty). Returns the headers that the service
/// behind the client's layer receives.
async fn sent(name: &str, given: &'static str) -> http::HeaderMap {
    let (tell, told) = std::sync::mpsc::channel();
    let service = service_fn(move |message: Message| {
        tell.send(message.headers().clone()).unwrap();
        std::future::ready(Ok::<_, campanile::BoxError>(campanile::Reply::default()))
    });
    let client = Client::new(TraceLayer::new_for_client().layer(service));
    let call = client.enqueue(name, "");
    let call = match given {
        "" => call,
        given => call.header("traceparent", given),
    };
    call.await.unwrap();
    told.recv().unwrap()
}

#[tokio::test]
async fn a_context_of_another_trace_is_kept_and_linked_to() {
    exported::start();
    let headers = sent("on.purpose", FOREIGN).await;
    assert_eq!(headers["traceparent"], FOREIGN);
    let send = span("send on.purpose").await;
    let link = send.links.iter().next().unwrap();
    assert_eq!(link.span_context.span_id().to_string(), FOREIGN_SPAN);
}

#[tokio::test]
async fn a_context_of_the_same_trace_is_replaced_by_the_nearer_one() {
    exported::start();
    let http = http_span("GET /nearer");
    let headers = sent("nearer", FOREIGN).instrument(http).await;
    let send = span("send nearer").await;
    let nearer = format!("00-{FOREIGN_TRACE}-{}-01", send.span_context.span_id());
    assert_eq!(headers["traceparent"], nearer);
    assert!(send.links.is_empty());
    // An empty `tracestate` is not sent.
    assert!(!headers.contains_key("tracestate"));
}

#[tokio::test]
async fn the_context_around_a_span_that_is_filtered_out_is_sent() {
    exported::start();
    let (tell, told) = std::sync::mpsc::channel();
    let service = service_fn(move |message: Message| {
        tell.send(message.headers().clone()).unwrap();
        std::future::ready(Ok::<_, campanile::BoxError>(campanile::Reply::default()))
    });
    let layer = TraceLayer::new_for_client().make_span(|_: &Message, _| tracing::Span::none());
    let around = tracing::info_span!("around", otel.name = "around what is filtered");
    let expected = around.context().span().span_context().span_id();
    let call = layer.layer(service).oneshot(Message::rpc("filtered", ""));
    call.instrument(around).await.unwrap();
    let header = told.recv().unwrap()["traceparent"].clone();
    assert!(header.to_str().unwrap().contains(&expected.to_string()));
}

#[tokio::test]
async fn the_application_can_choose_its_own_propagator() {
    exported::start();
    let layer = TraceLayer::new_for_client().use_global_propagator();
    let service = service_fn(|message: Message| async move {
        // No global propagator is set here, so no header is written.
        assert!(message.headers().is_empty());
        Ok::<_, campanile::BoxError>(campanile::Reply::default())
    });
    let call = layer.layer(service).oneshot(Message::task("global", ""));
    call.await.unwrap();
    span("send global").await;
}
