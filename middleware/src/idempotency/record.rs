//! An outcome as it is stored.

use std::{borrow::Cow, error::Error, fmt};

use bytes::Bytes;
use campanile::{
    BoxError, Failure, Kind, Rejection, Reply, RpcCode, RpcError,
    error::{Settle, find},
    transport::codec,
};
use serde::{Deserialize, Serialize};

use super::{Outcome, Remember};
use crate::key::Identity;

/// The JSON of an outcome. A field that is not known is ignored, so that a newer version can add
/// some.
#[derive(Serialize, Deserialize)]
struct Record<'a> {
    /// The message whose outcome it is: its stream, its group and its id.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    id: Option<Cow<'a, str>>,
    outcome: Ended,
    /// The text of a failure.
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
    text: Cow<'a, str>,
    /// What the caller of a request got, as the envelope that it travels in; for a success that is
    /// the reply.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    answer: Option<Cow<'a, str>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ended {
    Done,
    Answered,
    DeadLetter,
    Discarded,
}

/// What is stored of an outcome, if it is to be.
pub(super) fn encode(
    kind: Kind,
    identity: Option<&Identity>,
    outcome: &Outcome,
    remember: Remember,
) -> Option<Bytes> {
    let (ended, text, answer) = match outcome {
        Ok(reply) => (Ended::Done, String::new(), Some(Ok(reply.clone()))),
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

/// How a failure that another try cannot change ended, and what a caller was told.
fn permanent(kind: Kind, error: &BoxError) -> Option<(Ended, Option<RpcError>)> {
    let error = &**error;
    let rejection = find::<Rejection>(error).filter(|rejection| rejection.is_permanent());
    let answer = find::<RpcError>(error).cloned();
    let answer = answer.or_else(|| rejection.map(|r| RpcError::invalid(chain(r))));
    match Settle::of(kind, error) {
        Some(Settle::DeadLetter) => Some((Ended::DeadLetter, answer)),
        Some(Settle::Discard) => Some((Ended::Discarded, answer)),
        Some(_) => None,
        None => {
            let answer = answer?;
            let passing = matches!(
                answer.code(),
                RpcCode::Unavailable | RpcCode::Deadline | RpcCode::Internal
            );
            (!passing).then_some((Ended::Answered, Some(answer)))
        }
    }
}

/// An error and its sources on one line.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    // A chain that loops would otherwise never end.
    let errors = std::iter::successors(Some(error), |&error| error.source()).take(16);
    let texts: Vec<_> = errors.map(ToString::to_string).collect();
    texts.join(": ")
}

/// What a stored outcome means for a message.
pub(super) enum Stored {
    /// It ends so.
    Repeat(Outcome),
    /// It is run again: the failure is its own.
    RunAgain,
}

/// Reads an outcome for this message.
pub(super) fn decode(stored: &[u8], identity: Option<&Identity>) -> Result<Stored, BoxError> {
    let record: Record<'_> = serde_json::from_slice(stored)
        // Its own text repeats what it found, and that may be a payload.
        .map_err(|_| "a stored outcome that cannot be read")?;
    let answer = match &record.answer {
        Some(envelope) => Some(codec::decode_reply(envelope.as_bytes())?.answer?),
        None => None,
    };
    if record.outcome == Ended::Done {
        let reply: Reply = answer.unwrap_or_else(|| Ok(Reply::default()))?;
        return Ok(Stored::Repeat(Ok(reply)));
    }
    let own = |identity: &Identity| record.id.as_deref() == Some(&*identity.to_string());
    if identity.is_some_and(own) {
        return Ok(Stored::RunAgain);
    }
    let repeated = Repeated {
        text: record.text.into_owned(),
        answer: answer.and_then(Result::err),
    };
    let error: BoxError = match record.outcome {
        Ended::Done | Ended::Answered => repeated.into(),
        Ended::DeadLetter => Failure::dead_letter().because(repeated).into(),
        Ended::Discarded => Failure::discard().because(repeated).into(),
    };
    Ok(Stored::Repeat(Err(error)))
}

/// The failure of an earlier message with the same key. Its source is what the caller of a request
/// was told, if anything.
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
