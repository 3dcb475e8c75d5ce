//! Maps the outcome of a service to the verdict on the delivery.

use std::{any::Any, error::Error as StdError};

use super::give_up::OnGiveUp;
use crate::{
    RpcCode,
    error::{
        BoxError, Failure, FailureVerdict, NotFound, RpcError, chain, error_reply, find,
        is_overload, panic_text,
    },
    message::{Kind, Name},
    transport::{Backoff, Discarded, Expired, UnknownNames, Verdict},
};

/// Decides the verdict on each delivery, by the settings of the worker.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    pub(super) expose_error_text: bool,
    pub(super) unknown_names: UnknownNames,
    pub(super) expired: Expired,
    pub(super) max_deliveries: u32,
    pub(super) backoff: Backoff,
    pub(super) on_give_up: Option<OnGiveUp>,
}

/// The failure of a service's future.
pub(super) enum ServiceFailure {
    Returned(BoxError),
    /// The service panicked with this text.
    Panicked(String),
}

impl ServiceFailure {
    /// Creates the failure for the payload of a panic.
    pub(super) fn panicked(payload: &(dyn Any + Send)) -> Self {
        let text = panic_text(payload);
        Self::Panicked(bounded(format!("the handler panicked: {text}")))
    }

    /// Returns the reason for the log.
    pub(super) fn reason(&self, kind: Kind, name: &Name) -> Reason {
        let error = match self {
            Self::Returned(error) => &**error,
            Self::Panicked(text) => {
                return Reason {
                    text: text.clone(),
                    is_expected: false,
                };
            }
        };
        // The text of a `Failure` only names the verdict, and the log line has the verdict already.
        // So the reason is the cause of the `Failure`.
        let text = match error.downcast_ref::<Failure>().map(StdError::source) {
            None => chain(error),
            Some(Some(cause)) => chain(cause),
            Some(None) => "no reason given".to_owned(),
        };
        let is_callers_error = || {
            let answer = error_reply(name, error).filter(|_| kind == Kind::Rpc);
            answer.is_some_and(|answer| is_caused_by_caller(answer.code()))
        };
        let is_parked =
            || find::<Failure>(error).is_some_and(|it| it.verdict() == FailureVerdict::Park);
        Reason {
            text,
            is_expected: is_overload(error) || is_parked() || is_callers_error(),
        }
    }

    /// Returns the error that the service returned. `None` after a panic.
    pub(super) fn into_error(self) -> Option<BoxError> {
        match self {
            Self::Returned(error) => Some(error),
            Self::Panicked(_) => None,
        }
    }
}

/// The reason for a failure, for the log.
pub(super) struct Reason {
    pub(super) text: String,
    /// `true` for overload, for a message that is parked, and for a request whose caller caused the
    /// error.
    pub(super) is_expected: bool,
}

/// Returns `true` if the caller caused an error with this code, and not the worker.
fn is_caused_by_caller(code: &RpcCode) -> bool {
    !matches!(
        code,
        RpcCode::Internal | RpcCode::Deadline | RpcCode::Unavailable
    )
}

impl Policy {
    /// Returns the verdict on a message whose deadline passed before it was handled.
    pub(super) fn expired(&self, kind: Kind) -> Verdict {
        if kind == Kind::Task && self.expired == Expired::DeadLetter {
            return Verdict::DeadLetter {
                reason: "it was not started in time".to_owned(),
                answer: None,
            };
        }
        Verdict::Discard {
            reason: Discarded::Expired,
            answer: (kind == Kind::Rpc).then(|| RpcError::deadline("it was not started in time")),
        }
    }

    /// Returns the verdict on a failed delivery: a dead letter if this was the last attempt. A
    /// redelivery that counts as an attempt always has a delay, so that the log can show it: unless
    /// the failure sets the delay, it is the back-off for this attempt. The transport computes the
    /// delay of a redelivery that does not count.
    pub(super) fn verdict(
        &self,
        kind: Kind,
        name: &Name,
        (attempt, max_attempts): (u32, u32),
        failure: &ServiceFailure,
    ) -> Verdict {
        let verdict = match failure {
            ServiceFailure::Returned(error) => self.verdict_on_error(kind, name, error),
            ServiceFailure::Panicked(reason) => match kind {
                Kind::Rpc => Verdict::Done(Err(internal_error())),
                Kind::Task | Kind::Event => Verdict::Redeliver {
                    after: None,
                    counted: true,
                    reason: reason.clone(),
                },
            },
        };
        let verdict = match kind {
            Kind::Event => verdict,
            Kind::Task | Kind::Rpc => verdict.limited(attempt, max_attempts),
        };
        match verdict {
            Verdict::Redeliver {
                after: None,
                counted: true,
                reason,
            } => Verdict::Redeliver {
                after: Some(self.backoff.after(attempt)),
                counted: true,
                reason,
            },
            verdict => verdict,
        }
    }

    fn verdict_on_error(&self, kind: Kind, name: &Name, error: &BoxError) -> Verdict {
        let reason = || bounded(chain(&**error));
        let answer = || (kind == Kind::Rpc).then(|| self.error_reply(name, error));
        if self.unknown_names == UnknownNames::Ignore && is_unknown(error) {
            return Verdict::Discard {
                reason: Discarded::Ignored,
                answer: None,
            };
        }
        match FailureVerdict::of(kind, &**error) {
            None => Verdict::Done(Err(self.error_reply(name, error))),
            Some(FailureVerdict::Redeliver { after, counted }) => Verdict::Redeliver {
                after,
                counted,
                reason: reason(),
            },
            Some(FailureVerdict::Park) => {
                match find::<Failure>(&**error).and_then(Failure::permit_request) {
                    Some(permit_request) => Verdict::Park(permit_request.clone()),
                    None => Verdict::Redeliver {
                        after: None,
                        counted: false,
                        reason: reason(),
                    },
                }
            }
            Some(FailureVerdict::DeadLetter) => Verdict::DeadLetter {
                // The text of a `Failure` already says who decided to give the message up.
                reason: match find::<Failure>(&**error) {
                    Some(_) => reason(),
                    None => {
                        let chain = chain(&**error);
                        bounded(format!("given up by the worker as permanent: {chain}"))
                    }
                },
                answer: answer(),
            },
            Some(FailureVerdict::Discard) => Verdict::Discard {
                reason: Discarded::Requested,
                answer: answer(),
            },
        }
    }

    /// Returns the error reply to the caller of a failed request.
    fn error_reply(&self, name: &Name, error: &BoxError) -> RpcError {
        error_reply(name, &**error).unwrap_or_else(|| match self.expose_error_text {
            true => RpcError::internal(chain(&**error)),
            false => internal_error(),
        })
    }
}

/// Returns `true` if the message has no route, and no layer has put the error into a `Failure`.
fn is_unknown(error: &BoxError) -> bool {
    find::<NotFound>(&**error).is_some() && find::<Failure>(&**error).is_none()
}

/// Shortens a reason. Reasons are logged and stored with dead letters, and may quote a payload of
/// any length.
fn bounded(mut reason: String) -> String {
    const MAX_LEN: usize = 4096;
    if reason.len() > MAX_LEN {
        let whole = reason.len();
        let end = (0..=MAX_LEN)
            .rev()
            .find(|&end| reason.is_char_boundary(end));
        reason.truncate(end.unwrap_or(0));
        reason.push_str(&format!("… ({whole} bytes)"));
    }
    reason
}

fn internal_error() -> RpcError {
    RpcError::internal("internal error")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tower::{load_shed::error::Overloaded, timeout::error::Elapsed};

    use super::*;

    const POLICY: Policy = Policy {
        expose_error_text: false,
        unknown_names: UnknownNames::Fail,
        expired: Expired::Drop,
        max_deliveries: 10,
        backoff: Backoff::exponential(Duration::from_secs(1), Duration::from_secs(60)).jitter(0.0),
        on_give_up: None,
    };

    fn failed(kind: Kind, error: impl Into<BoxError>) -> Verdict {
        POLICY.verdict(
            kind,
            &"a".into(),
            (1, 10),
            &ServiceFailure::Returned(error.into()),
        )
    }

    fn answered(verdict: Verdict) -> RpcError {
        match verdict {
            Verdict::Done(Err(answer)) => answer,
            other => panic!("not answered: {other:?}"),
        }
    }

    #[test]
    fn an_error_without_a_verdict_is_redelivered_and_counts() {
        match failed(Kind::Task, "disk full") {
            Verdict::Redeliver {
                after: Some(after),
                counted: true,
                reason,
            } => assert_eq!((&*reason, after.as_secs()), ("disk full", 1)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_failure_decides_the_verdict_on_tasks_and_requests() {
        for kind in [Kind::Task, Kind::Rpc] {
            let second = Duration::from_secs(1);
            assert!(matches!(
                failed(kind, Failure::redeliver_after(second).uncounted()),
                Verdict::Redeliver { after: Some(d), counted: false, .. } if d == second
            ));
            assert!(matches!(
                failed(kind, Failure::discard()),
                Verdict::Discard { reason: Discarded::Requested, answer } if answer.is_some() == (kind == Kind::Rpc)
            ));
        }
    }

    #[test]
    fn a_dead_lettered_request_is_answered_with_its_own_error() {
        let error = Failure::dead_letter().because(RpcError::not_found("no such user"));
        match failed(Kind::Rpc, error) {
            Verdict::DeadLetter { reason, answer } => {
                assert_eq!(answer, Some(RpcError::not_found("no such user")));
                assert!(reason.ends_with("no such user (not_found)"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn overload_is_no_attempt_and_answers_unavailable() {
        assert!(matches!(
            failed(Kind::Task, Overloaded::new()),
            Verdict::Redeliver { counted: false, .. }
        ));
        let answer = answered(failed(Kind::Rpc, Overloaded::new()));
        assert_eq!(answer.code(), &RpcCode::Unavailable);
    }

    #[test]
    fn callers_get_codes_and_no_texts_that_were_not_meant_for_them() {
        let answer = answered(failed(Kind::Rpc, Elapsed::new()));
        assert_eq!(answer.code(), &RpcCode::Deadline);
        let answer = answered(failed(Kind::Rpc, NotFound::new(Kind::Rpc, "a".into())));
        assert_eq!(answer.code(), &RpcCode::NotFound);
        assert_eq!(answered(failed(Kind::Rpc, "password=1")), internal_error());
        let panicked = ServiceFailure::panicked(&"password=1");
        assert_eq!(
            answered(POLICY.verdict(Kind::Rpc, &"a".into(), (1, 10), &panicked)),
            internal_error()
        );
        let open = Policy {
            expose_error_text: true,
            ..POLICY
        };
        let shown = open.verdict(
            Kind::Rpc,
            &"a".into(),
            (1, 10),
            &ServiceFailure::Returned("disk full".into()),
        );
        assert_eq!(answered(shown).message(), "disk full");
    }

    #[test]
    fn an_unknown_name_fails_or_is_left_to_others_as_chosen() {
        let unknown = || NotFound::new(Kind::Task, "a".into());
        assert!(matches!(
            failed(Kind::Task, unknown()),
            Verdict::Redeliver { counted: true, .. }
        ));
        let ignoring = Policy {
            unknown_names: UnknownNames::Ignore,
            ..POLICY
        };
        for kind in [Kind::Task, Kind::Rpc] {
            let failure = ServiceFailure::Returned(unknown().into());
            assert!(matches!(
                ignoring.verdict(kind, &"a".into(), (1, 10), &failure),
                Verdict::Discard {
                    reason: Discarded::Ignored,
                    answer: None
                }
            ));
        }
    }

    #[test]
    fn an_error_whose_text_is_empty_is_still_an_error() {
        #[derive(Debug)]
        struct Silent;
        impl std::fmt::Display for Silent {
            fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                Ok(())
            }
        }
        impl std::error::Error for Silent {}
        assert_eq!(
            answered(failed(Kind::Rpc, Silent)).message(),
            "internal error"
        );
    }
}
