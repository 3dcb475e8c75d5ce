//! Contracts: names with the types of their payloads, in code that senders and workers share.
//!
//! A constant has a name and the type of the payload. Routers and clients take the constant in
//! place of a name. A handler or a call with a wrong type does not compile:
//!
//! ```
//! use campanile::{Client, Json, Router, contract::{Event, Rpc, Task}};
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! pub struct Order {
//!     id: u64,
//! }
//!
//! pub const CREATE: Task<Order> = Task::new("orders.create");
//! pub const CREATED: Event<u64> = Event::new("orders.created");
//! pub const PRICE: Rpc<Order, u64> = Rpc::new("orders.price");
//!
//! async fn create(Json(order): Json<Order>) {
//!     # let _ = order.id;
//! }
//!
//! async fn price(Json(order): Json<Order>) -> Json<u64> {
//!     Json(100 * order.id)
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), campanile::Error> {
//! let app: Router = Router::new()
//!     .task(CREATE, create)
//!     .event(CREATED, async |Json(id): Json<u64>| println!("{id}"))
//!     .rpc(PRICE, price);
//!
//! let client = Client::new(app);
//! client.enqueue(CREATE, &Order { id: 7 }).await?;
//! client.publish(CREATED, 7).await?;
//! assert_eq!(client.call(PRICE, Order { id: 7 }).await?, 700);
//! # Ok(())
//! # }
//! ```
//!
//! A name that is a string has no types: it takes any payload.
//!
//! # Handlers
//! If the payload type of a constant is `T`, its handler takes a `Json<T>`, or an `Option` or a
//! `Result` of a `Json<T>`. A handler can also take the undecoded payload as `Bytes`, `Vec<u8>` or
//! a [`Message`](crate::Message), or have no argument for the payload. A payload extractor of your
//! own implements [`Carries<T>`](crate::extract::Carries).
//!
//! The handler of an [`Rpc<Q, R>`](Rpc) returns a `Json<R>`, or a reply that it has encoded itself:
//! a [`Reply`](crate::Reply), `Bytes` or `Vec<u8>`. If `R` is `()`, the handler may return `()`.
//!
//! A handler of a constant cannot take or return a plain `String`. The payload of a `Task<String>`
//! is a JSON string, with quotes, so its handler takes a `Json<String>`. The payload of a
//! `Task<()>` is `null`.
//!
//! The types of a service that is added to a router are not checked, because a service takes whole
//! messages.
//!
//! # Versions
//! A sender writes the [version](Task::version) of the constant into the header [`VERSION`]. A
//! worker compares the header of each message with the version of the route's constant. A payload
//! of an older version is [lifted](Task::lift) step by step. If a step is missing, or the header is
//! malformed, the message is rejected permanently. A message of a newer version fails with
//! [`NewerVersion`], without counting an attempt. After this error, a task is parked until a worker
//! starts that knows its version, a request is delivered again after the back-off, and an event is
//! not delivered again. Layers see messages before they are lifted.
//!
//! # Prefixes
//! The name of a constant is joined with the prefixes of [`Router::nest`](crate::Router::nest) and
//! [`Client::nest`](crate::Client::nest), as any other name is.

#[cfg(any(feature = "cbor", feature = "msgpack", feature = "protobuf"))]
mod codec;
mod constants;
mod description;
mod names;
mod payload;
mod reply;
#[cfg(feature = "schema")]
mod schema;
mod versions;

#[cfg(all(feature = "schema", feature = "testing"))]
pub use self::description::assert_schema_matches;
pub use self::{
    constants::{Event, Rpc, Task},
    description::{
        Affected, Breakage, Description, Direction, RouteDescription, TypeDescription, breakages,
    },
    names::{AnyPayload, EventName, Named, RpcName, TaskName},
    payload::{EncodedPayload, PayloadFor},
    reply::ContractReply,
    versions::{LiftedConstant, NewerVersion, VERSION},
};
#[cfg(feature = "schema")]
pub use self::{description::ApiInfo, schema::PayloadSchema};
pub use crate::reply::Replies;
