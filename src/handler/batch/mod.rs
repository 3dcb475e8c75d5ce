//! Handlers that take many messages at once.
//!
//! A [`Batch`](crate::Batch) around a function gathers the messages of its route, wherever their deliveries are,
//! and calls the function with a list of them: when there are as many as asked for, or when the
//! first has waited for as long as it may. Everything else is as with any other handler: each
//! message has its own delivery, goes through the layers on its own, and is settled on its own.
//!
//! ```
//! use campanile::{Batch, Json, Router, State};
//!
//! #[derive(Clone)]
//! struct Db;
//!
//! # impl Db {
//! #     async fn insert(&self, _: Vec<u64>) -> Result<(), std::io::Error> { Ok(()) }
//! # }
//! async fn insert(State(db): State<Db>, rows: Vec<Json<u64>>) -> Result<(), std::io::Error> {
//!     db.insert(rows.into_iter().map(|Json(row)| row).collect()).await
//! }
//!
//! let app: Router = Router::new().task("rows.insert", Batch::new(insert)).with_state(Db);
//! ```
//!
//! With limits of its own, and an outcome for each message:
//!
//! ```
//! use campanile::{Batch, Failure, Router};
//! use std::time::Duration;
//!
//! async fn send(mails: Vec<String>) -> Vec<Result<(), Failure>> {
//!     let send_one = |mail: String| match mail.contains('@') {
//!         true => Ok(()),
//!         false => Err(Failure::dead_letter()),
//!     };
//!     mails.into_iter().map(send_one).collect()
//! }
//!
//! let send = Batch::new(send).size(20).linger(Duration::from_millis(100));
//! let app: Router = Router::new().task("mails.send", send);
//! ```
//!
//! # Ordering
//! The messages of a batch are in the order in which they reached the handler. Several batches of a
//! route may run at once.
//!
//! # Back-pressure
//! Messages that wait for their batch are in flight: they hold a place of
//! [`max_in_flight`](crate::transport::Settings::max_in_flight), their bytes and their lease. A
//! worker that may not have as many in flight as a batch takes is refused by
//! [`serve`](crate::serve()). A limit in a layer cannot be seen from there: with fewer permits than
//! messages in a batch, each batch waits for its linger.
//!
//! # Cancel safety
//! A message whose delivery is dropped before its batch has begun, by a timeout for instance, is
//! left out. Later it has no effect on the others; the function is dropped when nobody waits for any
//! message of the batch.
//!
//! # Errors
//! A payload that cannot be extracted fails its own message before it gets into a batch. An error of
//! the function as a whole is every message's error, behind a [`BatchError`].
//!
//! # Panics
//! A panic of the function fails every message of its batch.

mod call;
mod gather;
mod replies;
pub(crate) mod service;

pub use self::{
    call::BatchHandler,
    replies::IntoReplies,
    service::{BatchError, BatchService, Batched},
};
