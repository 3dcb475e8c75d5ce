//! Runs attempts with a staggered start, and uses the first success.

use std::time::Duration;

use futures_util::{
    future::BoxFuture,
    stream::{FuturesUnordered, StreamExt},
};
use tokio::time::sleep;

use crate::error::Error;

/// The next attempt starts this long after the last start, even if no attempt has failed.
/// <https://www.rfc-editor.org/rfc/rfc8305#section-5>
const HEAD_START: Duration = Duration::from_millis(250);

/// Returns the result of the first attempt that succeeds, and drops the others. The next attempt
/// starts when one fails, or [`HEAD_START`] after the last start.
///
/// # Errors
/// The errors of all attempts, in the order in which they failed.
pub(super) async fn first<T, E>(attempts: Vec<BoxFuture<'_, Result<T, E>>>) -> Result<T, Vec<E>> {
    let mut attempts = attempts.into_iter();
    let (mut running, mut errors) = (FuturesUnordered::new(), Vec::new());
    loop {
        let start = attempts.next().map(|attempt| running.push(attempt));
        // After the last start, only the running attempts are waited for.
        tokio::select! {
            biased;
            finished = running.next() => match finished {
                Some(Ok(done)) => return Ok(done),
                Some(Err(error)) => errors.push(error),
                None => return Err(errors),
            },
            () = sleep(HEAD_START), if start.is_some() => {}
        }
    }
}

/// Combines the errors of attempts that have all failed. Returns the first error that is not a lost
/// connection, for example a refused login. If all errors are lost connections, returns an error
/// with the text `unreachable`. Its source is the first lost connection.
pub(super) fn combine_errors(errors: Vec<Error>, unreachable: String) -> Error {
    let (down, mistakes): (Vec<_>, Vec<_>) = errors.into_iter().partition(Error::is_disconnected);
    let unreachable = Error::disconnected(unreachable);
    match (mistakes.into_iter().next(), down.into_iter().next()) {
        (Some(mistake), _) => mistake,
        (None, Some(down)) => unreachable.with_source(down),
        (None, None) => unreachable,
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::FutureExt;
    use tokio::time::Instant;

    use super::*;

    type Attempt = BoxFuture<'static, Result<u32, &'static str>>;

    fn fails(after: u64, error: &'static str) -> Attempt {
        sleep(Duration::from_millis(after))
            .map(move |()| Err(error))
            .boxed()
    }

    fn succeeds(after: u64, value: u32) -> Attempt {
        sleep(Duration::from_millis(after))
            .map(move |()| Ok(value))
            .boxed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_attempt_delays_the_next_by_its_head_start_only() {
        let start = Instant::now();
        let won = first(vec![pending().boxed(), succeeds(10, 2)]).await;
        assert_eq!(won, Ok(2));
        assert!(start.elapsed() < HEAD_START + Duration::from_millis(20));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_follows_a_failed_one_at_once() {
        let start = Instant::now();
        let won = first(vec![fails(1, "a"), fails(1, "b"), succeeds(1, 3)]).await;
        assert_eq!(won, Ok(3));
        assert!(start.elapsed() < HEAD_START / 5);
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_keeps_its_chance_after_the_next_has_started() {
        let won = first(vec![succeeds(300, 1), succeeds(500, 2)]).await;
        assert_eq!(won, Ok(1));
    }

    #[test]
    fn a_mistake_tells_more_than_servers_that_are_down() {
        let down = || Error::disconnected("it is down");
        let errors = vec![down(), Error::config("no Sentinel"), down()];
        assert!(combine_errors(errors, "none answers".into()).is_config());
        let error = combine_errors(vec![down()], "none answers".into());
        assert_eq!(error.chain(), "none answers: it is down");
    }

    #[tokio::test(start_paused = true)]
    async fn all_errors_are_returned_when_all_attempts_fail() {
        let errors = first(vec![fails(400, "slow"), fails(10, "fast")]).await;
        assert_eq!(errors, Err(vec!["fast", "slow"]));
        let none: Vec<Attempt> = Vec::new();
        assert_eq!(first(none).await, Err(vec![]));
    }
}
