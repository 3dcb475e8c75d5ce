//! Namespaces: the prefix of all keys and channels of a handle.

use crate::{error::Error, message::Name};

/// The namespace of a handle: the prefix of its streams and channels.
///
/// The keys of a stream are made from its name with the prefix: see [`keys`](super::keys). A
/// namespace contains no colon. So the first colon in a prefixed name ends the namespace, and two
/// namespaces share no key and no channel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Namespace {
    /// Empty, or the namespace and a colon.
    prefix: Name,
}

/// Names that cannot be namespaces, since channels without a namespace begin with them:
/// `campanile:reply:`, and the Go library's `reply:`.
const RESERVED: [&str; 2] = ["campanile", "reply"];

impl Namespace {
    /// No namespace: keys and channels have no prefix.
    pub(super) const NONE: Self = Self {
        prefix: Name::from_static(""),
    };

    /// Makes a namespace.
    ///
    /// # Errors
    /// If the text cannot be a namespace.
    pub(super) fn new(name: &str) -> Result<Self, Error> {
        let fault = if RESERVED.contains(&name) {
            "keys and channels without a namespace begin with it; choose another name"
        } else if name.len() > Name::MAX_LEN {
            "it is longer than 1024 bytes"
        } else if !is_valid(name) {
            // A colon would let two namespaces share keys. Braces would move streams to other
            // slots. A digit at the start could be taken for the length with which some keys begin.
            // Glob characters and blanks would change the meaning of patterns and ACLs.
            "a namespace begins with a letter, and has letters, digits, `-`, `_` and `.` only"
        } else {
            return Ok(Self {
                prefix: format!("{name}:").into(),
            });
        };
        let text = format!(
            "the namespace `{}` cannot be used: {fault}",
            name.escape_debug()
        );
        Err(Error::config(text))
    }

    /// Returns the prefix of keys and channels.
    pub(super) fn prefix(&self) -> &Name {
        &self.prefix
    }

    /// Returns the name of the namespace; empty if there is none.
    pub(super) fn name(&self) -> &str {
        self.prefix.trim_end_matches(':')
    }

    /// Returns a name with the prefix.
    pub(super) fn apply(&self, name: &Name) -> Name {
        match self.prefix.is_empty() {
            true => name.clone(),
            false => Name::from(format!("{}{name}", self.prefix)),
        }
    }
}

fn is_valid(name: &str) -> bool {
    let is_allowed = |it: char| it.is_alphanumeric() || matches!(it, '-' | '_' | '.');
    name.starts_with(char::is_alphabetic) && name.chars().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_the_prefix_of_names_and_none_changes_nothing() {
        let staging = Namespace::new("staging").unwrap();
        assert_eq!(staging.apply(&"orders".into()), "staging:orders");
        assert_eq!(staging.prefix(), "staging:");
        assert_eq!(Namespace::NONE.apply(&"orders".into()), "orders");
        for name in ["a", "Team-7.blue_2", "größe"] {
            Namespace::new(name).expect(name);
        }
    }

    #[test]
    fn a_text_that_cannot_be_a_namespace_is_refused_with_the_reason() {
        let long = "x".repeat(Name::MAX_LEN + 1);
        for (name, reason) in [
            ("", "begins with a letter"),
            ("7", "begins with a letter"),
            ("a:b", "letters, digits"),
            ("a{b", "letters, digits"),
            ("a}b", "letters, digits"),
            ("a*", "letters, digits"),
            ("a?", "letters, digits"),
            ("a[b", "letters, digits"),
            ("a]b", "letters, digits"),
            ("a\\b", "letters, digits"),
            ("a b", "letters, digits"),
            ("a%20b", "letters, digits"),
            ("a\nb", "`a\\nb`"),
            ("campanile", "choose another"),
            ("reply", "choose another"),
            (&long, "longer than 1024 bytes"),
        ] {
            let error = Namespace::new(name).unwrap_err();
            assert!(error.is_config(), "{name}");
            assert!(error.to_string().contains(reason), "{error}");
        }
    }
}
