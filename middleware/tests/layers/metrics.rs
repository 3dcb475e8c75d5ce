//! Tests of metrics on both transports.

use std::time::Duration;

use campanile::{
    Attempt, Client, Error, Failure, Redis, Router,
    transport::{Broker, Counts, StreamStats, memory::Memory},
};
use campanile_middleware::{Metrics, MetricsLayer, TransportMetrics, metrics::*};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tower::Layer;

use crate::support::{RedisServer, raw::eventually, worker::Worker};

/// A transport's handle with counts and statistics.
trait Handle: Broker {
    fn counts(&self) -> Counts;
    async fn stats(&self) -> Result<StreamStats, Error>;
}

impl Handle for Memory {
    fn counts(&self) -> Counts {
        self.counts()
    }

    async fn stats(&self) -> Result<StreamStats, Error> {
        self.stats().await
    }
}

impl Handle for Redis {
    fn counts(&self) -> Counts {
        self.counts()
    }

    async fn stats(&self) -> Result<StreamStats, Error> {
        self.stats().await
    }
}

/// The sum of all series of a metric that have these labels (`key="value"`). `None` if there is
/// none.
fn value(prometheus: &PrometheusHandle, name: &str, labels: &[&str]) -> Option<f64> {
    let name = name.replace('.', "_");
    let text = prometheus.render();
    let values = text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (of, has) = series.split_once('{')?;
        let matches = of == name && labels.iter().all(|label| has.contains(label));
        matches.then(|| value.parse::<f64>().expect("a number"))
    });
    values.reduce(|a, b| a + b)
}

fn client<B: Broker>(broker: &B) -> Client<Metrics<B>> {
    Client::new(MetricsLayer::new_for_client().layer(broker.clone()))
}

macro_rules! on_both {
    ($($test:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test]
            async fn $test() {
                let recorder = super::PrometheusBuilder::new().build_recorder();
                let _local = ::metrics::set_default_local_recorder(&recorder);
                super::$test(super::Memory::new(), recorder.handle()).await;
            })*
        }

        mod redis {
            $(#[tokio::test]
            async fn $test() {
                let recorder = super::PrometheusBuilder::new().build_recorder();
                let _local = ::metrics::set_default_local_recorder(&recorder);
                let server = super::RedisServer::start().await;
                let redis = super::Redis::connect(&server.url()).await.unwrap();
                super::$test(redis, recorder.handle()).await;
            })*
        }
    };
}

on_both!(
    messages_are_counted_by_their_outcomes,
    a_running_call_is_in_flight,
    a_redelivery_is_counted_by_the_layer_and_by_the_transport,
    unknown_names_share_one_label,
    deliveries_that_do_not_reach_a_layer_are_counted_by_the_transport,
);

async fn messages_are_counted_by_their_outcomes(broker: impl Handle, prometheus: PrometheusHandle) {
    let app: Router = Router::new()
        .task("works", async || {})
        .task("fails", async || Err::<(), _>(Failure::dead_letter()))
        .rpc("asked", async || "answer")
        .rpc("panics", async || {
            if true {
                panic!("on purpose");
            }
        })
        .event("heard", async || {})
        .layer(MetricsLayer::new().group("app_group"));
    let client = client(&broker);
    let _worker = Worker::start(broker, app);
    for _ in 0..3 {
        client.request::<String>("asked", ()).await.unwrap();
    }
    client.request::<()>("panics", ()).await.unwrap_err();
    client.publish("heard", "").await.unwrap();
    client.enqueue("works", "").await.unwrap();
    client.enqueue("fails", "").await.unwrap();
    client.enqueue("", "").await.unwrap_err();
    let all = || async { (value(&prometheus, CONSUMED_MESSAGES, &[]) == Some(7.0)).then_some(()) };
    eventually(all, Duration::from_secs(30)).await;

    let of = |name: &str| format!(r#"messaging_destination_name="{name}""#);
    let counted =
        |metric: &str, name: &str, more: &str| value(&prometheus, metric, &[&of(name), more]);
    for (name, operation, kind, sent) in [
        ("asked", "request", "rpc", 3.0),
        ("panics", "request", "rpc", 1.0),
        ("heard", "publish", "event", 1.0),
        ("works", "send", "task", 1.0),
        ("fails", "send", "task", 1.0),
    ] {
        let operation = format!(r#"messaging_operation_name="{operation}""#);
        let kind = format!(r#"campanile_message_kind="{kind}""#);
        assert_eq!(counted(SENT_MESSAGES, name, &operation), Some(sent));
        assert_eq!(counted(SENT_MESSAGES, name, &kind), Some(sent));
        assert_eq!(counted(CONSUMED_MESSAGES, name, &kind), Some(sent));
        let group = r#"messaging_consumer_group_name="app_group""#;
        assert_eq!(counted(CONSUMED_MESSAGES, name, group), Some(sent));
        for duration in DURATIONS {
            let count = format!("{duration}_count");
            assert_eq!(counted(&count, name, ""), Some(sent), "{name}");
        }
        assert_eq!(counted(IN_FLIGHT, name, ""), Some(0.0));
    }
    let error = |class: &str| format!(r#"error_type="{class}""#);
    let counted = |metric: &str, name: &str, class: &str| counted(metric, name, &error(class));
    assert_eq!(counted(CONSUMED_MESSAGES, "panics", "panic"), Some(1.0));
    assert_eq!(counted(SENT_MESSAGES, "panics", "internal"), Some(1.0));
    assert_eq!(
        counted(CONSUMED_MESSAGES, "fails", "dead_letter"),
        Some(1.0)
    );
    assert_eq!(
        value(&prometheus, CONSUMED_MESSAGES, &["error_type"]),
        Some(2.0)
    );
}

async fn a_running_call_is_in_flight(broker: impl Handle, prometheus: PrometheusHandle) {
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let opened = gate.clone();
    let app: Router = Router::new()
        .rpc("waits", async move || drop(opened.acquire().await))
        .layer(MetricsLayer::new());
    let client = client(&broker);
    let _worker = Worker::start(broker, app);
    let calls = ["waits"; 3].map(|name| tokio::spawn(client.request::<()>(name, ()).into_future()));
    let operation = |name: &str| format!(r#"messaging_operation_name="{name}""#);
    let running = |of: &str| value(&prometheus, IN_FLIGHT, &[&operation(of)]);
    let three = || async { (running("process") == Some(3.0)).then_some(()) };
    eventually(three, Duration::from_secs(30)).await;
    assert_eq!(running("request"), Some(3.0));

    // One caller stops waiting, and the others get their replies.
    let [dropped, others @ ..] = calls;
    dropped.abort();
    dropped.await.unwrap_err();
    assert_eq!(running("request"), Some(2.0));
    let error = [r#"error_type="dropped""#];
    assert_eq!(value(&prometheus, SENT_MESSAGES, &error), Some(1.0));
    gate.add_permits(3);
    for call in others {
        call.await.unwrap().unwrap();
    }
    let none = || async { (running("process") == Some(0.0)).then_some(()) };
    eventually(none, Duration::from_secs(30)).await;
    assert_eq!(running("request"), Some(0.0));
}

async fn a_redelivery_is_counted_by_the_layer_and_by_the_transport(
    broker: impl Handle,
    prometheus: PrometheusHandle,
) {
    let app: Router = Router::new()
        .task("twice", async |attempt: Attempt| match attempt.is_retry() {
            true => Ok(()),
            false => Err(Failure::redeliver_after(Duration::ZERO)),
        })
        .layer(MetricsLayer::new());
    client(&broker).enqueue("twice", "").await.unwrap();
    let _worker = Worker::start(broker.clone(), app);
    let done = || async { (broker.counts().done == 1).then_some(()) };
    eventually(done, Duration::from_secs(30)).await;

    TransportMetrics::new().publish_counts(&broker.counts());
    assert_eq!(value(&prometheus, REDELIVERED_MESSAGES, &[]), Some(1.0));
    assert_eq!(value(&prometheus, CONSUMED_MESSAGES, &[]), Some(2.0));
    let transport = |name| value(&prometheus, &format!("campanile.transport.{name}"), &[]);
    assert_eq!(transport("redelivered"), Some(1.0));
    assert_eq!(transport("delivered"), Some(2.0));
    assert_eq!(transport("done"), Some(1.0));
}

async fn unknown_names_share_one_label(broker: impl Handle, prometheus: PrometheusHandle) {
    let app: Router = Router::new()
        .rpc("known", async || {})
        .layer(MetricsLayer::new());
    let client = Client::new(broker.clone());
    let _worker = Worker::start(broker, app);
    for name in ["a", "b", "c"] {
        client.request::<()>(name, ()).await.unwrap_err();
    }
    let labels = [
        r#"messaging_destination_name="_OTHER""#,
        r#"error_type="not_found""#,
    ];
    assert_eq!(value(&prometheus, CONSUMED_MESSAGES, &labels), Some(3.0));
    assert_eq!(value(&prometheus, CONSUMED_MESSAGES, &[]), Some(3.0));
}

async fn deliveries_that_do_not_reach_a_layer_are_counted_by_the_transport(
    broker: impl Handle,
    prometheus: PrometheusHandle,
) {
    let app: Router = Router::new()
        .task("late", async || {})
        .task("fails", async || Err::<(), _>(Failure::dead_letter()))
        .layer(MetricsLayer::new());
    let client = Client::new(broker.clone());
    let late = client.enqueue("late", "");
    late.expires_after(Duration::from_millis(250))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    client.enqueue("fails", "").await.unwrap();
    let _worker = Worker::start(broker.clone(), app);
    let settled = || async {
        let counts = broker.counts();
        (counts.dead == 1 && counts.expired == 1).then_some(())
    };
    eventually(settled, Duration::from_secs(30)).await;

    let transport = TransportMetrics::new()
        .system("test")
        .label("of", "billing");
    transport.publish_counts(&broker.counts());
    transport.publish_stats(&broker.stats().await.unwrap());
    let labels = [r#"messaging_system="test""#, r#"of="billing""#];
    let counted = |name| value(&prometheus, name, &labels);
    assert_eq!(counted("campanile.transport.expired"), Some(1.0));
    assert_eq!(counted("campanile.transport.dead"), Some(1.0));
    assert_eq!(counted("campanile.transport.reconnects"), Some(0.0));
    // The layer saw only the message that failed.
    assert_eq!(value(&prometheus, CONSUMED_MESSAGES, &[]), Some(1.0));
    let labels = [
        &labels[..],
        &[r#"stream="app_stream""#, r#"group="app_group""#],
    ]
    .concat();
    let gauge = |name| value(&prometheus, name, &labels);
    assert_eq!(gauge("campanile.group.dead"), Some(1.0));
    assert_eq!(gauge("campanile.group.pending"), Some(0.0));
    assert_eq!(gauge("campanile.group.consumers"), Some(1.0));
}
