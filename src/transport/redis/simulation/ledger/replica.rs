//! The history of each job on a replica that lags. When the replica is promoted, this history
//! replaces that of the primary.

use super::{JobHistory, JobId, Ledger, Location};

impl Ledger {
    /// Records that the replica receives no more writes.
    pub(in super::super) fn replica_stopped(&mut self) {
        self.replica = Some(self.queues.clone());
    }

    /// Records that the replica receives all writes again.
    pub(in super::super) fn replica_caught_up(&mut self) {
        self.replica = None;
    }

    /// Records that the replica was promoted. Jobs are again where they were when the replica
    /// stopped.
    pub(in super::super) fn failed_over(&mut self) {
        let replica = self.replica.take().expect("the replica has stopped");
        let primary = std::mem::replace(&mut self.queues, replica);
        for (queue, on_primary) in self.queues.iter_mut().zip(primary) {
            for (job, history) in &mut queue.histories {
                let before = &on_primary.histories[job];
                let was_there = before.location.is_some() || before.ended.is_some();
                let is_there = history.location.is_some() || history.ended.is_some();
                history.lost |= was_there && !is_there;
                history.changed_at = self.now;
                history.delivered_before |= was_there
                    && !matches!(before.location, Some(Location::Delayed | Location::Unread));
                // The failover may have lost the effect of these results.
                if history.location != before.location {
                    history.doubtful.append(&mut history.results);
                }
            }
        }
        self.failed_over_at = Some(self.now);
        let now = self.now;
        for process in self.workers.values_mut() {
            process.undisturbed_since = process.undisturbed_since.max(now);
        }
    }

    /// Changes the history of a job on the server and on the replica. A failover does not undo what
    /// a process has done.
    pub(super) fn change_both_histories(
        &mut self,
        group: usize,
        job: JobId,
        mut change: impl FnMut(&mut JobHistory),
    ) {
        change(self.history(group, job));
        let at = self.queue_of(group, job);
        if let Some(replica) = &mut self.replica {
            change(replica[at].histories.entry(job).or_default());
        }
    }
}
