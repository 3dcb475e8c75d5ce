//! Recipes for tasks and a database, with sqlx and SQLite. The page `docs/databases.md` explains
//! them.

use campanile::{BoxError, Json, Router, State};
use serde::{Deserialize, Serialize};
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode},
};

pub mod inbox;
pub mod outbox;

use self::inbox::Inbox;

/// A payment to an account.
#[derive(Debug, Serialize, Deserialize)]
pub struct Payment {
    /// The name of the account.
    pub account: String,
    /// The amount, in cents.
    pub cents: i64,
}

/// Opens the database, and creates the tables.
pub async fn open(file: &std::path::Path) -> sqlx::Result<SqlitePool> {
    let options = SqliteConnectOptions::new().filename(file);
    let options = options
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal);
    let db = SqlitePool::connect_with(options).await?;
    let accounts =
        "CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, cents INTEGER NOT NULL)";
    for table in [accounts, outbox::CREATE_TABLE, inbox::CREATE_TABLE] {
        sqlx::query(table).execute(&db).await?;
    }
    Ok(db)
}

/// Books a payment once, and adds the task that sends its receipt, in one transaction.
async fn book(
    State(db): State<SqlitePool>,
    inbox: Inbox,
    Json(payment): Json<Payment>,
) -> Result<(), BoxError> {
    let Some(mut transaction) = inbox.begin(&db).await? else {
        return Ok(());
    };
    sqlx::query(
        "INSERT INTO accounts (name, cents) VALUES (?, ?)
         ON CONFLICT (name) DO UPDATE SET cents = cents + excluded.cents",
    )
    .bind(&payment.account)
    .bind(payment.cents)
    .execute(&mut *transaction)
    .await?;
    outbox::add(
        &mut transaction,
        "receipts.send",
        payment.account.as_bytes(),
    )
    .await?;
    transaction.commit().await?;
    Ok(())
}

/// The application: it books payments, and prints receipts.
pub fn app() -> Router<SqlitePool> {
    Router::new()
        .task("payments.book", book)
        .task("receipts.send", async |account: String| {
            println!("a receipt for {account}")
        })
}

/// The code in `docs/databases.md` is tested here, since it needs sqlx.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/databases.md")]
struct Page;
