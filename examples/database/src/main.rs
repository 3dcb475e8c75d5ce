//! Books three payments, and sends their receipts through an outbox table:
//!
//! ```sh
//! cargo run -p example-database
//! ```

use std::time::Duration;

use campanile::{BoxError, Client, Json, serve, transport::memory::Memory};
use example_database::{Payment, app, open, outbox};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let file = std::env::temp_dir().join(format!("payments-{}.db", std::process::id()));
    let db = open(&file).await?;
    let memory = Memory::new();
    let client = Client::new(memory.clone());
    let relay = tokio::spawn(outbox::run(db.clone(), client.clone()));
    let worker = tokio::spawn(serve(memory, app().with_state(db.clone())).into_future());

    for (account, cents) in [("ada", 500), ("bob", 700), ("ada", 250)] {
        let account = account.to_owned();
        client
            .enqueue("payments.book", Json(Payment { account, cents }))
            .await?;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let accounts: Vec<(String, i64)> =
        sqlx::query_as("SELECT name, cents FROM accounts ORDER BY name")
            .fetch_all(&db)
            .await?;
    println!("{accounts:?}");
    relay.abort();
    worker.abort();
    db.close().await;
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", file.display()));
    }
    Ok(())
}
