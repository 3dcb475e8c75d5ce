//! A worker and a client that follow the primary through a failover.
//!
//! ```text
//! redis-server --port 7000 --save "" --daemonize yes
//! redis-server --port 7001 --save "" --daemonize yes --replicaof 127.0.0.1 7000
//! for port in 26379 26380 26381; do
//!     echo sentinel monitor mymaster 127.0.0.1 7000 2 > sentinel-$port.conf
//!     redis-server sentinel-$port.conf --sentinel --port $port --daemonize yes
//! done
//! REDIS_URL=redis+sentinel://127.0.0.1:26379,127.0.0.1:26380,127.0.0.1:26381/mymaster \
//!     TASKS=2000 cargo run -p example-recipes --example sentinel
//! for port in 26379 26380 26381 7000 7001; do redis-cli -p $port SHUTDOWN NOSAVE; done
//! ```
//!
//! To start a failover meanwhile: `redis-cli -p 26379 SENTINEL FAILOVER mymaster`. For one server
//! or a cluster, only the URL changes.

use std::{env, time::Duration};

use campanile::{BoxError, Client, Redis, Router, serve};
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url =
        env::var("REDIS_URL").unwrap_or_else(|_| "redis+sentinel://127.0.0.1/mymaster".into());
    let tasks: u32 = env::var("TASKS").map_or(Ok(100), |tasks| tasks.parse())?;
    // Waits for a server that has not started yet.
    let redis = Redis::connect_when_ready(&url).await?.stream("shop");

    let (done, mut handled) = mpsc::unbounded_channel();
    let app = Router::new().task("count", async move |number: String| drop(done.send(number)));
    let stop = CancellationToken::new();
    let worker = serve(redis.clone(), app).with_graceful_shutdown(stop.clone().cancelled_owned());
    let worker = tokio::spawn(worker.into_future());

    let client = Client::new(redis);
    for number in 1..=tasks {
        // With an idempotency key a failed send can be repeated, even if it has stored the task.
        let send = || {
            client
                .enqueue("count", number.to_string())
                .idempotency_key(format!("count {number}"))
        };
        while let Err(error) = send().await {
            println!("task {number} is sent again: {error}");
            sleep(Duration::from_millis(200)).await;
        }
        sleep(Duration::from_millis(20)).await;
    }
    for _ in 0..tasks {
        handled.recv().await.ok_or("the worker has ended")?;
    }
    println!("{tasks} tasks handled");
    stop.cancel();
    worker.await??;
    Ok(())
}
