//! Scheduled tasks, and their form in a store.

use std::{fmt, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::{Schedule, TICK, whole_milliseconds};
use crate::{
    contract::{PayloadFor, TaskName},
    error::{BoxError, Error, chain},
    message::{Deadline, Due, MAX_INTEGER, Message, Name, Unique},
};

/// The maximum size of a definition, in bytes. There is a maximum because every process that runs
/// the schedules reads all definitions.
const MAX_DEFINITION_LEN: usize = 256 << 10;
/// The maximum length of a schedule's name, in bytes. With a longer name, the unique key of its
/// task would be too long.
const MAX_NAME_LEN: usize = 1_000;

/// A task with a [`Schedule`], under a name. See the [module](super).
///
/// A mistake, such as an invalid header, is reported when the task is put into a transport's
/// [`Schedules`](crate::transport::Schedules), or by [`check`](Self::check).
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduledTask {
    name: Name,
    version: u64,
    definition: Definition,
    /// The first mistake in a payload or a header.
    mistake: Option<String>,
}

/// The part of a scheduled task that a store keeps as JSON. A field that this version of the
/// library does not know is an error, since it may change the meaning of the other fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Definition {
    schedule: Schedule,
    /// The name of the task.
    task: String,
    payload: Blob,
    headers: Vec<(String, Blob)>,
    /// In milliseconds.
    tracked: Option<u64>,
    /// In milliseconds.
    expires_after: Option<u64>,
    skip_while_running: bool,
}

impl ScheduledTask {
    /// Creates a scheduled task under the name `name`, which must be unique within the stream. The
    /// task `task` with this payload is sent at each tick of `schedule`.
    pub fn new<N: TaskName>(
        name: impl Into<Name>,
        schedule: Schedule,
        task: N,
        payload: impl PayloadFor<N::Payload>,
    ) -> Self {
        let task = task.named();
        let mut message = Message::task(task.name.clone(), Bytes::new());
        let mistake = match payload.encode() {
            Ok(encoded) => {
                task.write(encoded, &mut message);
                None
            }
            Err(error) => {
                let text = format!("the payload cannot be serialized: {}", chain(&*error));
                Some(text)
            }
        };
        let headers = message.headers().iter();
        let headers =
            headers.map(|(name, value)| (name.as_str().to_owned(), Blob::from_header(value)));
        Self {
            name: name.into(),
            version: 0,
            definition: Definition {
                schedule,
                task: task.name.to_string(),
                headers: headers.collect(),
                payload: Blob(message.into_payload()),
                tracked: None,
                expires_after: None,
                skip_while_running: false,
            },
            mistake,
        }
    }

    /// Sets the version of this definition. A definition does not replace a stored definition whose
    /// version is higher. So an old process that starts during a deploy changes nothing. Raise the
    /// version with each change. 0 unless set.
    #[must_use]
    pub fn version(mut self, version: u64) -> Self {
        self.version = version;
        self
    }

    /// Sends no task at a tick if the task of an earlier tick has not ended. The task of a schedule
    /// is then [unique](crate::client::Call::unique), with the key `schedule:` and the name of the
    /// schedule. A task that waits for a worker, for its next attempt, or for the end of its jitter
    /// has not ended either.
    ///
    /// The key belongs to the group of the handle that puts the schedule into the store.
    #[must_use]
    pub fn skip_while_running(mut self) -> Self {
        self.definition.skip_while_running = true;
        self
    }

    /// Adds a header to each task.
    #[must_use]
    pub fn header<K, V>(mut self, name: K, value: V) -> Self
    where
        HeaderName: TryFrom<K, Error: Into<http::Error>>,
        HeaderValue: TryFrom<V, Error: Into<http::Error>>,
    {
        let header = HeaderName::try_from(name)
            .map_err(Into::<http::Error>::into)
            .and_then(|name| Ok((name, HeaderValue::try_from(value).map_err(Into::into)?)));
        match header {
            Ok((name, value)) => {
                let header = (name.as_str().to_owned(), Blob::from_header(&value));
                self.definition.headers.push(header);
            }
            Err(error) => {
                let text = format!("a header that HTTP does not allow: {error}");
                self.mistake.get_or_insert(text);
            }
        }
        self
    }

    /// Records the status of each task: see [`Call::tracked`](crate::client::Call::tracked).
    #[must_use]
    pub fn tracked(mut self, keep: Duration) -> Self {
        self.definition.tracked = Some(whole_milliseconds(keep));
        self
    }

    /// Sets the time for which each task may wait for its start: see
    /// [`Call::expires_after`](crate::client::Call::expires_after).
    #[must_use]
    pub fn expires_after(mut self, time_to_live: Duration) -> Self {
        self.definition.expires_after = Some(whole_milliseconds(time_to_live));
        self
    }

    /// Returns the name of the schedule.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Returns the schedule.
    pub fn schedule(&self) -> &Schedule {
        &self.definition.schedule
    }

    /// Returns the name of the task.
    pub fn task_name(&self) -> &str {
        &self.definition.task
    }

    /// Returns the version of this definition.
    pub fn version_number(&self) -> u64 {
        self.version
    }

    /// Returns `true` if a tick is skipped while the task of an earlier tick has not ended.
    pub fn skips_while_running(&self) -> bool {
        self.definition.skip_while_running
    }

    /// Checks the names, the schedule, the payload and the headers.
    ///
    /// # Errors
    /// An [invalid](Error::is_invalid) error that says what to change.
    pub fn check(&self) -> Result<(), Error> {
        let invalid = |text: &str| {
            let name = self.name.escape_debug();
            Error::invalid(format!("the schedule `{name}` cannot be used: {text}"))
        };
        let task = Name::from(self.task_name());
        if let Some(fault) = self.name.fault().or_else(|| task.fault()) {
            return Err(invalid(fault));
        }
        if self.name.len() > MAX_NAME_LEN {
            return Err(invalid("its name is longer than 1000 bytes"));
        }
        if self.version >= MAX_INTEGER {
            return Err(invalid("its version has more than 15 digits"));
        }
        if let Some(mistake) = &self.mistake {
            return Err(invalid(mistake));
        }
        if self.definition.expires_after == Some(0) {
            return Err(invalid("a task that expires at once cannot be sent"));
        }
        if self.to_json().len() > MAX_DEFINITION_LEN {
            return Err(invalid(
                "its payload and headers are larger than 256 KiB; store the data elsewhere, and send a \
                 reference to it",
            ));
        }
        self.message(None).map_err(|error| invalid(&error))?;
        self.schedule().check()
    }

    /// Returns the task to send at a tick. `tick` is `None` for a run without a tick.
    ///
    /// # Errors
    /// If a stored header is invalid.
    pub(crate) fn message(&self, tick: Option<u64>) -> Result<Message, String> {
        let Definition {
            schedule,
            task,
            payload,
            headers,
            tracked,
            expires_after,
            skip_while_running,
        } = &self.definition;
        let mut message = Message::task(&**task, payload.0.clone());
        for (name, value) in headers {
            append_header(&mut message, name, value).map_err(|error| error.to_string())?;
        }
        let delay = tick.map_or(Duration::ZERO, |tick| {
            schedule.jitter_of_tick(&self.name, tick)
        });
        if let Some(time) = tick.and_then(tick_header) {
            message.headers_mut().insert(TICK, time);
        }
        let parts = message.parts_mut();
        parts.due = (!delay.is_zero()).then_some(Due::After(delay));
        parts.tracked = tracked.map(Duration::from_millis);
        let time_to_live = expires_after.map(Duration::from_millis);
        parts.deadline = time_to_live.map(|time| Deadline::after(delay.saturating_add(time)));
        parts.unique = skip_while_running.then(|| Unique::new(format!("schedule:{}", self.name)));
        Ok(message)
    }

    /// Returns the definition as JSON, for a store.
    pub(crate) fn to_json(&self) -> String {
        // Every part of a definition can be serialized.
        serde_json::to_string(&self.definition).unwrap_or_default()
    }

    /// Reads a stored definition.
    ///
    /// # Errors
    /// If this version of the library cannot read it.
    #[cfg(any(feature = "redis", test))]
    pub(crate) fn from_json(name: Name, version: u64, json: &[u8]) -> Result<Self, String> {
        let definition = serde_json::from_slice(json).map_err(|error| {
            format!("this version of campanile cannot read its definition: {error}")
        })?;
        let mistake = None;
        Ok(Self {
            name,
            version,
            definition,
            mistake,
        })
    }
}

/// Formats a tick for the header.
fn tick_header(tick: u64) -> Option<HeaderValue> {
    let time = jiff::Timestamp::from_millisecond(tick.try_into().ok()?).ok()?;
    HeaderValue::from_str(&time.to_string()).ok()
}

fn append_header(message: &mut Message, name: &str, value: &Blob) -> Result<(), BoxError> {
    let name = HeaderName::from_bytes(name.as_bytes())?;
    let value = HeaderValue::from_maybe_shared(value.0.clone())?;
    message.headers_mut().try_append(name, value)?;
    Ok(())
}

/// Bytes that JSON stores as a string. UTF-8 text is stored as it is. Other bytes, and text that
/// begins with [`BASE64_PREFIX`], are stored as this prefix and base64.
#[derive(Clone, PartialEq)]
struct Blob(Bytes);

impl Blob {
    fn from_header(value: &HeaderValue) -> Self {
        Self(Bytes::copy_from_slice(value.as_bytes()))
    }
}

const BASE64_PREFIX: &str = "base64:";

impl Serialize for Blob {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) if !text.starts_with(BASE64_PREFIX) => serializer.serialize_str(text),
            _ => serializer.collect_str(&format_args!("{BASE64_PREFIX}{}", BASE64.encode(&self.0))),
        }
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.strip_prefix(BASE64_PREFIX) {
            None => Ok(Self(text.into())),
            Some(encoded) => {
                let bytes = BASE64.decode(encoded).map_err(serde::de::Error::custom)?;
                Ok(Self(bytes.into()))
            }
        }
    }
}

// Payloads and header values must not get into logs.
impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::IntoPayload;

    fn task(payload: impl IntoPayload) -> ScheduledTask {
        ScheduledTask::new(
            "s",
            Schedule::every(Duration::from_secs(1)),
            "task",
            payload,
        )
    }

    #[test]
    fn a_definition_is_read_as_it_was_written() {
        for payload in [&b"text"[..], b"\xff\x00", b"base64:AA==", b""] {
            let written = task(payload)
                .version(7)
                .header("x-tenant", "acme")
                .header("x-raw", &b"\xff"[..])
                .tracked(Duration::from_secs(60))
                .expires_after(Duration::from_secs(5))
                .skip_while_running();
            written.check().expect("it is valid");
            let json = written.to_json();
            let read =
                ScheduledTask::from_json("s".into(), 7, json.as_bytes()).expect("it is JSON");
            assert_eq!(read, written, "{json}");
            let message = read.message(Some(1_774_746_000_000)).expect("valid");
            assert_eq!(message.payload(), payload);
            assert_eq!(message.headers()[TICK], "2026-03-29T01:00:00Z");
            assert!(
                !read
                    .message(None)
                    .expect("valid")
                    .headers()
                    .contains_key(TICK)
            );
        }
    }

    #[test]
    fn a_stored_definition_keeps_its_form() {
        let cron = Schedule::cron("0 3 * * *").in_zone("Europe/Berlin");
        let task = ScheduledTask::new("nightly", cron, "report", "all").header("x-a", "1");
        let json = r#"{"schedule":{"timing":{"cron":{"line":"0 3 * * *","zone":"Europe/Berlin"}},"missed":"once","jitter":0},"task":"report","payload":"all","headers":[["x-a","1"]],"tracked":null,"expires_after":null,"skip_while_running":false}"#;
        assert_eq!(task.to_json(), json);
    }

    #[test]
    fn a_definition_of_a_newer_version_is_refused() {
        let newer = task("")
            .to_json()
            .replacen('{', r#"{"only_on_mondays":true,"#, 1);
        let fault = ScheduledTask::from_json("s".into(), 1, newer.as_bytes()).unwrap_err();
        assert!(fault.contains("only_on_mondays"), "{fault}");
    }

    #[test]
    fn a_mistake_is_reported_by_the_check() {
        let every = Schedule::every(Duration::from_secs(1));
        for (task, text) in [
            (task(crate::Json(f64::NAN)), "payload"),
            (task("").header("a b", "1"), "header"),
            (task("x".repeat(300 << 10)), "256 KiB"),
            (task("").expires_after(Duration::ZERO), "expires at once"),
            (
                ScheduledTask::new("", every.clone(), "task", ""),
                "name is empty",
            ),
            (
                ScheduledTask::new("s", every.clone(), "", ""),
                "name is empty",
            ),
            (
                ScheduledTask::new("x".repeat(1_001), every, "t", ""),
                "1000 bytes",
            ),
            (
                ScheduledTask::new("s", Schedule::cron("?"), "t", ""),
                "cannot be read",
            ),
        ] {
            let error = task.check().expect_err(text);
            assert!(
                error.is_invalid() && error.to_string().contains(text),
                "{error}"
            );
        }
    }

    #[test]
    fn debug_shows_no_payload() {
        let shown = format!("{:?}", task("secret").header("x-token", "hunter2"));
        assert!(
            !shown.contains("secret") && !shown.contains("hunter2"),
            "{shown}"
        );
    }
}
