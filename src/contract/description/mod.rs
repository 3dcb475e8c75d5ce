//! The description of an application: its routes, with the types of their constants.

#[cfg(feature = "schema")]
mod asyncapi;
mod compare;
mod form;
#[cfg(all(feature = "schema", feature = "testing"))]
mod schema;

use serde::{Deserialize, Serialize};
use serde_json::Value;

#[cfg(feature = "schema")]
pub use self::asyncapi::ApiInfo;
pub use self::compare::{Affected, Breakage, breakages};
#[cfg(all(feature = "schema", feature = "testing"))]
pub use self::schema::assert_schema_matches;
use crate::{error::Error, message::Kind};

/// The routes of an application, as [`Router::describe`](crate::Router::describe) returns them.
///
/// A description can be stored as JSON, shown, and [compared](breakages) with the description of
/// another version of the application.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Description {
    /// The routes, in the order in which they were added.
    pub routes: Vec<RouteDescription>,
}

/// A route of a [`Description`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RouteDescription {
    /// The kind of the messages.
    #[serde(with = "kind")]
    pub kind: Kind,
    /// The full name of the messages, or the pattern that their names match.
    pub name: String,
    /// `true` if the name is a Redis glob pattern.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_pattern: bool,
    /// `true` if the messages are sharded events.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_sharded: bool,
    /// The version of the payload. 1 for a route that is not named by a constant.
    #[serde(default = "first", skip_serializing_if = "is_first")]
    pub version: u32,
    /// The oldest version of the payload that the route accepts.
    #[serde(default = "first", skip_serializing_if = "is_first")]
    pub oldest_version: u32,
    /// The text about the route, as set for its constant, for example by
    /// [`Task::about`](crate::contract::Task::about).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// The payload. `None` if the route is not named by a constant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<TypeDescription>,
    /// The reply to a request. `None` if the route is not named by a constant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<TypeDescription>,
}

/// A type of a [`Description`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TypeDescription {
    /// The name of the type, without paths.
    pub name: String,
    /// The content type, if the constant has a schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// The JSON Schema (draft 7), if the constant has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
}

impl Description {
    pub(crate) fn new(routes: Vec<RouteDescription>) -> Self {
        Self { routes }
    }

    /// The maximum length as JSON, in bytes.
    pub const MAX_LEN: usize = 1 << 20;

    /// Writes the description as JSON.
    ///
    /// # Errors
    /// If the JSON is longer than [`MAX_LEN`](Self::MAX_LEN). A description
    /// [without schemas](Self::without_schemas) is shorter.
    pub fn to_json(&self) -> Result<String, Error> {
        let json = serde_json::to_string(self)
            .map_err(|error| Error::invalid(format!("the description is no JSON: {error}")))?;
        check_len(json.len())?;
        Ok(json)
    }

    /// Reads a description. Fields that this version of the library does not know are ignored.
    ///
    /// # Errors
    /// If the text is no description, or longer than [`MAX_LEN`](Self::MAX_LEN).
    pub fn from_json(json: &[u8]) -> Result<Self, Error> {
        check_len(json.len())?;
        serde_json::from_slice(json).map_err(|error| {
            Error::invalid(format!("not a description of an application: {error}"))
        })
    }

    /// Returns the description without the JSON Schemas.
    #[must_use]
    pub fn without_schemas(mut self) -> Self {
        for route in &mut self.routes {
            for description in [&mut route.payload, &mut route.reply].into_iter().flatten() {
                description.schema = None;
            }
        }
        self
    }
}

impl RouteDescription {
    pub(crate) fn new(kind: Kind, name: &str) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            is_pattern: false,
            is_sharded: false,
            version: 1,
            oldest_version: 1,
            about: None,
            payload: None,
            reply: None,
        }
    }
}

/// The way in which a worker uses a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The type of a payload, which the worker reads.
    Payload,
    /// The type of a reply, which the worker writes.
    Reply,
}

impl TypeDescription {
    /// Describes a type by the name that the compiler gives it.
    pub(super) fn named(type_name: &str) -> Self {
        Self {
            name: without_paths(type_name),
            content_type: None,
            schema: None,
        }
    }
}

/// Removes the paths from the name of a type: `Vec<Order>` instead of
/// `alloc::vec::Vec<shop::Order>`.
fn without_paths(type_name: &str) -> String {
    let mut text = String::with_capacity(type_name.len());
    let mut word_start = 0;
    let mut characters = type_name.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ':' && characters.next_if_eq(&':').is_some() {
            text.truncate(word_start);
            continue;
        }
        text.push(character);
        if !(character.is_alphanumeric() || character == '_') {
            word_start = text.len();
        }
    }
    text
}

fn check_len(len: usize) -> Result<(), Error> {
    match len <= Description::MAX_LEN {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "a description of {len} bytes is too long: the maximum is {} bytes",
            Description::MAX_LEN
        ))),
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde calls"
)]
fn is_false(value: &bool) -> bool {
    !value
}

fn first() -> u32 {
    1
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde calls"
)]
fn is_first(version: &u32) -> bool {
    *version == 1
}

/// Serializes a [`Kind`] as its text on the wire.
mod kind {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::message::Kind;

    pub(super) fn serialize<S: Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(kind.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Kind, D::Error> {
        let text = String::deserialize(from)?;
        let kinds = [Kind::Task, Kind::Event, Kind::Rpc];
        let kind = kinds.into_iter().find(|kind| kind.as_str() == text);
        kind.ok_or_else(|| D::Error::unknown_variant(&text, &["task", "event", "rpc"]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_shown_without_paths() {
        assert_eq!(without_paths("u64"), "u64");
        assert_eq!(without_paths("()"), "()");
        assert_eq!(
            without_paths("core::option::Option<(alloc::vec::Vec<a::b::Order>, [u8; 2])>"),
            "Option<(Vec<Order>, [u8; 2])>"
        );
        assert_eq!(without_paths("&'static str"), "&'static str");
    }

    #[test]
    fn text_that_is_no_description_is_refused() {
        let refused = |json: &[u8]| Description::from_json(json).unwrap_err().to_string();
        assert!(
            refused(b"[]").contains("not a description"),
            "{}",
            refused(b"[]")
        );
        let kind = refused(br#"{"routes":[{"kind":"job","name":"a"}]}"#);
        assert!(kind.contains("unknown variant `job`"), "{kind}");
        let schema = "[".repeat(1000);
        let payload = format!(r#"{{"name":"T","schema":{schema}"#);
        let deep = format!(r#"{{"routes":[{{"kind":"task","name":"a","payload":{payload}"#);
        assert!(refused(deep.as_bytes()).contains("recursion limit"));
        let long = refused(&vec![b' '; Description::MAX_LEN + 1]);
        assert!(long.contains("the maximum is 1048576 bytes"), "{long}");
    }

    #[test]
    fn fields_of_a_newer_version_are_ignored() {
        let json = br#"{"routes":[{"kind":"task","name":"a","since":7}],"about":"new"}"#;
        let description = Description::from_json(json).unwrap();
        assert_eq!(description.routes[0].name, "a");
        let again = Description::from_json(description.to_json().unwrap().as_bytes()).unwrap();
        assert_eq!(again, description);
    }
}
