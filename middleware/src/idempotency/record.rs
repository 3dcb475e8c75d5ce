//! Encodes outcomes for a store, and decodes stored outcomes.

use std::{borrow::Cow, error::Error, fmt};

use bytes::Bytes;
use campanile::{
    BoxError, Failure, Kind, Rejection, Reply, RpcCode, RpcError,
    error::{FailureVerdict, find},
    transport::codec,
};
use serde::{Deserialize, Serialize};

use super::{Outcome, Remember};
use crate::key::MessageIdentity;

/// A stored outcome, as JSON. Unknown fields are ignored, so that a later version can add fields.
#[derive(Serialize, Deserialize)]
struct Record<'a> {
    /// The [identity](MessageIdentity) of the message that had this outcome, if that message has an
    /// identity.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    id: Option<Cow<'a, str>>,
    outcome: OutcomeKind,
    /// The text of a failure; empty for a success.
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    text: Cow<'a, str>,
    /// The reply of a success, or the error reply of a failure, encoded as on the wire. The failure
    /// of a task may have an error reply, too.
    #[serde(
        rename = "answer",
        borrow,
        default,
        skip_serializing_if = "Option::is_none"
    )]
    reply: Option<Cow<'a, str>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OutcomeKind {
    /// A success.
    Done,
    /// A request failed with an error reply.
    Answered,
    DeadLetter,
    Discarded,
}

/// Encodes an outcome. Returns `None` for a failure that is not stored: a failure that is not
/// permanent, or any failure with [`Remember::Successes`].
pub(super) fn encode(
    kind: Kind,
    identity: Option<&MessageIdentity>,
    outcome: &Outcome,
    remember: Remember,
) -> Option<Bytes> {
    let (outcome_kind, text, reply) = match outcome {
        Ok(reply) => (OutcomeKind::Done, String::new(), Some(Ok(reply.clone()))),
        Err(_) if remember == Remember::Successes => return None,
        Err(error) => {
            let (outcome_kind, error_reply) = permanent_failure(kind, error)?;
            (outcome_kind, chain(&**error), error_reply.map(Err))
        }
    };
    let reply = reply.map(|reply| {
        let envelope = codec::encode_reply("", &reply);
        String::from_utf8(envelope).expect("JSON is text").into()
    });
    let record = Record {
        id: identity.map(|identity| identity.to_string().into()),
        outcome: outcome_kind,
        text: text.into(),
        reply,
    };
    let json = serde_json::to_vec(&record).expect("a record holds nothing that JSON cannot");
    Some(json.into())
}

/// Returns the kind of a permanent failure, and its error reply if it has one. Returns `None` if
/// the failure is not permanent.
fn permanent_failure(kind: Kind, error: &BoxError) -> Option<(OutcomeKind, Option<RpcError>)> {
    let error = &**error;
    let rejection = find::<Rejection>(error).filter(|rejection| rejection.is_permanent());
    let reply = find::<RpcError>(error).cloned();
    let reply = reply.or_else(|| rejection.map(|r| RpcError::invalid(chain(r))));
    match FailureVerdict::of(kind, error) {
        Some(FailureVerdict::DeadLetter) => Some((OutcomeKind::DeadLetter, reply)),
        Some(FailureVerdict::Discard) => Some((OutcomeKind::Discarded, reply)),
        Some(_) => None,
        None => {
            let reply = reply?;
            let is_transient = matches!(
                reply.code(),
                RpcCode::Unavailable | RpcCode::Deadline | RpcCode::Internal
            );
            (!is_transient).then_some((OutcomeKind::Answered, Some(reply)))
        }
    }
}

/// Returns an error and its sources on one line.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    // Bounded, because a custom error may return itself as its source.
    let errors = std::iter::successors(Some(error), |&error| error.source()).take(16);
    let texts: Vec<_> = errors.map(ToString::to_string).collect();
    texts.join(": ")
}

/// The effect of a stored outcome on a message with the same key.
pub(super) enum StoredOutcome {
    /// The message gets this outcome, and does not run.
    Repeat(Outcome),
    /// The message runs again, because it was replayed from the dead letters. The stored failure is
    /// from its earlier run.
    RunAgain,
}

/// Decodes a stored outcome for the message with this identity.
pub(super) fn decode(
    stored: &[u8],
    identity: Option<&MessageIdentity>,
) -> Result<StoredOutcome, BoxError> {
    let record: Record<'_> = serde_json::from_slice(stored)
        // Leaves out the parser's error, because it quotes the input, which may contain a payload.
        .map_err(|_| "a stored outcome cannot be read")?;
    let reply = match &record.reply {
        Some(envelope) => Some(codec::decode_reply(envelope.as_bytes())?.answer?),
        None => None,
    };
    if record.outcome == OutcomeKind::Done {
        let reply: Reply = reply.unwrap_or_else(|| Ok(Reply::default()))?;
        return Ok(StoredOutcome::Repeat(Ok(reply)));
    }
    let is_own = |identity: &MessageIdentity| record.id.as_deref() == Some(&*identity.to_string());
    if identity.is_some_and(is_own) {
        return Ok(StoredOutcome::RunAgain);
    }
    let repeated = RepeatedFailure {
        text: record.text.into_owned(),
        reply: reply.and_then(Result::err),
    };
    let error: BoxError = match record.outcome {
        OutcomeKind::Done | OutcomeKind::Answered => repeated.into(),
        OutcomeKind::DeadLetter => Failure::dead_letter().because(repeated).into(),
        OutcomeKind::Discarded => Failure::discard().because(repeated).into(),
    };
    Ok(StoredOutcome::Repeat(Err(error)))
}

/// The failure of an earlier message with the same key. Its source is the error reply of that
/// message, if there was one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepeatedFailure {
    text: String,
    reply: Option<RpcError>,
}

impl fmt::Display for RepeatedFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an earlier message failed: {}", self.text)
    }
}

impl Error for RepeatedFailure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.reply.as_ref().map(|reply| reply as _)
    }
}
