//! One worker for several queues. Urgent messages start before messages that have waited for
//! longer.
//!
//! ```text
//! REDIS_URL=redis://127.0.0.1/ cargo run -p example-recipes --example priorities
//! ```

use std::{env, time::Duration};

use campanile::{BoxError, Client, Message, Redis, Router, serve, transport::Streams};
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    let redis = Redis::connect(&url).await?.group("mailer");

    // On a cluster, streams with strict priority must have the same hash tag.
    let (urgent, normal) = ("{mail}.urgent", "{mail}.normal");
    let client = Client::new(redis.clone());
    for letter in 1..=3 {
        client
            .enqueue("send", format!("newsletter {letter}"))
            .stream(normal)
            .await?;
    }
    client
        .enqueue("send", "password reset")
        .stream(urgent)
        .await?;

    let (sent, mut letters) = mpsc::unbounded_channel();
    let app = Router::new().task("send", async move |message: Message| {
        sleep(Duration::from_millis(20)).await;
        drop(sent.send(String::from_utf8_lossy(message.payload()).into_owned()));
    });
    // Priority decides which message is fetched next. A fetched message is not overtaken any more.
    // So set `max_in_flight` to the number of messages that run at once.
    let queues = redis
        .streams(Streams::strict([urgent, normal]))
        .max_in_flight(1);
    let stop = CancellationToken::new();
    let worker = serve(queues, app).with_graceful_shutdown(stop.clone().cancelled_owned());
    let worker = tokio::spawn(worker.into_future());
    for _ in 0..4 {
        println!(
            "sent: {}",
            letters.recv().await.ok_or("the worker has ended")?
        );
    }
    stop.cancel();
    worker.await??;
    Ok(())
}
