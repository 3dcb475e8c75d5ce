//! The wire format of all transports: messages as the fields of a stream entry, replies as JSON
//! envelopes.
//!
//! The base format is that of the Go library Go-Broker: fields `type`, `name`, `payload` and, for
//! RPC, `reply_to` and `correlation_id`, in any order. A reply is
//! `{"correlation_id": …, "body": base64 or null, "error": …}`. Headers are further fields
//! `h:<name>`, and internal fields start with `~`. A reader ignores fields that it does not know.
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

/// The field with the channel to which the reply is published.
pub const REPLY_TO: &str = "reply_to";
/// The field with a request's correlation id.
pub const CORRELATION_ID: &str = "correlation_id";
/// The prefix of the reply channels of our clients.
pub(crate) const REPLY_PREFIX: &str = "campanile:reply:";
/// The prefix of the reply channels of Go-Broker's clients.
pub(crate) const GO_REPLY_PREFIX: &str = "reply:";
/// The internal field with the id of the message's first entry.
pub const ORIGIN: &str = "~o";
/// The internal field with the number of attempts so far, in decimal.
pub const ATTEMPTS: &str = "~a";
/// The internal field with the number of redeliveries in a row that did not count as attempts, in
/// decimal.
pub const UNCOUNTED_REDELIVERIES: &str = "~u";
/// The internal field with the time to live in milliseconds, counted from the time in the id of the
/// first entry.
pub const TIME_TO_LIVE: &str = "~t";
/// The internal field with the id of a task that is delayed, tracked or unique. The sending
/// transport generates this UUID, and returns it in the receipt. Other messages have no such field:
/// their id is the id of their first entry.
pub const RECEIPT_ID: &str = "~i";
/// The internal field with the idempotency key.
pub const IDEMPOTENCY_KEY: &str = "~k";
/// The internal field with the group that records the status of the task. Only a tracked or unique
/// task has it.
pub const RECORDING_GROUP: &str = "~j";
/// The internal field with the number of attempts after which the task is given up, in decimal.
pub const MAX_ATTEMPTS: &str = "~n";
/// The internal field with the maximum duration of each attempt, in milliseconds.
pub const ATTEMPT_TIMEOUT: &str = "~l";
/// The internal field with the partition key.
pub const PARTITION_KEY: &str = "~p";
/// The internal field with the UUID of the client that waits for a reliable reply.
pub const CLIENT: &str = "~c";

/// Returns the first 64 bytes of an untrusted value, escaped for a log.
fn excerpt(bytes: &[u8]) -> String {
    const MAX_LEN: usize = 64;
    let shown = bytes[..bytes.len().min(MAX_LEN)].escape_ascii();
    let rest = if bytes.len() > MAX_LEN { "…" } else { "" };
    format!("`{shown}{rest}`")
}
