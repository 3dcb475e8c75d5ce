//! The versions of payloads.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Serialize, de::DeserializeOwned};

use super::{Event, Rpc, Task};
use crate::{
    error::{BoxError, Failure, Rejection},
    message::{EscapedText, Kind, Message, Name, PermitRequest},
    payload::{Format, IntoPayload, Json},
};

/// The header with the version of a message's payload. A message without this header has version 1.
pub const VERSION: HeaderName = HeaderName::from_static("contract-version");

/// The error of a message whose payload has a newer version than the [`Task`], [`Event`] or [`Rpc`]
/// of the worker's route. The error is wrapped in a [`Failure`], and the attempt does not count. A
/// task is parked until there is a worker that knows its version. A request is delivered again. An
/// event is not delivered again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewerVersion {
    name: Name,
    version: u32,
    known: u32,
}

impl NewerVersion {
    /// Returns the version of the message.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Returns the version that the worker knows.
    pub fn known_version(&self) -> u32 {
        self.known
    }
}

impl fmt::Display for NewerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = EscapedText::new(&self.name).at_most(Name::MAX_LEN);
        let Self { version, known, .. } = self;
        write!(
            f,
            "version {version} of `{name}` is newer than version {known}, which this worker knows"
        )
    }
}

impl std::error::Error for NewerVersion {}

/// Converts a payload of one version into a payload of the next version.
type Step = Arc<dyn Fn(&Bytes) -> Result<Bytes, String> + Send + Sync>;

/// A [`Task`], [`Event`] or [`Rpc`] together with the steps that lift older payloads. Created by
/// `lift`, for example by [`Task::lift`]. A router accepts a `LiftedConstant` as the name of a route.
#[must_use = "it names a route"]
pub struct LiftedConstant<C> {
    pub(super) constant: C,
    pub(super) steps: UpcastSteps,
    /// The version of the constant.
    current: u32,
}

/// The steps of a route. Each step has the version of the payloads that it lifts.
#[derive(Clone, Default)]
pub(super) struct UpcastSteps(Vec<(u32, Step)>);

impl UpcastSteps {
    /// Returns the step that lifts payloads of this version.
    fn step_from(&self, version: u32) -> Option<&Step> {
        let step = self.0.iter().find(|(from, _)| *from == version);
        step.map(|(_, step)| step)
    }

    /// Returns the oldest version that the steps can lift to the version `current`.
    pub(super) fn oldest_version(&self, current: u32) -> u32 {
        let older = (1..current).rev();
        let liftable = older.take_while(|version| self.step_from(*version).is_some());
        liftable.last().unwrap_or(current)
    }
}

impl<C> LiftedConstant<C> {
    #[track_caller]
    fn new(constant: C, current: u32) -> Self {
        Self {
            constant,
            steps: UpcastSteps::default(),
            current,
        }
    }

    /// Adds a step that lifts payloads of another version. See [`Task::lift`].
    ///
    /// # Panics
    /// As [`Task::lift`] does.
    #[track_caller]
    pub fn lift<Old, New>(
        mut self,
        from: u32,
        step: impl Fn(Old) -> New + Send + Sync + 'static,
    ) -> Self
    where
        Old: DeserializeOwned,
        New: Serialize,
    {
        let current = self.current;
        assert!(
            (1..current).contains(&from),
            "version {from} cannot be lifted to the next: the constant has version {current}"
        );
        assert!(
            self.steps.step_from(from).is_none(),
            "there is a step from version {from} already"
        );
        let lift_payload = move |payload: &Bytes| {
            let old = Json::<Old>::read(payload)?;
            let new = Json(step(old)).into_payload();
            new.map_err(|error| format!("what it was lifted to is no JSON: {error}"))
        };
        self.steps.0.push((from, Arc::new(lift_payload)));
        self
    }
}

impl<C: fmt::Debug> fmt::Debug for LiftedConstant<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from: Vec<_> = self.steps.0.iter().map(|(from, _)| from).collect();
        f.debug_struct("LiftedConstant")
            .field("constant", &self.constant)
            .field("from", &from)
            .finish()
    }
}

/// Implements `lift` for the constants.
macro_rules! lift {
    ($($constant:ident<$payload:ident $(, $reply:ident)?>),*) => {$(
        impl<$payload $(, $reply)?> $constant<$payload $(, $reply)?> {
            /// Adds a step that lifts payloads of the version `from` to the next version. An older
            /// payload goes through one step after another, up to the [version](Self::version) of
            /// the constant, before the handler gets it.
            ///
            /// A step takes and returns any types that serde reads and writes as JSON, such as
            /// `serde_json::Value`. A payload that the step cannot read is rejected, as
            /// [`Json`](crate::Json) rejects it. See the [module](super#versions).
            ///
            /// # Panics
            /// When `from` is zero or not lower than the version of the constant, or when there is
            /// a step from this version already.
            #[track_caller]
            pub fn lift<Old, New>(
                self,
                from: u32,
                step: impl Fn(Old) -> New + Send + Sync + 'static,
            ) -> LiftedConstant<Self>
            where
                Old: DeserializeOwned,
                New: Serialize,
            {
                LiftedConstant::new(self, self.fields().version).lift(from, step)
            }
        }
    )*};
}

lift!(Task<T>, Event<T>, Rpc<Q, R>);

/// Checks the version of a message, and lifts its payload to the current version.
///
/// # Errors
/// If the version header is malformed, or the version is newer than the current one. For an older
/// version, also if a step is missing, a step fails, or the payload is not JSON.
pub(super) fn admit(
    mut message: Message,
    current: u32,
    steps: &UpcastSteps,
) -> Result<Message, BoxError> {
    let version = match version_of(message.headers()) {
        Ok(version) if version == current => return Ok(message),
        Ok(version) => version,
        Err(value) => {
            let header = VERSION;
            let text = format!("the header `{header}` is `{value}`, which is no version");
            return Err(Rejection::permanent(text).into());
        }
    };
    if version > current {
        let newer = NewerVersion {
            name: message.name().clone(),
            version,
            known: current,
        };
        let failure = match message.kind() {
            Kind::Task => Failure::park(PermitRequest::of_newer(message.parts(), version)),
            // A request is redelivered and not parked, because its caller does not wait for long.
            // An event is never redelivered, whatever the verdict.
            Kind::Rpc | Kind::Event => Failure::redeliver().uncounted(),
        };
        return Err(failure.because(newer).into());
    }
    let oldest = steps.oldest_version(current);
    if version < oldest {
        let text = format!(
            "the payload has version {version}, and this worker reads versions {oldest} to {current}"
        );
        return Err(Rejection::permanent(text).into());
    }
    Format::Json
        .check_headers(message.headers())
        .map_err(|other| {
            Rejection::permanent(format!(
                "this message is {other}, and only JSON can be lifted"
            ))
        })?;
    for from in version..current {
        let lifted = steps.step_from(from).map(|step| step(message.payload()));
        match lifted {
            Some(Ok(payload)) => *message.payload_mut() = payload,
            Some(Err(fault)) => {
                let text = format!("version {from} of the payload cannot be lifted: {fault}");
                return Err(Rejection::permanent(text).into());
            }
            // Not reached: there is a step for each version from `oldest`.
            None => {}
        }
    }
    message.headers_mut().insert(VERSION, current.into());
    Ok(message)
}

/// Writes the version of a payload.
pub(super) fn write(version: u32, headers: &mut HeaderMap) {
    // Version 1 needs no header. Senders that do not know versions write none, so a message
    // without the header has version 1.
    if version > 1 {
        headers.insert(VERSION, HeaderValue::from(version));
    }
}

/// Returns the version of a message. If the version header is malformed, the error is the beginning
/// of its value.
fn version_of(headers: &HeaderMap) -> Result<u32, String> {
    /// The maximum number of digits of a version. Any number with this many digits fits into a
    /// `u32`.
    const MAX_DIGITS: usize = 9;
    let Some(value) = headers.get(VERSION) else {
        return Ok(1);
    };
    let text = value.as_bytes();
    let is_number =
        !text.is_empty() && text.len() <= MAX_DIGITS && text.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(text).ok().filter(|_| is_number);
    match number.and_then(|text| text.parse().ok()) {
        Some(version) if version > 0 => Ok(version),
        _ => {
            let shown = &text[..text.len().min(2 * MAX_DIGITS)];
            Err(String::from_utf8_lossy(shown).escape_debug().to_string())
        }
    }
}
