//! Changes of accounts, in order for each account, over two workers. Each worker owns some of the
//! partitions of one stream, and an account is the key that chooses the partition.
//!
//! ```text
//! redis-server --save "" --daemonize yes
//! cargo run --example partitions
//! redis-cli SHUTDOWN NOSAVE
//! ```
//!
//! It runs on a cluster as well, whose nodes then share the partitions: `examples/cluster.rs` says
//! how to start one, and `REDIS_URL` names it. With Sentinels it goes on over a failover:
//!
//! ```text
//! redis-server --port 6379 --save "" --daemonize yes
//! redis-server --port 6380 --save "" --daemonize yes --replicaof 127.0.0.1 6379
//! echo 'sentinel monitor mymaster 127.0.0.1 6379 1' > sentinel.conf
//! redis-server sentinel.conf --sentinel --daemonize yes
//! REDIS_URL=redis+sentinel://127.0.0.1:26379/mymaster cargo run --example partitions
//! redis-cli -p 26379 SENTINEL FAILOVER mymaster
//! for port in 26379 6379 6380; do redis-cli -p $port SHUTDOWN NOSAVE; done
//! ```

use std::{collections::BTreeMap, env, future::IntoFuture, sync::Arc};

use campanile::{BoxError, Client, Json, Redis, Router, State, serve, transport::Streams};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

const ACCOUNTS: [&str; 4] = ["ada", "ben", "cleo", "dan"];
const CHANGES: u32 = 5;

#[derive(Clone, Default)]
struct Accounts {
    /// The changes of each account, in the order in which they were handled.
    changes: Arc<Mutex<BTreeMap<String, Vec<u32>>>>,
    complete: CancellationToken,
}

async fn change(State(accounts): State<Accounts>, Json((account, n)): Json<(String, u32)>) {
    let mut changes = accounts.changes.lock().await;
    changes.entry(account).or_default().push(n);
    if changes.values().map(Vec::len).sum::<usize>() == ACCOUNTS.len() * CHANGES as usize {
        accounts.complete.cancel();
    }
}

fn app(accounts: Accounts) -> Router {
    Router::new().task("change", change).with_state(accounts)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    let partitions = Streams::partitioned("accounts", 8).owned();
    let redis = Redis::connect(&url).await?;
    let redis = redis.streams(partitions).group("ledger");
    let client = Client::new(redis.clone());
    for n in 1..=CHANGES {
        for account in ACCOUNTS {
            client
                .enqueue("change", Json((account, n)))
                .partition_key(account)
                .await?;
        }
    }
    let accounts = Accounts::default();
    let worker = || {
        let complete = accounts.complete.clone();
        serve(redis.clone(), app(accounts.clone()))
            .with_graceful_shutdown(async move { complete.cancelled().await })
            .into_future()
    };
    tokio::try_join!(worker(), worker())?;
    for (account, changes) in accounts.changes.lock().await.iter() {
        println!("{account}: changes {changes:?}");
    }
    Ok(())
}
