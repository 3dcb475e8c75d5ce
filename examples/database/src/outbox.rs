//! An outbox table: tasks that are written in the application's own transaction, and a relay that
//! sends them.

use std::time::Duration;

use campanile::{BoxError, Client, MessageService};
use sqlx::{SqliteConnection, SqlitePool};

/// The table. `AUTOINCREMENT`, so that no id is used again: it is the key of a task.
pub const TABLE: &str = "CREATE TABLE IF NOT EXISTS outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    payload BLOB NOT NULL
)";

/// The most tasks that one call of [`relay`] sends.
const MAX_ROWS: i64 = 100;
/// The time after which an empty table, or one whose tasks could not be sent, is read again.
const PAUSE: Duration = Duration::from_millis(200);

/// Adds a task to the outbox. It is sent if the transaction of this connection is committed.
pub async fn add(db: &mut SqliteConnection, name: &str, payload: &[u8]) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO outbox (name, payload) VALUES (?, ?)")
        .bind(name)
        .bind(payload)
        .execute(db)
        .await?;
    Ok(())
}

/// Sends the oldest tasks of the outbox, one after the other, and deletes each once it is stored.
/// Returns the number of tasks.
///
/// A task that was sent and not deleted, because this future was dropped or the process ended, is sent
/// again with the same key, and is stored once. So any number of relays may run.
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
        // The next task is sent only once this one is stored, so the order holds.
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
        tokio::time::sleep(PAUSE).await;
    }
}
