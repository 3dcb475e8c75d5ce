//! An inbox table: the ids of handled messages. A handler writes the id in the same transaction as
//! the effects of the message.

use campanile::{FromMessageParts, Parts, Rejection};
use sqlx::{Sqlite, SqlitePool, Transaction};

/// The statement that creates the table. The column `at` is for the removal of old rows.
pub const CREATE_TABLE: &str = "CREATE TABLE IF NOT EXISTS inbox (
    id TEXT PRIMARY KEY,
    at INTEGER NOT NULL DEFAULT (unixepoch())
) WITHOUT ROWID";

/// The id of a message in the inbox table. Handlers extract it.
#[derive(Debug)]
pub struct Inbox {
    id: String,
}

impl Inbox {
    /// Begins the transaction for the effects of the message. Returns `None` if an earlier delivery
    /// has committed these effects. If the transaction is dropped, the next delivery can begin
    /// again.
    pub async fn begin(
        &self,
        db: &SqlitePool,
    ) -> sqlx::Result<Option<Transaction<'static, Sqlite>>> {
        let mut transaction = db.begin().await?;
        // If another delivery of this message has inserted the id and not ended, this waits for it.
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
        // An id is unique only within its stream, and each group handles the message separately.
        let group = parts.group.as_deref().unwrap_or_default();
        let id = match (&parts.idempotency_key, &parts.stream, &parts.id) {
            // The key of an outbox row. If a task is sent twice, both messages have the same key.
            (Some(key), ..) => format!("{group} key {key}"),
            (None, Some(stream), Some(id)) => format!("{group} {stream} {id}"),
            _ => return Err(Rejection::permanent("the message has no id")),
        };
        Ok(Self { id })
    }
}
