//! The numbers of a stack, against a stack.

use std::{
    future::pending,
    panic,
    sync::{Arc, Mutex},
    time::Duration,
};

use campanile::{Message, Reply, Router};
use campanile_middleware::TimeBudget;
use tokio::time::{Instant, Sleep, sleep};
use tower::{ServiceBuilder, ServiceExt, retry::Policy};

const SECOND: Duration = Duration::from_secs(1);

const BUDGET: TimeBudget = TimeBudget::new(Duration::from_secs(5))
    .tries(4, Duration::from_millis(100), Duration::from_millis(200))
    .fits_deadline(Duration::from_secs(30))
    .fits_shutdown(Duration::from_secs(30));

/// Tries again as often as the budget says, after its waits.
#[derive(Clone)]
struct Again {
    tries: u32,
    wait: Duration,
}

impl<E> Policy<Message, Reply, E> for Again {
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
async fn a_handler_that_hangs_takes_the_longest_and_no_more() {
    let again = Again {
        tries: BUDGET.max_tries(),
        wait: SECOND / 10,
    };
    let app: Router = Router::new()
        .task("hangs", async || pending::<()>().await)
        .layer(ServiceBuilder::new().retry(again).timeout(BUDGET.timeout()));
    let start = Instant::now();
    let message = Message::task("hangs", "");
    app.with_state(()).oneshot(message).await.unwrap_err();
    assert_eq!(BUDGET.longest(), Duration::from_millis(20_500));
    let beyond = start.elapsed() - BUDGET.longest();
    // The clock has a resolution of a millisecond, and each of seven timers is rounded up.
    assert!(beyond < Duration::from_millis(10), "{beyond:?}");
}

#[test]
fn numbers_that_cannot_work_panic_where_they_were_written() {
    let seen = Arc::new(Mutex::new(None));
    let noted = seen.clone();
    panic::set_hook(Box::new(move |info| {
        let place = info.location().unwrap();
        let text = info
            .payload()
            .downcast_ref::<&str>()
            .copied()
            .unwrap_or_default();
        *noted.lock().unwrap() = Some((place.file().to_owned(), place.line(), text));
    }));
    let mut mistakes = Vec::new();
    // The number of a line says which call it was.
    let mut note = |line: u32, budget: fn() -> TimeBudget| {
        assert!(panic::catch_unwind(budget).is_err(), "line {line}");
        mistakes.push((line, seen.lock().unwrap().take().unwrap()));
    };
    const ONE: TimeBudget = TimeBudget::new(SECOND);
    note(line!(), || TimeBudget::new(Duration::ZERO));
    note(line!(), || ONE.tries(0, SECOND, SECOND));
    note(line!(), || ONE.tries(2, SECOND, SECOND / 2));
    note(line!(), || ONE.fits_deadline(SECOND / 2));
    note(line!(), || ONE.fits_shutdown(SECOND / 2));
    note(line!(), || ONE.fits_take_over(SECOND, 2 * SECOND));
    let _ = panic::take_hook();
    let texts = [
        "some time",
        "one try",
        "the first",
        "the deadline",
        "shutdown",
        "lease",
    ];
    assert_eq!(mistakes.len(), texts.len());
    for ((line, (file, at, text)), expected) in mistakes.into_iter().zip(texts) {
        assert_eq!((file.as_str(), at), (file!(), line));
        assert!(text.contains(expected), "{text}");
    }
}
