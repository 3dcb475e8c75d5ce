//! The sender and the worker of one version.
//!
//! ```text
//! deploy send LABEL       sends tasks of all sorts: a line `sent PAYLOAD` for each
//! deploy request LABEL    makes requests: a line `answered PAYLOAD` for each
//! deploy work             works until a signal: a line `handled PAYLOAD` for each task that ends well
//! deploy replay           delivers all dead letters again
//! ```
//!
//! `REDIS_URL` names the server. With `REFUSE` the worker gives up the tasks named `delicate`.

use std::{env, time::Duration};

use campanile::{
    Attempt, BoxError, Client, Failure, Outbox, Redis, Router, serve,
    transport::{Backoff, Selection},
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// The number of messages of each sort.
const COUNT: usize = 20;

async fn plain(payload: String) {
    println!("handled {payload}");
}

async fn fails_once(attempt: Attempt, payload: String) -> Result<(), BoxError> {
    if !attempt.is_retry() {
        return Err("the first attempt fails".into());
    }
    println!("handled {payload}");
    Ok(())
}

async fn delicate(payload: String) -> Result<(), BoxError> {
    if env::var_os("REFUSE").is_some() {
        return Err(Failure::dead_letter().because("not in this release").into());
    }
    println!("handled {payload}");
    Ok(())
}

async fn followed(outbox: Outbox, payload: String) -> Result<(), BoxError> {
    outbox
        .enqueue("plain", format!("{payload}, its follow-up"))
        .await?;
    println!("handled {payload}");
    Ok(())
}

async fn send(client: &Client<Redis>, label: &str) -> Result<(), BoxError> {
    for i in 0..COUNT {
        let payload = |sort: &str| format!("{label}: {sort} {i}");
        let task = |name: &'static str, sort| client.enqueue(name, payload(sort));
        let calls = [
            ("plain", task("plain", "plain")),
            ("delayed", task("plain", "delayed").delay(SECOND)),
            ("tracked", task("plain", "tracked").tracked(HOUR)),
            ("unique", task("plain", "unique").unique(payload("unique"))),
            (
                "keyed",
                task("plain", "keyed").idempotency_key(payload("keyed")),
            ),
            ("failing", task("fails_once", "failing")),
            ("delicate", task("delicate", "delicate")),
            ("followed", task("followed", "followed")),
        ];
        for (sort, call) in calls {
            call.await?;
            println!("sent {}", payload(sort));
        }
        println!("sent {}, its follow-up", payload("followed"));
    }
    Ok(())
}

async fn request(client: &Client<Redis>, label: &str) -> Result<(), BoxError> {
    for i in 0..COUNT {
        let asked = format!("{label}: request {i}");
        let reply: String = client
            .request("echo", asked.clone())
            .timeout(30 * SECOND)
            .await?;
        if reply != asked {
            return Err(format!("{asked} was answered with {reply}").into());
        }
        println!("answered {reply}");
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::var("REDIS_URL").map_err(|_| "REDIS_URL is not set")?;
    let redis = Redis::connect(&url).await?.stream("deploy").lease(SECOND);
    let redis = redis.backoff(Backoff::exponential(SECOND / 4, SECOND));
    let client = Client::new(redis.clone());
    let args: Vec<_> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["send", label] => send(&client, label).await,
        ["request", label] => request(&client, label).await,
        ["work"] => {
            let app = Router::new()
                .task("plain", plain)
                .task("fails_once", fails_once)
                .task("delicate", delicate)
                .task("followed", followed)
                .rpc("echo", async |payload: String| payload);
            Ok(serve(redis, app).with_signals().await?)
        }
        ["replay"] => {
            let replayed = redis.dead_letters().replay(Selection::All).await?;
            println!("replayed {replayed}");
            Ok(())
        }
        _ => Err("deploy send LABEL | request LABEL | work | replay".into()),
    }
}
