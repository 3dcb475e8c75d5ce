//! The workers.

use std::time::Duration;

use campanile::{
    Client, Error, Json, Outbox, Progress, Router, RpcError,
    schedule::{Missed, Schedule, ScheduledTask},
    transport::Limit,
};
use campanile_middleware::{
    CatchPanicLayer, MetricsLayer, RequestIdLayer, SharedLimitLayer, TimeoutLayer, TraceLayer, key,
};
use tokio::time::sleep;
use tower::{Layer, ServiceBuilder};

use crate::contracts::{CLEAN, CONVERT, CONVERTED, Converted, Image, ImageV1, SIZE};

/// The header with the tenant of a message.
pub const TENANT: &str = "x-tenant";
/// The stream that other services follow.
pub const EVENTS: &str = "image-events";

/// Converts an image. One step acknowledges the task, stores the result with its status, and sends
/// [`CONVERTED`] to the other services.
async fn convert(
    progress: Progress,
    outbox: Outbox,
    Json(image): Json<Image>,
) -> Result<Json<Vec<Vec<u8>>>, Error> {
    let mut negative = Vec::new();
    for row in &image.rows {
        sleep(Duration::from_millis(20)).await; // a cancelled task is dropped here
        negative.push(row.iter().map(|pixel| !pixel).collect());
        progress.set((negative.len(), image.rows.len()))?;
    }
    let bytes = image.rows.iter().map(|row| row.len() as u64).sum();
    let converted = Converted {
        title: image.title,
        bytes,
    };
    let client = Client::new(TraceLayer::new_for_client().layer(outbox));
    client.enqueue(CONVERTED, converted).stream(EVENTS).await?;
    Ok(Json(negative))
}

async fn size(Json(image): Json<Image>) -> Result<Json<u64>, RpcError> {
    match image.rows.is_empty() {
        true => Err(RpcError::invalid("the image has no rows")),
        false => Ok(Json(image.rows.iter().map(|row| row.len() as u64).sum())),
    }
}

async fn clean() {
    println!("cleaned up");
}

/// The routes of the workers. Two conversions of each tenant run at once, over all workers.
pub fn app(limit: Limit) -> Router {
    let tenants = SharedLimitLayer::concurrency(limit, 2, key::header(TENANT));
    let untitled = |old: ImageV1| Image {
        title: "untitled".into(),
        rows: old.rows,
    };
    let conversions = Router::new().task(CONVERT.lift(1, untitled), convert);
    let app = Router::new()
        .merge(conversions.layer(tenants))
        .rpc(SIZE, size)
        .task(CLEAN, async |Json(()): Json<()>| clean().await);
    layered(app)
}

/// A service of another team, with its own group on the stream of events.
pub fn service(name: &'static str) -> Router {
    let converted = async move |Json(image): Json<Converted>| {
        println!("{name}: {} has {} bytes", image.title, image.bytes);
    };
    layered(Router::new().task(CONVERTED, converted))
}

/// Adds the layers of every worker. The first is outermost.
fn layered(app: Router) -> Router {
    let layers = ServiceBuilder::new()
        .layer(TraceLayer::new())
        .layer(RequestIdLayer::new())
        .layer(MetricsLayer::new())
        .layer(TimeoutLayer::new(Duration::from_secs(30)))
        .layer(CatchPanicLayer::new());
    app.layer(layers)
}

/// The schedules, which send tasks again and again.
pub fn schedules() -> [ScheduledTask; 1] {
    let nightly = Schedule::cron("30 3 * * *")
        .in_zone("Europe/Berlin")
        .missed(Missed::Once);
    [ScheduledTask::new("nightly clean-up", nightly, CLEAN, ()).skip_while_running()]
}
