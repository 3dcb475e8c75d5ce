//! Tests a time budget with a real stack.

use std::{future::pending, time::Duration};

use campanile::{Message, Reply, Router, transport::Backoff};
use campanile_middleware::TimeBudget;
use tokio::time::{Instant, Sleep, sleep};
use tower::{ServiceBuilder, ServiceExt, retry::Policy};

use crate::panics::panic_text;

const SECOND: Duration = Duration::from_secs(1);

const BACKOFF: Backoff =
    Backoff::exponential(Duration::from_millis(100), Duration::from_millis(200));
const BUDGET: TimeBudget = TimeBudget::new(Duration::from_secs(5))
    .with_tries(4, BACKOFF)
    .fits_deadline(Duration::from_secs(30))
    .fits_shutdown(Duration::from_secs(30));

/// A retry policy with the tries and the waits of the budget.
#[derive(Clone)]
struct RetryByBudget {
    tries: u32,
    wait: Duration,
}

impl<E> Policy<Message, Reply, E> for RetryByBudget {
    type Future = Sleep;

    fn retry(&mut self, _: &mut Message, result: &mut Result<Reply, E>) -> Option<Sleep> {
        self.tries -= 1;
        let wait = sleep(self.wait);
        self.wait = (2 * self.wait).min(SECOND / 5);
        (result.is_err() && self.tries > 0).then_some(wait)
    }

    fn clone_request(&mut self, message: &Message) -> Option<Message> {
        Some(message.clone())
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_hangs_takes_the_longest_time_and_no_more() {
    let retry = RetryByBudget {
        tries: BUDGET.tries(),
        wait: SECOND / 10,
    };
    let app: Router = Router::new()
        .task("hangs", async || pending::<()>().await)
        .layer(ServiceBuilder::new().retry(retry).timeout(BUDGET.timeout()));
    let start = Instant::now();
    let message = Message::task("hangs", "");
    app.oneshot(message).await.unwrap_err();
    assert_eq!(BUDGET.max_duration(), Duration::from_millis(20_500));
    let beyond = start.elapsed() - BUDGET.max_duration();
    // The clock has a resolution of a millisecond, and each of seven timers is rounded up.
    assert!(beyond < Duration::from_millis(10), "{beyond:?}");
}

#[test]
fn invalid_numbers_panic_at_the_callers_location() {
    const ONE: TimeBudget = TimeBudget::new(SECOND);
    let mistakes = [
        (panic_text(|| TimeBudget::new(Duration::ZERO)), "some time"),
        (panic_text(|| ONE.with_tries(0, BACKOFF)), "one try"),
        (
            panic_text(|| ONE.with_tries(2, Backoff::exponential(SECOND, SECOND / 2))),
            "its first",
        ),
        (panic_text(|| ONE.fits_deadline(SECOND / 2)), "the deadline"),
        (panic_text(|| ONE.fits_shutdown(SECOND / 2)), "shutdown"),
        (panic_text(|| ONE.fits_claim(SECOND, 2 * SECOND)), "lease"),
    ];
    for (text, expected) in mistakes {
        assert!(text.contains(expected), "{text}");
    }
}
