//! The names of the keys that belong to a stream and a group.
//!
//! All of them are in the stream's own slot of a cluster, by its hash tag: a name that holds a tag
//! keeps it (`{orders}.v2` → `{orders}.v2:dead:group`), any other is wrapped (`orders` →
//! `{orders}:dead:group`).

use std::fmt::{Display, Write as _};

use crate::{error::Error, message::Name};

/// The keys of a stream and one of its groups.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    /// The stream itself.
    pub(super) stream: Name,
    /// The group.
    pub(super) group: Name,
    /// What every other key starts with.
    base: String,
    /// The stream of what is to be delivered to the group again.
    pub(super) retry: String,
    /// The sorted set of what is to be delivered to the group later, by its time.
    pub(super) due: String,
    /// The hash of the messages in `due`.
    pub(super) bodies: String,
    /// The stream of the group's dead letters.
    pub(super) dead: String,
    /// The sorted set of what its sender wants on the stream later.
    pub(super) stream_due: String,
    /// The hash of the messages in `stream_due`.
    pub(super) stream_bodies: String,
}

impl Keys {
    /// # Errors
    /// When the stream's name has a `}` that is not part of a hash tag: no key could be put in its
    /// slot.
    pub(super) fn new(stream: &Name, group: &Name) -> Result<Self, Error> {
        for (what, name) in [("stream", stream), ("group", group)] {
            if let Some(fault) = name.fault() {
                return Err(Error::config(format!("the {what} cannot be used: {fault}")));
            }
        }
        let base = base(stream)?;
        let of_group = |what: &str| format!("{base}:{what}:{group}");
        Ok(Self {
            stream: stream.clone(),
            group: group.clone(),
            retry: of_group("retry"),
            due: of_group("due"),
            bodies: of_group("bodies"),
            dead: of_group("dead"),
            stream_due: format!("{base}:due"),
            stream_bodies: format!("{base}:bodies"),
            base,
        })
    }

    /// The stream of reliable replies to a client.
    pub(super) fn replies(&self, client: impl Display) -> String {
        replies(&self.base, client)
    }

    /// What remembers that a task was sent with this key.
    pub(super) fn idempotency(&self, key: impl Display) -> String {
        format!("{}:idem:{key}", self.base)
    }

    /// What keeps the group's workers from all doing the same housekeeping.
    pub(super) fn gate(&self, what: impl Display) -> String {
        format!("{}:gate:{what}:{}", self.base, self.group)
    }
}

/// Whether keys that belong to `stream` can be put in its slot.
pub(super) fn check(stream: &Name) -> Result<(), Error> {
    if stream.contains('}') {
        base(stream)?;
    }
    match stream.fault() {
        None => Ok(()),
        Some(fault) => Err(Error::config(format!("the stream cannot be used: {fault}"))),
    }
}

/// What the keys that belong to `stream` start with.
pub(super) fn base(stream: &Name) -> Result<String, Error> {
    if has_hash_tag(stream) {
        Ok(stream.as_str().to_owned())
    } else if stream.contains('}') {
        Err(Error::config(format!(
            "the stream name `{stream}` has a `}}` without a hash tag before it; leave it out, or \
             write a tag such as `{{orders}}`"
        )))
    } else {
        Ok(format!("{{{stream}}}"))
    }
}

/// The stream of reliable replies to a client.
pub(super) fn replies(base: &str, client: impl Display) -> String {
    let mut key = String::with_capacity(base.len() + 41);
    let _ = write!(key, "{base}:rpc:{client}");
    key
}

/// Whether a cluster hashes only a part of the name: what is between the first `{` and the first
/// `}` after it, unless that is nothing. <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags>
fn has_hash_tag(name: &str) -> bool {
    name.split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'))
        .is_some_and(|(tag, _)| !tag.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(stream: &str) -> Result<Keys, Error> {
        Keys::new(&stream.into(), &"g{1}".into())
    }

    /// What a cluster hashes of a key.
    fn hashed(key: &str) -> &str {
        match key
            .split_once('{')
            .and_then(|(_, rest)| rest.split_once('}'))
        {
            Some((tag, _)) if !tag.is_empty() => tag,
            _ => key,
        }
    }

    #[test]
    fn every_key_is_in_the_streams_slot() {
        for stream in ["s", "{a}", "x{a}y}", "}{a}", "a{b", "{", "a b*?"] {
            let keys = keys(stream).unwrap();
            for key in [
                &keys.retry,
                &keys.due,
                &keys.bodies,
                &keys.dead,
                &keys.stream_due,
                &keys.stream_bodies,
                &keys.replies("c"),
                &keys.gate("scan"),
            ] {
                assert_eq!(hashed(key), hashed(stream), "{key}");
            }
        }
    }

    #[test]
    fn a_name_is_wrapped_unless_it_has_a_tag() {
        assert_eq!(keys("s").unwrap().dead, "{s}:dead:g{1}");
        assert_eq!(keys("{s}.v2").unwrap().retry, "{s}.v2:retry:g{1}");
        assert_eq!(keys("s").unwrap().replies(7), "{s}:rpc:7");
    }

    #[test]
    fn a_closing_brace_without_a_tag_is_refused_and_so_are_empty_names() {
        for stream in ["a}", "{}", "{}a{b}", "}{", ""] {
            assert!(
                keys(stream).is_err_and(|error| error.is_config()),
                "{stream}"
            );
        }
        assert!(Keys::new(&"s".into(), &"".into()).is_err());
    }

    proptest! {
        #[test]
        fn any_stream_shares_its_slot_with_its_keys_or_is_refused(stream in "[{}a:*\u{e4}]{0,8}") {
            match keys(&stream) {
                Ok(keys) => {
                    let of_client = keys.replies("c");
                    let all = [&keys.retry, &keys.due, &keys.bodies, &keys.dead, &of_client];
                    for key in all.into_iter().chain([&keys.stream_due, &keys.stream_bodies]) {
                        prop_assert_eq!(hashed(key), hashed(&stream));
                    }
                    prop_assert!(check(&stream.as_str().into()).is_ok());
                }
                Err(error) => {
                    prop_assert!(error.is_config());
                    prop_assert!(stream.is_empty() || error.to_string().contains("hash tag"));
                    prop_assert!(check(&stream.as_str().into()).is_err());
                }
            }
        }
    }
}
