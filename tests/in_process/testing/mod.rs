//! Tests of the test kit: how long it waits, what it records, and the exact texts of its failures.

mod apps;
mod assertions;
mod guide;
mod recorder;
mod settling;
mod waiting;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::Duration,
};

use futures_util::FutureExt;

use crate::panics;

const HOUR: Duration = Duration::from_secs(3600);

/// The text with which an assertion fails.
fn failure_of<T>(assertion: impl FnOnce() -> T) -> String {
    text_of(catch_unwind(AssertUnwindSafe(assertion)).map(drop))
}

/// The text with which a future panics.
async fn failure_in<T>(work: impl Future<Output = T>) -> String {
    text_of(AssertUnwindSafe(work).catch_unwind().await.map(drop))
}

fn text_of(outcome: thread::Result<()>) -> String {
    panics::text_of(outcome.expect_err("it should have failed"))
}

/// Removes the location in the test's source.
fn placeless(text: &str) -> String {
    let Some((before, place)) = text.split_once("tests/in_process/testing/") else {
        return text.to_owned();
    };
    let rest = place.trim_start_matches(|c: char| c.is_alphanumeric() || "_.:".contains(c));
    format!("{before}HERE{}", placeless(rest))
}

/// A runtime with paused time, which a test can drop with all of its tasks.
fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}
