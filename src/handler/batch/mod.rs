//! Handlers that take a batch of messages.
//!
//! A [`Batch`](crate::Batch) gathers the messages of its route, and calls its function with a list
//! of them. The call begins when there are [`size`](crate::Batch::size) messages, or when the first
//! message has waited for the [`linger`](crate::Batch::linger). In other respects a batch is like
//! any other handler: each message goes through the layers separately, and is settled separately.
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
//! The next batch has custom limits, and its function returns an outcome for each message:
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
//! route may run concurrently.
//!
//! # Back-pressure
//! Messages that wait for their batch are in flight. Each message holds its lease and a slot of
//! [`max_in_flight`](crate::transport::Settings::max_in_flight), and its payload counts for
//! [`max_in_flight_bytes`](crate::transport::Settings::max_in_flight_bytes). If `max_in_flight` is
//! smaller than the size of a batch, [`serve`](crate::serve()) fails. `serve` cannot check the
//! limits of layers: if a layer admits fewer messages than the size of a batch, each batch waits
//! for its whole linger.
//!
//! # Cancel safety
//! If a delivery is dropped before the function is called, for example by a timeout, the function
//! does not get the delivery's message. If a delivery is dropped later, the function continues. The
//! call of the function is dropped only when all deliveries of the batch are dropped.
//!
//! # Errors
//! If the extractor of a message fails, only that message fails. It does not enter a batch. If the
//! function returns an error, all messages of the batch fail with a [`BatchError`].
//!
//! # Panics
//! If the function panics, all messages of the batch fail with a [`BatchError`].

mod call;
mod error;
mod gather;
mod replies;
pub(crate) mod service;

pub use self::{
    call::BatchHandler,
    error::BatchError,
    replies::IntoReplies,
    service::{BatchService, Batched},
};
