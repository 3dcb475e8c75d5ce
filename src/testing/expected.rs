//! Selects the messages of an assertion.

use std::fmt;

use bytes::Bytes;
use serde::Serialize;

use super::record::{Excerpt, Record};
use crate::{
    error::chain,
    message::{Kind, Message, Name},
    payload::IntoPayload,
};

/// Selects messages by kind and name, and by further conditions. Pass it to an assertion, or to a
/// script of a [`Recorder`](super::Recorder).
///
/// ```
/// use campanile::testing::task;
///
/// let expected = task("orders.create").json(serde_json::json!({ "id": 7 })).attempt(2).once();
/// assert_eq!(
///     expected.to_string(),
///     r#"task `orders.create` with the JSON {"id":7} at attempt 2"#
/// );
/// ```
#[derive(Debug, Clone)]
#[must_use = "it does nothing until it is passed to an assertion"]
pub struct Expected {
    kind: Option<Kind>,
    name: Name,
    payload: Option<ExpectedPayload>,
    headers: Vec<(String, Bytes)>,
    attempt: Option<u32>,
    reason: Option<String>,
    group: Option<Name>,
    stream: Option<Name>,
    pub(super) times: Option<usize>,
}

#[derive(Debug, Clone)]
enum ExpectedPayload {
    Bytes(Bytes),
    Json(serde_json::Value),
}

/// Selects tasks with this name.
pub fn task(name: impl Into<Name>) -> Expected {
    Expected::new(Some(Kind::Task), name.into())
}

/// Selects events with this name.
pub fn event(name: impl Into<Name>) -> Expected {
    Expected::new(Some(Kind::Event), name.into())
}

/// Selects RPC requests with this name.
pub fn rpc(name: impl Into<Name>) -> Expected {
    Expected::new(Some(Kind::Rpc), name.into())
}

/// Selects any message. Also selects entries that cannot be decoded, unless a payload, a header or
/// an attempt is required.
pub fn anything() -> Expected {
    Expected::new(None, Name::default())
}

impl Expected {
    fn new(kind: Option<Kind>, name: Name) -> Self {
        Self {
            kind,
            name,
            payload: None,
            headers: Vec::new(),
            attempt: None,
            reason: None,
            group: None,
            stream: None,
            times: None,
        }
    }

    /// Requires this payload, byte for byte.
    ///
    /// # Panics
    /// If the value cannot be serialized.
    #[track_caller]
    pub fn payload(mut self, payload: impl IntoPayload) -> Self {
        match payload.into_payload() {
            Ok(bytes) => self.payload = Some(ExpectedPayload::Bytes(bytes)),
            Err(error) => panic!(
                "the expected payload cannot be serialized: {}",
                chain(&*error)
            ),
        }
        self
    }

    /// Requires a payload that is the JSON of this value, with its keys in any order.
    ///
    /// # Panics
    /// If the value cannot be serialized.
    #[track_caller]
    pub fn json(mut self, value: impl Serialize) -> Self {
        match serde_json::to_value(value) {
            Ok(value) => self.payload = Some(ExpectedPayload::Json(value)),
            Err(error) => panic!("the expected payload cannot be serialized as JSON: {error}"),
        }
        self
    }

    /// Requires this header. Other headers are allowed.
    pub fn header(mut self, name: impl Into<String>, value: impl AsRef<[u8]>) -> Self {
        let value = Bytes::copy_from_slice(value.as_ref());
        self.headers.push((name.into(), value));
        self
    }

    /// Requires this attempt, counted from 1.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.attempt = Some(attempt);
        self
    }

    /// Requires that the reason of the failure, the redelivery or the dead letter contains this
    /// text.
    pub fn because(mut self, text: impl Into<String>) -> Self {
        self.reason = Some(text.into());
        self
    }

    /// Requires a delivery to this group.
    pub fn group(mut self, group: impl Into<Name>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Requires this stream.
    pub fn stream(mut self, stream: impl Into<Name>) -> Self {
        self.stream = Some(stream.into());
        self
    }

    /// Requires exactly this number of records. At least one unless set.
    pub fn times(mut self, times: usize) -> Self {
        self.times = Some(times);
        self
    }

    /// Requires exactly one record.
    pub fn once(self) -> Self {
        self.times(1)
    }

    /// Requires that there is no record.
    pub fn never(self) -> Self {
        self.times(0)
    }

    /// Returns `true` if the kind and the name match.
    pub(super) fn is_about(&self, message: Option<&Message>) -> bool {
        let Some(kind) = self.kind else {
            return true;
        };
        message.is_some_and(|message| message.kind() == kind && *message.name() == self.name)
    }

    /// Describes the first condition that a record does not meet. `None` if it meets all of them.
    /// The kind and the name of the record must match already.
    pub(super) fn difference(&self, record: &Record) -> Option<&'static str> {
        let differs =
            |expected: &Option<Name>, found: &Option<Name>| expected.is_some() && expected != found;
        if differs(&self.stream, &record.stream) {
            return Some("another stream");
        }
        if differs(&self.group, &record.group) {
            return Some("another group");
        }
        if let Some(text) = &self.reason
            && !record.reason().is_some_and(|reason| reason.contains(text))
        {
            return Some("another reason");
        }
        self.difference_in(record.message.as_ref())
    }

    /// Describes the first condition that a message does not meet. `None` if it meets all of them.
    /// The kind and the name of the message must match already.
    pub(super) fn difference_in(&self, message: Option<&Message>) -> Option<&'static str> {
        let Some(message) = message else {
            let needs_message = self.payload.is_some() || self.attempt.is_some();
            return (needs_message || !self.headers.is_empty()).then_some("no message");
        };
        if self
            .payload
            .as_ref()
            .is_some_and(|expected| !expected.matches(message.payload()))
        {
            return Some("another payload");
        }
        if self
            .attempt
            .is_some_and(|expected| expected != message.parts().attempt.0)
        {
            return Some("another attempt");
        }
        let is_missing = |(name, value): &(String, Bytes)| {
            let mut found = message.headers().get_all(name.as_str()).iter();
            !found.any(|found| found.as_bytes() == value)
        };
        self.headers
            .iter()
            .any(is_missing)
            .then_some("other headers")
    }
}

impl ExpectedPayload {
    fn matches(&self, payload: &Bytes) -> bool {
        match self {
            Self::Bytes(bytes) => bytes == payload,
            Self::Json(value) => serde_json::from_slice(payload)
                .is_ok_and(|found: serde_json::Value| found == *value),
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Some(kind) => write!(f, "{kind} `{}`", self.name)?,
            None => f.write_str("anything")?,
        }
        match &self.payload {
            Some(ExpectedPayload::Bytes(bytes)) => {
                write!(f, " with the payload {}", Excerpt(bytes))?
            }
            Some(ExpectedPayload::Json(value)) => {
                write!(f, " with the JSON {}", Excerpt(&value.to_string().into()))?;
            }
            None => {}
        }
        for (name, value) in &self.headers {
            write!(f, " with the header {name}: {}", Excerpt(value))?;
        }
        if let Some(attempt) = self.attempt {
            write!(f, " at attempt {attempt}")?;
        }
        if let Some(text) = &self.reason {
            write!(f, " because of \"{text}\"")?;
        }
        if let Some(group) = &self.group {
            write!(f, " in the group `{group}`")?;
        }
        if let Some(stream) = &self.stream {
            write!(f, " on the stream `{stream}`")?;
        }
        Ok(())
    }
}

/// Returns the second half of a failed assertion's text, such as `was sent twice instead of once`.
/// `None` if the number is right.
pub(super) fn miscount(verb: &str, expected: Option<usize>, found: usize) -> Option<String> {
    let in_words = |times: usize| match times {
        0 => "never".to_owned(),
        1 => "once".to_owned(),
        times => format!("{times} times"),
    };
    match expected {
        Some(0) if found == 0 => None,
        _ if found == 0 => Some(format!("was never {verb}")),
        Some(times) if times != found => {
            let (found, times) = (in_words(found), in_words(times));
            Some(format!("was {verb} {found} instead of {times}"))
        }
        _ => None,
    }
}
