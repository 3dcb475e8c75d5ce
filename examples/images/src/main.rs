//! Starts the image service.
//!
//! ```text
//! cargo run -p example-images                                        # in memory, without a server
//! REDIS_URL=redis://127.0.0.1/ cargo run -p example-images           # or redis+sentinel://, redis+cluster://
//!
//! curl localhost:3000/images -H 'x-api-key: key-of-ann' -H 'content-type: application/json' \
//!     -d '{"title":"a cat","rows":[[0,255],[255,0]]}'
//! curl localhost:3000/images/ID -H 'x-api-key: key-of-ann'           # its state, progress and result
//! curl -X DELETE localhost:3000/images/ID -H 'x-api-key: key-of-ann' # cancels it
//! ```
//!
//! The dashboard is at <http://localhost:3000/ops>. `LISTEN` sets the address, `RUST_LOG` the level
//! of the log. `CA` names a file with a private authority for a `rediss://` URL.
//! `OTEL_EXPORTER_OTLP_ENDPOINT` is the URL of a collector of traces.

use std::{env, fs};

use campanile::{
    BoxError, BoxSender, Client, Redis, dashboard::Dashboard, transport::memory::Memory,
};
use campanile_middleware::{MetricsLayer, RequestIdLayer, TraceLayer};
use example_images::{handles, run, traces, web};
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;

/// The HTTP side of a `Redis` or a `Memory`.
macro_rules! web {
    ($handle:expr) => {{
        let sender = ServiceBuilder::new()
            .layer(TraceLayer::new_for_client())
            .layer(RequestIdLayer::new())
            .layer(MetricsLayer::new_for_client())
            .service($handle.clone().group("converters"));
        let tasks = |stream| $handle.clone().group("converters").stream(stream).tasks();
        let mut dashboard = Dashboard::new($handle.clone());
        for stream in web::STREAMS
            .into_iter()
            .chain([example_images::work::EVENTS])
        {
            dashboard = dashboard.stream(stream);
        }
        let api = web::Api {
            client: Client::new(BoxSender::new(sender)),
            tasks: web::STREAMS.map(tasks),
            metrics: PrometheusBuilder::new().install_recorder()?,
        };
        web::app(api, dashboard)
    }};
}

async fn connect(url: &str) -> Result<Redis, BoxError> {
    let redis = Redis::builder(url);
    Ok(match env::var("CA") {
        Ok(file) => {
            redis
                .ca_certificate(fs::read(file)?)
                .connect_when_ready()
                .await?
        }
        Err(_) => redis.connect_when_ready().await?,
    })
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let spans = traces::install()?;
    let listen = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = TcpListener::bind(listen).await?;
    println!("listening on {}", listener.local_addr()?);

    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn({
        let stop = stop.clone();
        async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            stop.cancel();
        }
    });
    match env::var("REDIS_URL") {
        Ok(url) => {
            let redis = connect(&url).await?;
            run(handles!(redis.clone())?, web!(redis), listener, stop).await?;
        }
        Err(_) => {
            let memory = Memory::new();
            run(handles!(memory.clone())?, web!(memory), listener, stop).await?;
        }
    }
    spans.shutdown()?;
    Ok(())
}
