//! Classifies errors for retries and circuit breakers.
//!
//! Retries and circuit breakers use [`classify`], unless the application gives them another
//! function:
//!
//! ```
//! use campanile_middleware::{Class, DurableRetryLayer, class};
//! use std::io;
//!
//! let layer = DurableRetryLayer::new().classify(|error| match campanile::error::find::<io::Error>(error) {
//!     Some(error) if error.kind() == io::ErrorKind::NotFound => Class::Permanent,
//!     _ => class::classify(error),
//! });
//! ```

use std::{error::Error as StdError, fmt, sync::Arc};

use campanile::{
    Error, Failure, NotFound, Rejection, RpcCode, RpcError,
    error::{FailureVerdict, find},
};

/// The class of an error, which says whether another try of the same message could succeed.
///
/// | | retried by `RetryPolicy` | redelivered by `DurableRetryLayer` | counted by a circuit breaker |
/// |---|---|---|---|
/// | `Transient` | yes | yes | yes |
/// | `Lasting` | no | yes | no |
/// | `Permanent` | no | no: a dead letter | no |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Class {
    /// Another try may succeed soon: for example, a resource that the handler needs was slow, full
    /// or unreachable.
    Transient,
    /// Another try may succeed, but not soon: for example, a deployment is wrong, or another
    /// service refused the request.
    Lasting,
    /// No other try can succeed: the message itself is wrong.
    Permanent,
}

/// Returns the default class of an error. Each rule looks for its type in the whole chain of
/// sources, and the first rule that finds it decides:
///
/// - A [`Failure`] is permanent if it requests a dead letter or a discard, and otherwise transient.
/// - A [`Rejection`] is permanent if [`is_permanent`](Rejection::is_permanent) returns `true`, and
///   otherwise lasting.
/// - An [`RpcError`] is transient for `unavailable`, `deadline` and `internal`, and otherwise
///   lasting.
/// - A [`NotFound`] is lasting.
/// - An [`Error`] is lasting if it is an invalid message, a configuration error, a closed handle or
///   an undecodable reply.
/// - Any other error is transient.
///
/// An error is permanent only if the message itself is wrong, because an unnecessary retry costs
/// less than a message that becomes a dead letter too early.
pub fn classify(error: &(dyn StdError + 'static)) -> Class {
    if let Some(failure) = find::<Failure>(error) {
        return match failure.verdict() {
            FailureVerdict::DeadLetter | FailureVerdict::Discard => Class::Permanent,
            _ => Class::Transient,
        };
    }
    if let Some(rejection) = find::<Rejection>(error) {
        return match rejection.is_permanent() {
            true => Class::Permanent,
            false => Class::Lasting,
        };
    }
    if let Some(answer) = find::<RpcError>(error) {
        return match answer.code() {
            RpcCode::Unavailable | RpcCode::Deadline | RpcCode::Internal => Class::Transient,
            _ => Class::Lasting,
        };
    }
    let is_lasting = |error: &Error| {
        error.is_invalid() || error.is_config() || error.is_closed() || error.is_decode()
    };
    match find::<NotFound>(error).is_some() || find::<Error>(error).is_some_and(is_lasting) {
        true => Class::Lasting,
        false => Class::Transient,
    }
}

type ClassifyFn = dyn Fn(&(dyn StdError + 'static)) -> Class + Send + Sync;

/// Classifies errors with [`classify`], or with the function of the application.
#[derive(Clone, Default)]
pub(crate) struct Classifier(Option<Arc<ClassifyFn>>);

impl Classifier {
    pub(crate) fn new(
        classify: impl Fn(&(dyn StdError + 'static)) -> Class + Send + Sync + 'static,
    ) -> Self {
        Self(Some(Arc::new(classify)))
    }

    pub(crate) fn class(&self, error: &(dyn StdError + 'static)) -> Class {
        match &self.0 {
            Some(function) => function(error),
            None => classify(error),
        }
    }
}

impl fmt::Debug for Classifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Some(_) => "custom",
            None => "default",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use campanile::{BoxError, Kind};
    use tower::{load_shed::error::Overloaded, timeout::error::Elapsed};

    use super::*;

    fn class(error: impl Into<BoxError>) -> Class {
        classify(&*error.into())
    }

    #[test]
    fn errors_of_the_message_itself_are_permanent() {
        let permanent = || Rejection::permanent("no JSON");
        assert_eq!(class(permanent()), Class::Permanent);
        assert_eq!(class(Failure::dead_letter()), Class::Permanent);
        assert_eq!(class(Failure::discard().because("x")), Class::Permanent);
        // The failure counts, not its cause.
        let later = Failure::redeliver_after(Duration::from_secs(1)).because(permanent());
        assert_eq!(class(later), Class::Transient);
    }

    #[test]
    fn errors_of_a_deployment_and_refusals_by_a_service_are_lasting() {
        assert_eq!(class(Rejection::ordinary("no layer")), Class::Lasting);
        assert_eq!(class(NotFound::new(Kind::Task, "a".into())), Class::Lasting);
        assert_eq!(class(RpcError::not_found("user")), Class::Lasting);
        assert_eq!(class(RpcError::invalid("user")), Class::Lasting);
        let quota = RpcError::new(RpcCode::Other("quota".into()), "");
        assert_eq!(class(quota), Class::Lasting);
        assert_eq!(class(Error::invalid("name")), Class::Lasting);
        assert_eq!(class(Error::config("url")), Class::Lasting);
        assert_eq!(class(Error::closed()), Class::Lasting);
    }

    #[test]
    fn all_other_errors_are_transient() {
        assert_eq!(class("disk full"), Class::Transient);
        assert_eq!(class(Elapsed::new()), Class::Transient);
        assert_eq!(class(Overloaded::new()), Class::Transient);
        assert_eq!(class(RpcError::unavailable("")), Class::Transient);
        assert_eq!(class(RpcError::internal("")), Class::Transient);
        assert_eq!(class(Error::disconnected("")), Class::Transient);
        assert_eq!(class(Error::refused("out of memory")), Class::Transient);
    }
}
