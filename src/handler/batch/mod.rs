//! Handlers that take many messages at once.
//!
//! A [`Batch`](crate::Batch) around a function gathers the messages of its route and calls the
//! function with a list of them: when there are [`size`](crate::Batch::size) messages, or when the
//! first has waited for the [`linger`](crate::Batch::linger). Otherwise it is a handler like any
//! other: each message has its own delivery, passes the layers alone, and is settled alone.
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
//! With other limits, and an outcome for each message:
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
//! Messages that wait for their batch are in flight: each holds a slot of
//! [`max_in_flight`](crate::transport::Settings::max_in_flight), its bytes and its lease. If
//! `max_in_flight` is smaller than the size of a batch, [`serve`](crate::serve()) fails. The limit
//! of a layer is unknown to `serve`: with fewer permits than the size of a batch, each batch waits
//! for its linger.
//!
//! # Cancel safety
//! If a delivery is dropped before its batch has begun, by a timeout for instance, the function
//! does not get its message. Later, the function runs on, and is dropped only when all deliveries
//! of the batch are dropped.
//!
//! # Errors
//! A payload that cannot be extracted fails its own message, which then is in no batch. An error of
//! the function fails all messages of the batch, with a [`BatchError`].
//!
//! # Panics
//! A panic of the function fails all messages of its batch.

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
