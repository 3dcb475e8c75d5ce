//! Orders of four regions on a Redis Cluster. The cluster spreads the streams of the regions over
//! its nodes, and one worker serves all streams in turn.
//!
//! ```text
//! for port in 7000 7001 7002; do
//!     redis-server --port $port --cluster-enabled yes --cluster-config-file nodes-$port.conf \
//!         --save "" --daemonize yes
//! done
//! redis-cli --cluster create 127.0.0.1:7000 127.0.0.1:7001 127.0.0.1:7002 --cluster-yes
//! REDIS_URL=redis+cluster://127.0.0.1:7000,127.0.0.1:7001 cargo run --example cluster
//! redis-cli --cluster call 127.0.0.1:7000 SHUTDOWN NOSAVE
//! ```
//!
//! The example also runs on one server (`redis://127.0.0.1/`), or on the primary that Sentinels
//! name (`redis+sentinel://127.0.0.1:26379/mymaster`).

use std::{collections::BTreeMap, env, sync::Arc};

use campanile::{BoxError, Client, Message, Redis, Router, State, serve, transport::Streams};
use tokio::sync::{Mutex, Notify};

const REGIONS: [&str; 4] = [
    "orders:africa",
    "orders:america",
    "orders:asia",
    "orders:europe",
];
const ORDERS_PER_REGION: usize = 3;

#[derive(Clone, Default)]
struct Handled {
    /// The number of shipped orders of each stream.
    counts: Arc<Mutex<BTreeMap<String, usize>>>,
    /// Notified when all orders are shipped.
    all_shipped: Arc<Notify>,
}

async fn ship(State(handled): State<Handled>, message: Message) {
    let stream = message.parts().stream.as_ref();
    let stream = stream.map_or_else(String::new, |it| it.to_string());
    let mut counts = handled.counts.lock().await;
    *counts.entry(stream).or_default() += 1;
    if counts.values().sum::<usize>() == REGIONS.len() * ORDERS_PER_REGION {
        handled.all_shipped.notify_one();
    }
}

fn app(handled: Handled) -> Router {
    Router::new().task("ship", ship).with_state(handled)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    let redis = Redis::connect(&url).await?.group("warehouse");
    let client = Client::new(redis.clone());
    for region in REGIONS {
        for order in 0..ORDERS_PER_REGION {
            client
                .enqueue("ship", order.to_string())
                .stream(region)
                .await?;
        }
    }
    let handled = Handled::default();
    let all_shipped = handled.all_shipped.clone();
    serve(
        redis.streams(Streams::in_turn(REGIONS)),
        app(handled.clone()),
    )
    .with_graceful_shutdown(async move { all_shipped.notified().await })
    .await?;
    for (stream, count) in handled.counts.lock().await.iter() {
        println!("{stream}: {count} orders shipped");
    }
    Ok(())
}
