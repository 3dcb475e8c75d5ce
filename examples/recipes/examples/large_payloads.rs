//! A large file beside the queue. The message has the name of the file, and a follow-up deletes the
//! file.
//!
//! ```text
//! REDIS_URL=redis://127.0.0.1/ cargo run -p example-recipes --example large_payloads
//! ```
//!
//! Redis keeps streams in memory, so a payload of 100 KiB or more is better stored elsewhere: in
//! object storage, or in a directory that all machines share, as here.

use std::env;

use campanile::{BoxError, Client, Outbox, Redis, Router, serve};
use tokio::{fs, sync::mpsc};
use tokio_util::sync::CancellationToken;

/// Converts a picture. The task that deletes the file is sent only if this attempt succeeds. So
/// after a failure, the next attempt still finds the file.
async fn convert(outbox: Outbox, file: String) -> Result<(), BoxError> {
    let picture = fs::read(&file).await?;
    println!("converted a picture of {} bytes", picture.len());
    outbox.enqueue("pictures.delete", file).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    // For payloads that do go through Redis: a bound on the bytes that one worker holds at once.
    let redis = Redis::connect(&url).await?.stream("pictures");
    let redis = redis.max_in_flight_bytes(16 << 20);

    // Store first, then send. A crash in between leaves a file that nobody needs, so delete old
    // files from time to time.
    let file = env::temp_dir().join(format!("picture-{}", fastrand::u64(..)));
    fs::write(&file, vec![7; 20 << 20]).await?;
    let name = file.to_str().ok_or("the path is not UTF-8")?.to_owned();
    let client = Client::new(redis.clone());
    client.enqueue("pictures.convert", name).await?;

    let (done, mut deleted) = mpsc::unbounded_channel();
    let delete = async move |file: String| -> Result<(), BoxError> {
        if fs::try_exists(&file).await? {
            fs::remove_file(&file).await?; // a second attempt finds no file
        }
        Ok(done.send(file)?)
    };
    let app = Router::new()
        .task("pictures.convert", convert)
        .task("pictures.delete", delete);
    let stop = CancellationToken::new();
    let worker = serve(redis, app).with_graceful_shutdown(stop.clone().cancelled_owned());
    let worker = tokio::spawn(worker.into_future());
    let deleted = deleted.recv().await.ok_or("the worker has ended")?;
    assert!(!fs::try_exists(deleted).await?);
    println!("deleted the file");
    stop.cancel();
    worker.await??;
    Ok(())
}
