//! Names and ids: strings that are cheap to clone. Short ones are stored inline, longer ones are
//! shared.

use std::{borrow::Borrow, fmt, ops::Deref, str::Utf8Error};

use smol_str::SmolStr;

macro_rules! shared_string {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $type(SmolStr);

        impl $type {
            /// Wraps a string literal without copying it.
            pub const fn from_static(text: &'static str) -> Self {
                Self(SmolStr::new_static(text))
            }

            /// Decodes UTF-8 bytes.
            ///
            /// # Errors
            /// If the bytes are not UTF-8.
            pub fn from_utf8(bytes: &[u8]) -> Result<Self, Utf8Error> {
                std::str::from_utf8(bytes).map(Self::from)
            }

            /// Returns the text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Deref for $type {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $type {
            fn from(text: &str) -> Self {
                Self(SmolStr::new(text))
            }
        }

        impl From<String> for $type {
            fn from(text: String) -> Self {
                Self(SmolStr::from(text))
            }
        }

        impl From<&$type> for $type {
            fn from(other: &$type) -> Self {
                other.clone()
            }
        }

        impl PartialEq<str> for $type {
            fn eq(&self, other: &str) -> bool {
                self.as_str() == other
            }
        }

        impl PartialEq<&str> for $type {
            fn eq(&self, other: &&str) -> bool {
                self.as_str() == *other
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }
    };
}

shared_string! {
    /// A message's full dotted name, such as `orders.create`. Cheap to clone.
    ///
    /// Any UTF-8 text of 1 to [`Name::MAX_LEN`] bytes without control characters is a name. Dots
    /// have a meaning only for [`Router::nest`](crate::Router::nest) and
    /// [`Client::nest`](crate::Client::nest). Glob characters have a meaning only for
    /// [`Router::event_pattern`](crate::Router::event_pattern).
    Name
}

shared_string! {
    /// The id that the transport gave to a message. Cheap to clone.
    ///
    /// On Redis it is the id of the entry on the stream, `<milliseconds>-<sequence>`, or a UUID for
    /// a task that is delayed, tracked or unique. All deliveries of a message have the same id.
    ///
    /// An id is unique only within its stream: two busy streams can give the same id to different
    /// messages. To make a key from an id, add [`Parts::stream`](crate::Parts::stream), and also
    /// [`Parts::group`](crate::Parts::group) if each group needs a separate key.
    MessageId
}

shared_string! {
    /// The sender's id of a task: of two tasks with the same key, only one is stored. Cheap to
    /// clone.
    ///
    /// Any UTF-8 text of 1 to [`IdempotencyKey::MAX_LEN`] bytes, such as the id of an order.
    IdempotencyKey
}

impl IdempotencyKey {
    /// The maximum length of a key, in bytes.
    pub const MAX_LEN: usize = 1024;
}

shared_string! {
    /// The unique key of a task: see [`Call::unique`](crate::client::Call::unique).
    ///
    /// Any UTF-8 text of 1 to [`UniqueKey::MAX_LEN`] bytes.
    UniqueKey
}

impl UniqueKey {
    /// The maximum length in bytes.
    pub const MAX_LEN: usize = 1024;
}

shared_string! {
    /// Chooses the partition of a message on a partitioned stream: messages with the same key are
    /// in the same partition. Cheap to clone.
    ///
    /// Any UTF-8 text of 1 to [`PartitionKey::MAX_LEN`] bytes, such as the id of a customer.
    PartitionKey
}

impl PartitionKey {
    /// The maximum length of a key, in bytes.
    pub const MAX_LEN: usize = 1024;
}

shared_string! {
    /// The id of a dead letter, unique in its group. Cheap to clone.
    ///
    /// A message may become several dead letters: one more each time that it is replayed and fails
    /// again. So the id of a dead letter is not the id of the message.
    DeadLetterId
}

impl Name {
    /// The maximum length of a name, in bytes.
    pub const MAX_LEN: usize = 1024;

    /// Returns the reason why this text is not a valid name, or `None` if it is valid.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        if self.is_empty() {
            Some("the name is empty")
        } else if self.len() > Self::MAX_LEN {
            Some("the name is longer than 1024 bytes")
        } else if self.chars().any(char::is_control) {
            // Other tools write names into logs, labels and traces, often without escaping them.
            Some("the name has a control character")
        } else {
            None
        }
    }

    /// Returns `prefix.name`. If a side is empty, returns the other one without a dot.
    pub(crate) fn join(prefix: &Name, name: &Name) -> Name {
        match (prefix.is_empty(), name.is_empty()) {
            (true, _) => name.clone(),
            (_, true) => prefix.clone(),
            _ => Name::from(format!("{prefix}.{name}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn joining_puts_one_dot_between_two_texts_and_none_beside_an_empty_one() {
        let join = |a: &str, b: &str| Name::join(&a.into(), &b.into()).to_string();
        assert_eq!(join("orders", "create"), "orders.create");
        assert_eq!(join("", "create"), "create");
        assert_eq!(join("orders", ""), "orders");
        assert_eq!(join("a.b", "c"), "a.b.c");
    }

    #[test]
    fn a_name_has_at_least_one_byte_and_at_most_1024() {
        assert!(Name::from("").fault().is_some());
        assert!(Name::from("x".repeat(1024)).fault().is_none());
        assert!(Name::from("x".repeat(1025)).fault().is_some());
        assert!(Name::from("a b*?[c]").fault().is_none());
    }

    #[test]
    fn a_name_has_no_control_character() {
        for name in ["a\nb", "\0", "a\x1b[2J", "\x7f", "\u{9b}2J"] {
            let fault = Name::from(name).fault();
            assert_eq!(fault, Some("the name has a control character"), "{name:?}");
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_are_no_name() {
        assert!(Name::from_utf8(b"\xff\xfe").is_err());
        assert_eq!(Name::from_utf8(b"orders.create").unwrap(), "orders.create");
    }

    proptest! {
        #[test]
        fn any_text_is_kept_and_other_bytes_are_refused(bytes: Vec<u8>) {
            match Name::from_utf8(&bytes) {
                Ok(name) => prop_assert_eq!(name.as_bytes(), &bytes),
                Err(_) => prop_assert!(std::str::from_utf8(&bytes).is_err()),
            }
        }

        #[test]
        fn a_name_without_control_characters_is_refused_only_for_its_length(text in "\\PC{1,40}", times in 0..60usize) {
            let name = Name::from(text.repeat(times));
            match name.fault() {
                None => prop_assert!((1..=Name::MAX_LEN).contains(&name.len())),
                Some(fault) => {
                    prop_assert!(name.is_empty() || name.len() > Name::MAX_LEN);
                    prop_assert_eq!(fault.contains("empty"), name.is_empty());
                }
            }
        }

        #[test]
        fn nesting_is_the_same_from_the_inside_and_from_the_outside(
            a in "[a.]{0,3}",
            b in "[a.]{0,3}",
            c in "[a.]{0,3}",
        ) {
            let (a, b, c) = (Name::from(a), Name::from(b), Name::from(c));
            let inside = Name::join(&a, &Name::join(&b, &c));
            prop_assert_eq!(inside, Name::join(&Name::join(&a, &b), &c));
        }
    }
}
