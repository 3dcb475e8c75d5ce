//! The keys by which layers group messages, such as a tenant, an entity or an idempotency key.
//!
//! Each layer that works by key takes a [`KeyOf`]: a closure, or a key function of this module.
//!
//! ```
//! use campanile::Message;
//! use campanile_middleware::key::{self, KeyOf};
//!
//! let by_tenant = key::header("x-tenant");
//! // The name of the message up to the first dot.
//! let by_group = |message: &Message| message.name().split('.').next().map(str::to_owned);
//!
//! let message = Message::task("orders.create", "{}");
//! assert_eq!(by_group.key_of(&message).unwrap().as_str(), "orders");
//! assert!(by_tenant.key_of(&message).is_none());
//! ```
//!
//! # Errors
//! [`MissingKey`] decides how a message without a key is handled. An empty text, a text longer than
//! [`Key::MAX_LEN`] bytes, and a header that is not UTF-8 do not count as keys. Long keys could
//! fill the memory of this process. If an empty text were a key, all senders that leave the value
//! empty would share this key.

use std::{borrow::Borrow, fmt};

use campanile::{IdempotencyKey, Message, MessageId, Name, Parts, Rejection};
use http::HeaderName;
use smol_str::{SmolStr, ToSmolStr};

/// A key of a message. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(SmolStr);

impl Key {
    /// The maximum length of a key, in bytes. The lengths of the message's stream name and group
    /// name are added to this limit, because the key of [`message_id`] contains both names.
    pub const MAX_LEN: usize = 1024;

    /// Returns the key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

macro_rules! from_texts {
    ($($type:ty),*) => {$(
        impl From<$type> for Key {
            fn from(text: $type) -> Self {
                Self(SmolStr::from(text))
            }
        }
    )*};
}

macro_rules! from_displayed {
    ($($type:ty),*) => {$(
        impl From<$type> for Key {
            fn from(value: $type) -> Self {
                Self(value.to_smolstr())
            }
        }
    )*};
}

/// Identifies a delivered message among the messages of all streams and groups. Cheap to clone.
///
/// The id alone is not enough: it is unique only within its stream, and each group handles the
/// message separately.
#[allow(dead_code)] // The feature `key` alone has no layer that uses this.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct MessageIdentity {
    stream: Option<Name>,
    group: Option<Name>,
    id: MessageId,
}

#[allow(dead_code)]
impl MessageIdentity {
    /// Returns the identity of the message, or `None` if the message has no id.
    pub(crate) fn of(parts: &Parts) -> Option<Self> {
        Some(Self {
            stream: parts.stream.clone(),
            group: parts.group.clone(),
            id: parts.id.clone()?,
        })
    }
}

/// Writes the stream and the group with their lengths, then the id: `6:orders:5:group:7-0`.
///
/// The lengths make the text unambiguous, because a name may contain any character. A missing name
/// is written as an empty name, which no stream or group can have.
impl fmt::Display for MessageIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in [&self.stream, &self.group] {
            let name = name.as_deref().unwrap_or_default();
            write!(f, "{}:{name}:", name.len())?;
        }
        f.write_str(&self.id)
    }
}

from_texts!(&str, String);
from_displayed!(
    &MessageIdentity,
    &Name,
    &MessageId,
    &IdempotencyKey,
    u32,
    u64,
    i64
);

/// Extracts the key of a message. Implemented for `Fn(&Message) -> Option<impl Into<Key>>`.
///
/// The closure must declare the type of its argument: `|message: &Message| …`.
pub trait KeyOf {
    /// Returns the key of the message, if it has one.
    fn key_of(&self, message: &Message) -> Option<Key>;
}

impl<F, K> KeyOf for F
where
    F: Fn(&Message) -> Option<K>,
    K: Into<Key>,
{
    fn key_of(&self, message: &Message) -> Option<Key> {
        self(message).map(Into::into)
    }
}

/// Returns a key function that takes the value of a header. If the header is repeated, its first
/// value is the key.
///
/// # Panics
/// If the name is not a valid header name.
#[track_caller]
pub fn header(name: &str) -> Header {
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) => Header(name),
        Err(_) => panic!("{name:?} is not a valid header name"),
    }
}

/// Returns a key function that gives all messages the same key.
pub const fn all() -> All {
    All
}

/// Returns a key function that takes the message's id with its stream and group, because an id is
/// unique only within its stream. Redelivered and claimed messages keep this key.
pub const fn message_id() -> ById {
    ById
}

/// Returns a key function that takes the message's full name.
pub const fn name() -> ByName {
    ByName
}

/// Returns a key function that takes the task's idempotency key, which the sender sets with
/// `Call::idempotency_key`.
pub const fn idempotency_key() -> ByIdempotencyKey {
    ByIdempotencyKey
}

/// The key function that [`header`] returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header(HeaderName);

impl KeyOf for Header {
    fn key_of(&self, message: &Message) -> Option<Key> {
        let value = message.headers().get(&self.0)?;
        std::str::from_utf8(value.as_bytes()).ok().map(Key::from)
    }
}

/// The key function that [`message_id`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ById;

impl KeyOf for ById {
    fn key_of(&self, message: &Message) -> Option<Key> {
        MessageIdentity::of(message.parts()).as_ref().map(Key::from)
    }
}

/// The key function that [`all`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct All;

impl KeyOf for All {
    fn key_of(&self, _: &Message) -> Option<Key> {
        Some(Key::from("all"))
    }
}

/// The key function that [`name`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByName;

impl KeyOf for ByName {
    fn key_of(&self, message: &Message) -> Option<Key> {
        Some(message.name().into())
    }
}

/// The key function that [`idempotency_key`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByIdempotencyKey;

impl KeyOf for ByIdempotencyKey {
    fn key_of(&self, message: &Message) -> Option<Key> {
        message.parts().idempotency_key.as_ref().map(Key::from)
    }
}

/// Decides how a layer handles a message without a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum MissingKey {
    /// The message fails with a permanent [`Rejection`]: a task becomes a dead letter immediately,
    /// a request is answered with `invalid`, and an event is logged and counted.
    #[default]
    Reject,
    /// The inner service handles the message as if the layer did not exist.
    Pass,
}

/// A layer's key function, and its rule for messages without a key.
#[allow(dead_code)] // The feature `key` alone has no layer that uses this.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyExtractor<K> {
    pub(crate) extract: K,
    pub(crate) missing: MissingKey,
}

#[allow(dead_code)]
impl<K> KeyExtractor<K> {
    pub(crate) fn new(extract: K) -> Self {
        Self {
            extract,
            missing: MissingKey::default(),
        }
    }
}

#[allow(dead_code)]
impl<K: KeyOf> KeyExtractor<K> {
    /// Returns the key of the message, or `None` if the message passes without a key.
    pub(crate) fn of(&self, message: &Message) -> Result<Option<Key>, Rejection> {
        let fault = match self.extract.key_of(message) {
            Some(key) if key.0.is_empty() => "the message's key is empty",
            Some(key) if key.0.len() > max_len(message.parts()) => {
                "the message's key is longer than 1024 bytes"
            }
            Some(key) => return Ok(Some(key)),
            None => "the message has no key",
        };
        match self.missing {
            MissingKey::Reject => Err(Rejection::permanent(fault)),
            MissingKey::Pass => Ok(None),
        }
    }
}

/// Returns the maximum length of a key that this message may have, in bytes.
#[allow(dead_code)]
fn max_len(parts: &Parts) -> usize {
    let names = [&parts.stream, &parts.group].into_iter().flatten();
    Key::MAX_LEN + names.map(|name| name.len()).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn message_of_tenant(value: &[u8]) -> Message {
        let mut message = Message::task("a", "");
        let value = HeaderValue::from_bytes(value).unwrap();
        message.headers_mut().insert("x-tenant", value);
        message
    }

    #[test]
    fn each_predefined_key_takes_the_value_that_it_is_named_after() {
        let mut message = message_of_tenant(b"acme");
        let parts = message.parts_mut();
        parts.id = Some("7-0".into());
        (parts.stream, parts.group) = (Some("a:b".into()), Some("g".into()));
        message.parts_mut().idempotency_key = Some("order-7".into());
        let found = [
            header("X-Tenant").key_of(&message),
            message_id().key_of(&message),
            name().key_of(&message),
            idempotency_key().key_of(&message),
        ];
        let found = found.map(|key| key.unwrap().to_string());
        assert_eq!(found, ["acme", "3:a:b:1:g:7-0", "a", "order-7"]);
        let bare = Message::event("a", "");
        assert_eq!(header("x-tenant").key_of(&bare), None);
        assert_eq!(message_id().key_of(&bare), None);
        assert_eq!(idempotency_key().key_of(&bare), None);
    }

    fn delivered(stream: Option<&str>, group: Option<&str>, id: &str) -> Message {
        let mut message = Message::task("a", "");
        let parts = message.parts_mut();
        (parts.stream, parts.group) = (stream.map(Into::into), group.map(Into::into));
        parts.id = Some(id.into());
        message
    }

    #[test]
    fn messages_of_other_streams_or_groups_have_other_keys() {
        // Without their lengths these names and ids would give equal keys.
        let names = [
            None,
            Some("a"),
            Some("a:1"),
            Some("1:a"),
            Some("1:a:1:a"),
            Some(":"),
        ];
        let mut keys = std::collections::HashSet::new();
        for stream in names {
            for group in names {
                for id in ["7-0", "1:a:7-0", ":7-0"] {
                    let key = message_id().key_of(&delivered(stream, group, id));
                    assert!(keys.insert(key), "{stream:?} {group:?} {id}");
                }
            }
        }
    }

    #[test]
    fn a_message_of_a_stream_and_group_with_the_longest_names_has_a_key() {
        let name = "x".repeat(Name::MAX_LEN);
        let message = delivered(Some(&name), Some(&name), "1795430237570-0");
        assert!(
            KeyExtractor::new(message_id())
                .of(&message)
                .unwrap()
                .is_some()
        );
    }

    #[test]
    fn an_empty_or_too_long_value_and_one_that_is_not_utf_8_is_no_key() {
        let mut keys = KeyExtractor::new(header("x-tenant"));
        for (value, fault) in [
            (&b""[..], "the message's key is empty"),
            (&[b'x'; 1025], "the message's key is longer than 1024 bytes"),
            (b"\xff", "the message has no key"),
        ] {
            keys.missing = MissingKey::Reject;
            let rejection = keys.of(&message_of_tenant(value)).unwrap_err();
            assert!(rejection.is_permanent());
            assert_eq!(rejection.to_string(), fault);
            keys.missing = MissingKey::Pass;
            assert_eq!(keys.of(&message_of_tenant(value)).unwrap(), None);
        }
        let longest = keys.of(&message_of_tenant(&[b'x'; 1024])).unwrap();
        assert_eq!(longest.unwrap().as_str().len(), 1024);
    }

    #[test]
    fn an_invalid_header_name_panics_at_the_callers_location() {
        crate::panics::panic_text(|| header("x tenant"));
    }
}
