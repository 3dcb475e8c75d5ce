//! An inbox table: the ids of handled messages, written in the transaction of their effects.

use campanile::{FromMessageParts, Parts, Rejection};
use sqlx::{Sqlite, SqlitePool, Transaction};

/// The table. `at` is for the removal of old rows.
pub const TABLE: &str = "CREATE TABLE IF NOT EXISTS inbox (
    id TEXT PRIMARY KEY,
    at INTEGER NOT NULL DEFAULT (unixepoch())
) WITHOUT ROWID";

/// The identity of a message. An extractor.
#[derive(Debug)]
pub struct Inbox {
    id: String,
}

impl Inbox {
    /// Begins the transaction of the message's effects. `None` if an earlier delivery has committed
    /// it. A transaction that is dropped has no effect, so the next delivery begins it again.
    pub async fn begin(
        &self,
        db: &SqlitePool,
    ) -> sqlx::Result<Option<Transaction<'static, Sqlite>>> {
        let mut transaction = db.begin().await?;
        // Waits for another delivery of this message that has inserted the id and not ended.
        let inserted = sqlx::query("INSERT INTO inbox (id) VALUES (?) ON CONFLICT DO NOTHING")
            .bind(&self.id)
            .execute(&mut *transaction)
            .await?;
        Ok((inserted.rows_affected() == 1).then_some(transaction))
    }
}

impl<S: Sync> FromMessageParts<S> for Inbox {
    type Rejection = Rejection;

    async fn from_message_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        // An id is unique in its stream only, and each group handles the message.
        let group = parts.group.as_deref().unwrap_or_default();
        let id = match (&parts.idempotency_key, &parts.stream, &parts.id) {
            // The key of an outbox row: the same if the task is sent twice, and never another task's.
            (Some(key), ..) => format!("{group} key {key}"),
            (None, Some(stream), Some(id)) => format!("{group} {stream} {id}"),
            _ => return Err(Rejection::permanent("the message has no id")),
        };
        Ok(Self { id })
    }
}
