//! An outbox table: tasks that are written in the application's own transaction, and a relay that
//! sends them.

use std::time::Duration;

use campanile::{BoxError, Client, MessageService};
use sqlx::{SqliteConnection, SqlitePool};

/// The statement that creates the table. With `AUTOINCREMENT` no id is used again, as the id is
/// part of a task's idempotency key.
pub const CREATE_TABLE: &str = "CREATE TABLE IF NOT EXISTS outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    payload BLOB NOT NULL
)";

/// The maximum number of tasks that one call of [`relay`] sends.
const MAX_ROWS: i64 = 100;
/// The wait before the table is read again if it was empty, or if its tasks could not be sent.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Adds a task to the outbox. It is sent if the transaction of this connection is committed.
pub async fn add(db: &mut SqliteConnection, name: &str, payload: &[u8]) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO outbox (name, payload) VALUES (?, ?)")
        .bind(name)
        .bind(payload)
        .execute(db)
        .await?;
    Ok(())
}

/// Sends the oldest tasks of the outbox, one after the other. Deletes each task once the transport
/// has stored it. Returns the number of tasks.
///
/// If this future is dropped, or the process ends, before a sent task is deleted, the task is sent
/// again with the same idempotency key. The transport stores only one task with this key. So any
/// number of relays may run.
pub async fn relay<S>(db: &SqlitePool, client: &Client<S>) -> Result<usize, BoxError>
where
    S: MessageService + Clone,
{
    let rows: Vec<(i64, String, Vec<u8>)> =
        sqlx::query_as("SELECT id, name, payload FROM outbox ORDER BY id LIMIT ?")
            .bind(MAX_ROWS)
            .fetch_all(db)
            .await?;
    let count = rows.len();
    for (id, name, payload) in rows {
        // The next task is sent only after this task is stored, which keeps the order.
        client
            .enqueue(name, payload)
            .idempotency_key(format!("payments outbox {id}"))
            .await?;
        sqlx::query("DELETE FROM outbox WHERE id = ?")
            .bind(id)
            .execute(db)
            .await?;
    }
    Ok(count)
}

/// Sends the tasks of the outbox for ever.
pub async fn run<S>(db: SqlitePool, client: Client<S>)
where
    S: MessageService + Clone,
{
    loop {
        match relay(&db, &client).await {
            Ok(1..) => continue,
            Ok(0) => {}
            Err(error) => tracing::warn!(error, "the outbox could not be sent; trying again"),
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
