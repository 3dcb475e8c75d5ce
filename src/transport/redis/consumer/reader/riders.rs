//! When a read waits for acknowledgements to take along.

use super::Reader;

/// For how many reads none is waited for after it was in vain; each time in a row for twice as many.
pub(super) const HURRY: u32 = 32;
const MOST_HURRY: u32 = 4096;

impl Reader {
    /// Whether the next read is to wait for the acknowledgements of so many deliveries, which are
    /// about to be handed out. Not where more is waiting to be read, or something else comes first.
    pub(super) fn expect_riders(&mut self, deliveries: usize) -> bool {
        if deliveries == 0 || self.full || self.ahead.is_some() || self.is_busy_otherwise() {
            return false;
        }
        if self.hurry > 0 {
            self.hurry -= 1;
            return false;
        }
        self.worker.platform.open(deliveries);
        true
    }

    /// Waits for them, for a few milliseconds at most.
    pub(super) async fn gather_riders(&mut self) {
        let gathering = (self.worker.platform).gather(&self.worker, &mut self.clock);
        let (riders, complete) = gathering.await;
        if complete {
            self.next_hurry = HURRY;
        } else {
            self.hurry = self.next_hurry;
            self.next_hurry = MOST_HURRY.min(2 * self.hurry);
        }
        self.riders = (!riders.is_empty()).then_some(riders);
    }
}
