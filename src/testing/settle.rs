//! Waits until all messages are handled.

use std::{fmt::Write, panic::Location, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    Harness,
    record::{Listing, Seconds, Title},
};

/// The location of the test's call.
type At = &'static Location<'static>;

/// The number of yields without a change after which the harness is settled. Tasks that a handler has
/// spawned can run meanwhile.
const YIELDS: usize = 32;

pub(super) async fn settled(harness: &Harness, at: At) {
    let started = harness.journal.progress().started;
    settled_since(harness, started, at).await;
}

/// `started` is the number of deliveries before the wait.
async fn settled_since(harness: &Harness, started: u64, at: At) {
    let journal = &harness.journal;
    let patience = sleep(harness.patience);
    tokio::pin!(patience);
    loop {
        // Registered before the check, so that no change is missed.
        let changed = journal.changed();
        if let Some(fault) = journal.fault() {
            fail(harness, &fault, at);
        }
        if journal.progress().started - started > harness.most_deliveries {
            let most = harness.most_deliveries;
            let text = format!("there were more than {most} deliveries, and there is no end to it");
            fail(harness, &text, at);
        }
        if stays_quiet(harness).await {
            return;
        }
        tokio::select! {
            biased;
            () = changed => {}
            () = &mut patience => {
                let waited = Seconds(harness.patience);
                fail(harness, &format!("not everything was handled within {waited}"), at);
            }
        }
    }
}

async fn stays_quiet(harness: &Harness) -> bool {
    let before = harness.journal.progress().version;
    for _ in 0..YIELDS {
        let outlook = harness.memory.outlook();
        // Each change increments the version afterwards. If the version is the same before and after
        // the reads, they are consistent.
        let progress = harness.journal.progress();
        let is_quiet = outlook.queued.is_empty() && outlook.events == 0 && progress.running == 0;
        if !is_quiet || progress.version != before {
            return false;
        }
        tokio::task::yield_now().await;
    }
    true
}

pub(super) async fn advance_to_next(harness: &Harness, at: At) -> Option<Duration> {
    settled(harness, at).await;
    let due = harness.memory.outlook().next_due?;
    let wait = due.saturating_duration_since(Instant::now());
    sleep_until(due).await;
    settled(harness, at).await;
    Some(wait)
}

pub(super) async fn advance(harness: &Harness, time: Duration, at: At) {
    sleep(time).await;
    settled(harness, at).await;
}

pub(super) async fn finished(harness: &Harness, at: At) {
    let started = harness.journal.progress().started;
    loop {
        settled_since(harness, started, at).await;
        match harness.memory.outlook().next_due {
            Some(due) => sleep_until(due).await,
            None => return,
        }
    }
}

fn fail(harness: &Harness, problem: &str, at: At) -> ! {
    let mut text = format!("{problem} (waited for at {at})\n");
    let running = harness.journal.running();
    if !running.is_empty() {
        text += "\nstill running:\n";
    }
    for one in running {
        let since = Seconds(one.since.elapsed());
        let _ = match &one.message {
            Some(message) => {
                let attempt = message.parts().attempt.0;
                writeln!(text, "  {}, attempt {attempt}, for {since}", Title(message))
            }
            None => writeln!(text, "  an entry that is no message, for {since}"),
        };
    }
    let outlook = harness.memory.outlook();
    if !outlook.queued.is_empty() || outlook.events > 0 {
        text += "\nstill in line:\n";
    }
    for (stream, group, messages) in outlook.queued {
        let _ = writeln!(
            text,
            "  {messages} for group `{group}` of stream `{stream}`"
        );
    }
    if outlook.events > 0 {
        let _ = writeln!(text, "  {} events", outlook.events);
    }
    panic!("{text}\n{}", Listing::of(&harness.records()));
}
