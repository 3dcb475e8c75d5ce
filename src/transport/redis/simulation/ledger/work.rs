//! Follow-ups, the records of tasks, and parked jobs.

use std::collections::BTreeMap;

use super::{HandlerResult, JobEnd, JobId, Ledger, Location, ProcessId};
use crate::transport::redis::simulation::server::Data;

impl Ledger {
    /// Records that a job got no permit, so that its handler does not start.
    pub(in super::super) fn handler_refused(
        &mut self,
        worker: ProcessId,
        job: JobId,
        result: HandlerResult,
    ) {
        self.note(
            format_args!("w{worker}"),
            format_args!("has no permit for job {job}: {result:?}"),
        );
        let now = self.now;
        let process = self.workers.get_mut(&worker).expect("it has a delivery");
        process.last_handler_end = now;
        let group = process.group;
        self.change_both_histories(group, job, |history| {
            history.results.insert(worker, result);
        });
    }

    /// Checks that the parent of a follow-up is done when the follow-up appears.
    pub(super) fn check_parent(&mut self, job: JobId) {
        if let Some(parent) = self.scenario.jobs[job as usize].parent
            && self.history(0, parent).ended != Some(JobEnd::Done)
        {
            self.fail(format_args!(
                "job {job} was sent before job {parent} is done"
            ));
        }
    }

    /// Checks that each job that is done has sent its follow-up.
    pub(in super::super) fn check_follow_ups(&mut self) {
        let scenario = self.scenario.clone();
        for spec in &scenario.jobs {
            let Some(follow_up) = spec.follow_up else {
                continue;
            };
            let is_done = self.history(0, spec.job).ended == Some(JobEnd::Done);
            let history = self.history(0, follow_up);
            if is_done && history.location.is_none() && history.ended.is_none() {
                self.fail(format_args!(
                    "job {} is done without its follow-up",
                    spec.job
                ));
            }
        }
    }

    /// Checks that the record of each tracked job agrees with the location of the job.
    pub(super) fn check_records(&mut self, queue: usize, data: &Data) {
        let states: BTreeMap<_, _> = self.queues[queue].keys.recorded_states(data);
        let group = self.queues[queue].group;
        for (job, spec) in self.scenario.clone().jobs.iter().enumerate() {
            let job = job as JobId;
            let Some(history) = self.queues[queue].histories.get(&job) else {
                continue;
            };
            let expected: &[&str] = match (&history.location, history.ended) {
                _ if !spec.tracked => continue,
                (Some(Location::Delayed | Location::Due), _) => &["delayed"],
                (Some(Location::Unread | Location::Parked), _) => &["waiting"],
                (Some(Location::Pending { .. }), _) => &["waiting", "running"],
                (Some(Location::DeadLetters), _) => &["dead"],
                (None, Some(JobEnd::Done)) => &["done"],
                (None, Some(JobEnd::Discarded)) => &["discarded"],
                (None, _) => continue,
            };
            let state = states.get(&job).map(String::as_str);
            if !state.is_some_and(|state| expected.contains(&state)) {
                let at = history.location.clone();
                return self.fail(format_args!(
                    "the record of job {job} in group {group} says {state:?}, and the job is {at:?}"
                ));
            }
        }
    }

    /// Checks that no job stays parked while no other job has a permit.
    pub(super) fn check_parked(&mut self) {
        let limited = |job: &JobId| self.scenario.jobs[*job as usize].limited;
        let mut stuck = None;
        for queue in &self.queues {
            let mut runs = self.running.keys();
            if runs.any(|(of, job)| self.workers[of].group == queue.group && limited(job)) {
                continue;
            }
            // The permits of a dead worker end with its lease, on the server's clock.
            let since = self.now.saturating_sub(8 * self.lease + self.clock_step.1);
            let parked = queue.histories.iter().find(|(_, history)| {
                history.location == Some(Location::Parked) && history.changed_at <= since
            });
            let last_end = self.permits_ended_at.max(self.unreachable_until);
            if let Some((job, _)) = parked.filter(|_| last_end <= since) {
                stuck = Some(*job);
            }
        }
        if let Some(job) = stuck {
            self.fail(format_args!(
                "job {job} is parked although no permit is taken"
            ));
        }
    }
}
