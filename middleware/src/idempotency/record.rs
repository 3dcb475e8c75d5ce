//! Encodes and decodes stored outcomes.

use std::{borrow::Cow, error::Error, fmt};

use bytes::Bytes;
use campanile::{
    BoxError, Failure, Kind, Rejection, Reply, RpcCode, RpcError,
    error::{Settle, find},
    transport::codec,
};
use serde::{Deserialize, Serialize};

use super::{Outcome, Remember};
use crate::key::MessageIdentity;

/// A stored outcome, as JSON. Unknown fields are ignored, so that a later version can add fields.
#[derive(Serialize, Deserialize)]
struct Record<'a> {
    /// The stream, the group and the id of the message with this outcome.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    id: Option<Cow<'a, str>>,
    outcome: OutcomeKind,
    /// The text of a failure.
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    text: Cow<'a, str>,
    /// The reply, or the error that the caller of a request got. Encoded as a reply on the wire.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    answer: Option<Cow<'a, str>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OutcomeKind {
    Done,
    Answered,
    DeadLetter,
    Discarded,
}

/// Encodes an outcome, or returns `None` if it is not to be stored.
pub(super) fn encode(
    kind: Kind,
    identity: Option<&MessageIdentity>,
    outcome: &Outcome,
    remember: Remember,
) -> Option<Bytes> {
    let (ended, text, answer) = match outcome {
        Ok(reply) => (OutcomeKind::Done, String::new(), Some(Ok(reply.clone()))),
        Err(_) if remember == Remember::Successes => return None,
        Err(error) => {
            let (ended, answer) = permanent(kind, error)?;
            (ended, chain(&**error), answer.map(Err))
        }
    };
    let answer = answer.map(|answer| {
        let envelope = codec::encode_reply("", &answer);
        String::from_utf8(envelope).expect("JSON is text").into()
    });
    let record = Record {
        id: identity.map(|identity| identity.to_string().into()),
        outcome: ended,
        text: text.into(),
        answer,
    };
    let json = serde_json::to_vec(&record).expect("a record holds nothing that JSON cannot");
    Some(json.into())
}

/// Returns the kind of a failure, and the error reply to a request. `None` if the failure is not
/// permanent.
fn permanent(kind: Kind, error: &BoxError) -> Option<(OutcomeKind, Option<RpcError>)> {
    let error = &**error;
    let rejection = find::<Rejection>(error).filter(|rejection| rejection.is_permanent());
    let answer = find::<RpcError>(error).cloned();
    let answer = answer.or_else(|| rejection.map(|r| RpcError::invalid(chain(r))));
    match Settle::of(kind, error) {
        Some(Settle::DeadLetter) => Some((OutcomeKind::DeadLetter, answer)),
        Some(Settle::Discard) => Some((OutcomeKind::Discarded, answer)),
        Some(_) => None,
        None => {
            let answer = answer?;
            let transient = matches!(
                answer.code(),
                RpcCode::Unavailable | RpcCode::Deadline | RpcCode::Internal
            );
            (!transient).then_some((OutcomeKind::Answered, Some(answer)))
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

/// The effect of a stored outcome on a message.
pub(super) enum StoredOutcome {
    /// The message gets this outcome.
    Repeat(Outcome),
    /// The message is run again, because the stored failure is its own.
    RunAgain,
}

/// Decodes a stored outcome for the message with this identity.
pub(super) fn decode(
    stored: &[u8],
    identity: Option<&MessageIdentity>,
) -> Result<StoredOutcome, BoxError> {
    let record: Record<'_> = serde_json::from_slice(stored)
        // The parser's error is dropped, because it quotes its input, which may contain a payload.
        .map_err(|_| "a stored outcome cannot be read")?;
    let answer = match &record.answer {
        Some(envelope) => Some(codec::decode_reply(envelope.as_bytes())?.answer?),
        None => None,
    };
    if record.outcome == OutcomeKind::Done {
        let reply: Reply = answer.unwrap_or_else(|| Ok(Reply::default()))?;
        return Ok(StoredOutcome::Repeat(Ok(reply)));
    }
    let own = |identity: &MessageIdentity| record.id.as_deref() == Some(&*identity.to_string());
    if identity.is_some_and(own) {
        return Ok(StoredOutcome::RunAgain);
    }
    let repeated = Repeated {
        text: record.text.into_owned(),
        answer: answer.and_then(Result::err),
    };
    let error: BoxError = match record.outcome {
        OutcomeKind::Done | OutcomeKind::Answered => repeated.into(),
        OutcomeKind::DeadLetter => Failure::dead_letter().because(repeated).into(),
        OutcomeKind::Discarded => Failure::discard().because(repeated).into(),
    };
    Ok(StoredOutcome::Repeat(Err(error)))
}

/// The failure of an earlier message with the same key. If that message was a request, the source
/// is its error reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeated {
    text: String,
    answer: Option<RpcError>,
}

impl fmt::Display for Repeated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an earlier message failed: {}", self.text)
    }
}

impl Error for Repeated {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.answer.as_ref().map(|answer| answer as _)
    }
}
