//! Publishes the metrics of messages and of the transport for Prometheus.
//!
//! ```text
//! cargo run -p campanile-middleware --features metrics --example prometheus
//! ```
//!
//! The example sends a few messages, handles them, and prints the response to a scrape. If it gets
//! an address as its argument, it then answers scrapes at this address:
//!
//! ```text
//! cargo run -p campanile-middleware --features metrics --example prometheus -- 127.0.0.1:9000
//! curl http://127.0.0.1:9000/metrics
//! ```

use std::time::Duration;

use campanile::{BoxError, Client, Failure, Router, serve, transport::memory::Memory};
use campanile_middleware::{Metrics, MetricsLayer, TransportMetrics, metrics};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tower::ServiceBuilder;

async fn create(order: String) -> Result<(), Failure> {
    match order.as_str() {
        "nonsense" => Err(Failure::dead_letter().because("that is no order")),
        _ => Ok(()),
    }
}

pub(crate) fn app() -> Router {
    Router::new()
        .task("orders.create", create)
        .rpc("up", async || "yes")
        .layer(MetricsLayer::new().system("memory").group("app_group"))
}

pub(crate) fn client(memory: &Memory) -> Client<Metrics<Memory>> {
    let layer = MetricsLayer::new_for_client().system("memory");
    Client::new(ServiceBuilder::new().layer(layer).service(memory.clone()))
}

/// A recorder with the buckets that OpenTelemetry's conventions recommend.
pub(crate) fn recorder() -> Result<PrometheusRecorder, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for name in metrics::DURATIONS {
        builder = builder.set_buckets_for_metric(Matcher::Full(name.into()), &metrics::BUCKETS)?;
    }
    Ok(builder.build_recorder())
}

/// Publishes the current metrics of the transport, and returns the response to a scrape.
async fn scrape(memory: &Memory, prometheus: &PrometheusHandle) -> Result<String, BoxError> {
    let transport = TransportMetrics::new().system("memory");
    transport.publish_counts(&memory.counts());
    transport.publish_state(memory.state());
    transport.publish_stats(&memory.stats().await?);
    Ok(prometheus.render())
}

/// Sends a few messages, and returns once they are handled.
pub(crate) async fn traffic(
    client: &Client<Metrics<Memory>>,
    memory: &Memory,
) -> Result<(), BoxError> {
    for order in ["tea", "milk", "nonsense"] {
        client.enqueue("orders.create", order).await?;
    }
    client.request::<String>("up", ()).await?;
    while memory
        .stats()
        .await?
        .groups
        .iter()
        .any(|group| group.pending > 0)
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// A minimal HTTP server for scrapes.
pub(crate) async fn answer_scrapes(
    listener: TcpListener,
    memory: &Memory,
    prometheus: &PrometheusHandle,
) -> Result<(), BoxError> {
    loop {
        let (mut connection, _) = listener.accept().await?;
        // Any request gets this response.
        let _ = connection.read(&mut [0; 4096]).await;
        let body = scrape(memory, prometheus).await?;
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        let _ = connection.write_all((head + &body).as_bytes()).await;
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // The recorder must be installed before the first message.
    let recorder = recorder()?;
    let prometheus = recorder.handle();
    ::metrics::set_global_recorder(recorder)?;
    metrics::describe();

    let memory = Memory::new();
    let worker = tokio::spawn(serve(memory.clone(), app()).into_future());
    traffic(&client(&memory), &memory).await?;
    print!("{}", scrape(&memory, &prometheus).await?);

    if let Some(address) = std::env::args().nth(1) {
        let listener = TcpListener::bind(&address).await?;
        println!("# http://{address}/metrics");
        answer_scrapes(listener, &memory, &prometheus).await?;
    }
    worker.abort();
    Ok(())
}
