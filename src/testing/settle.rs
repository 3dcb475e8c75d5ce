//! Waits until all messages are handled.

use std::{fmt::Write, panic::Location, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    journal::Journal,
    record::{Listing, Seconds, Title},
};
use crate::transport::memory::Memory;

/// The location of the test's call.
type TestLocation = &'static Location<'static>;

/// The harness is settled after this number of yields without a change. The yields let the tokio
/// tasks run that handlers have spawned.
const QUIET_YIELDS: usize = 32;

/// The transport of a harness, its journal, and the limits of its waits.
pub(super) struct HarnessWaits {
    pub(super) memory: Memory,
    pub(super) journal: Arc<Journal>,
    /// The maximum wait for handlers.
    pub(super) patience: Duration,
    /// The maximum number of deliveries during a wait. If there are more, the wait fails.
    pub(super) max_deliveries: u64,
}

impl HarnessWaits {
    pub(super) async fn settled(&self, at: TestLocation) {
        let started = self.journal.counts().started;
        self.settled_since(started, at).await;
    }

    /// Waits until all messages are handled. `started` is the number of deliveries before the wait.
    async fn settled_since(&self, started: u64, at: TestLocation) {
        let journal = &self.journal;
        let patience = sleep(self.patience);
        tokio::pin!(patience);
        loop {
            // The wait is registered before the checks, so that it misses no change.
            let changed = journal.changed();
            if let Some(fault) = journal.fault() {
                self.fail(&fault, at);
            }
            if journal.counts().started - started > self.max_deliveries {
                let max = self.max_deliveries;
                let text =
                    format!("there were more than {max} deliveries, and there is no end to it");
                self.fail(&text, at);
            }
            if self.stays_quiet().await {
                return;
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = &mut patience => {
                    let waited = Seconds(self.patience);
                    self.fail(&format!("not everything was handled within {waited}"), at);
                }
            }
        }
    }

    async fn stays_quiet(&self) -> bool {
        let version_before = self.journal.counts().version;
        for _ in 0..QUIET_YIELDS {
            let outlook = self.memory.outlook();
            // The journal's version is incremented after each change. As long as it stays the same,
            // `outlook` and `counts` describe the same state.
            let counts = self.journal.counts();
            let is_quiet = outlook.queued.is_empty() && outlook.events == 0 && counts.running == 0;
            if !is_quiet || counts.version != version_before {
                return false;
            }
            tokio::task::yield_now().await;
        }
        true
    }

    pub(super) async fn advance_to_next(&self, at: TestLocation) -> Option<Duration> {
        self.settled(at).await;
        let due = self.memory.outlook().next_due?;
        let wait = due.saturating_duration_since(Instant::now());
        sleep_until(due).await;
        self.settled(at).await;
        Some(wait)
    }

    pub(super) async fn advance(&self, time: Duration, at: TestLocation) {
        sleep(time).await;
        self.settled(at).await;
    }

    pub(super) async fn finished(&self, at: TestLocation) {
        let started = self.journal.counts().started;
        loop {
            self.settled_since(started, at).await;
            match self.memory.outlook().next_due {
                Some(due) => sleep_until(due).await,
                None => return,
            }
        }
    }

    fn fail(&self, problem: &str, at: TestLocation) -> ! {
        let mut text = format!("{problem} (waited for at {at})\n");
        let running = self.journal.running();
        if !running.is_empty() {
            text += "\nstill running:\n";
        }
        for delivery in running {
            let running_for = Seconds(delivery.since.elapsed());
            let _ = match &delivery.message {
                Some(message) => {
                    let attempt = message.parts().attempt.0;
                    writeln!(
                        text,
                        "  {}, attempt {attempt}, for {running_for}",
                        Title(message)
                    )
                }
                None => writeln!(text, "  an entry that is no message, for {running_for}"),
            };
        }
        let outlook = self.memory.outlook();
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
        panic!("{text}\n{}", Listing::new(&self.journal.records()));
    }
}
