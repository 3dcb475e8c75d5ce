//! TLS with a private authority, and a certificate of the client.
//!
//! ```text
//! CA=ca.pem CERT=client.pem KEY=client.key REDIS_URL=rediss://redis.internal/ \
//!     cargo run -p example-recipes --example own_ca
//! ```

use std::{env, fs};

use campanile::{BoxError, Client, Redis, Router, serve};
use tokio_util::sync::CancellationToken;

/// Reads the file that a variable names.
fn file(variable: &str) -> Result<Option<Vec<u8>>, BoxError> {
    let Ok(path) = env::var(variable) else {
        return Ok(None);
    };
    let read = fs::read(&path).map_err(|error| format!("{variable}={path}: {error}"))?;
    Ok(Some(read))
}

async fn connect(url: &str) -> Result<Redis, BoxError> {
    let mut redis = Redis::builder(url);
    // The private authority replaces those of the system.
    if let Some(authority) = file("CA")? {
        redis = redis.ca_certificate(authority);
    }
    if let (Some(certificate), Some(key)) = (file("CERT")?, file("KEY")?) {
        redis = redis.client_certificate(certificate, key);
    }
    Ok(redis.connect().await?)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "rediss://127.0.0.1/".into());
    let redis = connect(&url).await?.stream("shop");

    let app = Router::new().rpc("ping", async || "pong over TLS");
    let stop = CancellationToken::new();
    let worker = serve(redis.clone(), app).with_graceful_shutdown(stop.clone().cancelled_owned());
    let worker = tokio::spawn(worker.into_future());
    let answer: String = Client::new(redis).request("ping", ()).await?;
    println!("{answer}");
    stop.cancel();
    worker.await??;
    Ok(())
}
