//! The wire format, apart from any transport: messages as the fields of a stream entry, replies as
//! JSON envelopes.
//!
//! The base format is that of the Go library Go-Broker: fields `type`, `name`, `payload` and, for
//! RPC, `reply_to` and `correlation_id`, in any order; a reply is
//! `{"correlation_id": …, "body": base64 or null, "error": …}`. Headers travel as further fields
//! `h:<name>`; internal fields start with `~`, which no header name can. A reader ignores fields
//! that it does not know.
//!
//! ```
//! use campanile::{Message, transport::codec};
//!
//! let mut fields = Vec::new();
//! codec::encode(&Message::task("orders.create", "{}"), |field, value| {
//!     fields.push((field.to_vec().into(), value.to_vec().into()));
//! });
//! let decoded = codec::decode(fields).unwrap();
//! assert_eq!(decoded.message.name(), "orders.create");
//! ```

mod entry;
mod header;
mod reply;

pub(crate) use self::entry::given_id;
pub use self::{
    entry::{Decoded, decode, encode},
    reply::{DecodedReply, decode_reply, encode_reply},
};

/// The field of the address that a reply is published to.
pub const REPLY_TO: &str = "reply_to";
/// The field of a request's correlation id.
pub const CORRELATION_ID: &str = "correlation_id";
/// What our clients' addresses start with.
pub(crate) const REPLY_PREFIX: &str = "campanile:reply:";
/// What Go-Broker's clients' addresses start with.
pub(crate) const GO_REPLY_PREFIX: &str = "reply:";
/// The internal field of the id that the message first had.
pub const ORIGIN: &str = "~o";
/// The internal field of the attempts so far, a decimal number.
pub const ATTEMPTS: &str = "~a";
/// The internal field of the time to live in milliseconds, counted from the origin id's time.
pub const TIME_TO_LIVE: &str = "~t";
/// The internal field of the id that the sender of a delayed task was given, a UUID.
pub const ID: &str = "~i";
/// The internal field of the key that makes sending a task twice the same as sending it once.
pub const IDEMPOTENCY_KEY: &str = "~k";
/// The internal field of the client that waits for a reliable reply: its UUID.
pub const CLIENT: &str = "~c";

/// The start of outside bytes, fit for a log.
fn excerpt(bytes: &[u8]) -> String {
    const MOST: usize = 64;
    let shown = bytes[..bytes.len().min(MOST)].escape_ascii();
    let rest = if bytes.len() > MOST { "…" } else { "" };
    format!("`{shown}{rest}`")
}
