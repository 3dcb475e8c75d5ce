//! Checks the transitions of a job against the rules of the protocol.

use std::{collections::BTreeMap, time::Duration};

use super::{ledger::ProcessId, locations::Location};

/// The result of a handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HandlerResult {
    Done,
    /// Asks for another delivery. Without `after` the worker's back-off applies.
    Redeliver {
        after: Option<Duration>,
        counted: bool,
    },
    DeadLetter,
    Discard,
    /// Waits for a permit, before the handler starts.
    Park,
}

/// The end of a job in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JobEnd {
    Done,
    DeadLetter,
    Discarded,
}

/// The history of a job in a group.
#[derive(Debug, Clone, Default)]
pub(super) struct JobHistory {
    pub(super) location: Option<Location>,
    pub(super) ended: Option<JobEnd>,
    pub(super) starts: u32,
    /// The number of failures that count as attempts, plus the number of counted claims.
    pub(super) counted_attempts: u32,
    /// The time at which the job was sent first.
    pub(super) sent_at: u64,
    /// Set if the job was delivered, and a failover has lost the delivery.
    pub(super) delivered_before: bool,
    /// Set if the reply to the request was dropped, because a failover had lost the stream of the
    /// sender's replies.
    pub(super) reply_dropped: bool,
    /// Set if a failover has lost the job.
    pub(super) lost: bool,
    /// The job must not start before this time.
    pub(super) due: u64,
    /// A request must not start after this time.
    pub(super) deadline: Option<u64>,
    /// The time of the last transition.
    pub(super) changed_at: u64,
    /// Set once a handler has succeeded.
    pub(super) succeeded: bool,
    /// The time at which each earlier holder lost the job.
    pub(super) lost_at: BTreeMap<ProcessId, u64>,
    /// The result of each worker's handler since the job was last delivered to that worker.
    pub(super) results: BTreeMap<ProcessId, HandlerResult>,
    /// Results that a worker may have carried out before a failover lost their effect. A worker
    /// that got no confirmation carries its result out again. A worker that got one does not.
    pub(super) doubtful: BTreeMap<ProcessId, HandlerResult>,
}

/// The kinds of commands that the rules distinguish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Acknowledges jobs, without a fence.
    Acknowledges,
    CreatesGroup,
    Other,
}

/// A change of a job's location.
#[derive(Debug)]
pub(super) struct Transition {
    pub(super) from: Option<Location>,
    pub(super) to: Option<Location>,
    /// The worker that held the job before.
    pub(super) holder: Option<ProcessId>,
    /// The worker that holds the job now.
    pub(super) taker: Option<ProcessId>,
    /// The process whose command caused the transition.
    pub(super) by: ProcessId,
    pub(super) purpose: Purpose,
    pub(super) now: u64,
    /// Set if the holder is alive and was undisturbed for a whole lease.
    pub(super) holder_is_healthy: bool,
    /// Set if the holder's handler runs, and the holder has not marked the handler's lease as lost.
    pub(super) holder_is_running: bool,
    /// The largest number of deliveries.
    pub(super) max_deliveries: u32,
}

impl JobHistory {
    /// Applies a transition. Returns a description of the rule that it violates.
    pub(super) fn apply(&mut self, transition: &Transition) -> Option<String> {
        self.changed_at = transition.now;
        let of_holder = |results: &BTreeMap<ProcessId, HandlerResult>| {
            let holder = transition.holder?;
            results.get(&holder).copied()
        };
        let result = of_holder(&self.results).or_else(|| {
            let doubtful = of_holder(&self.doubtful)?;
            let is_carried_out = match (doubtful, &transition.to) {
                (HandlerResult::Redeliver { .. }, to) => *to == Some(Location::Due),
                (HandlerResult::DeadLetter, to) => *to == Some(Location::DeadLetters),
                (HandlerResult::Park, to) => *to == Some(Location::Parked),
                (HandlerResult::Done | HandlerResult::Discard, to) => to.is_none(),
            };
            is_carried_out.then_some(doubtful)
        });
        if let Some(holder) = transition.holder {
            self.lost_at.insert(holder, transition.now);
        }
        if let Some(taker) = transition.taker {
            self.results.remove(&taker);
            self.doubtful.remove(&taker);
        }
        match (&transition.from, &transition.to) {
            (None, Some(Location::Delayed | Location::Unread)) => {
                let ended = self.ended?;
                Some(format!("is back after it was {ended:?}"))
            }
            (Some(Location::Parked), Some(Location::Unread)) => None,
            (Some(Location::Pending { .. }), Some(Location::Parked)) => {
                self.check_park(result, transition)
            }
            (Some(Location::Delayed | Location::Due), Some(Location::Unread)) => {
                (transition.now < self.due).then(|| "is delivered before it is due".to_owned())
            }
            (Some(Location::Unread), Some(Location::Pending { .. })) => None,
            (Some(Location::Pending { .. }), Some(Location::Pending { .. })) => {
                self.check_claim(transition)
            }
            (Some(Location::Pending { .. }), Some(Location::Unread | Location::Due)) => {
                self.check_release(result, transition)
            }
            (Some(Location::Pending { .. }), Some(Location::DeadLetters)) => {
                self.check_dead_letter(result, transition)
            }
            // A worker whose handler has succeeded may acknowledge the job, even if another worker
            // holds it now.
            (Some(Location::Pending { .. }), None)
                if transition.purpose == Purpose::Acknowledges =>
            {
                self.ended = Some(JobEnd::Done);
                (!self.succeeded).then(|| "was acknowledged before it was done".to_owned())
            }
            (Some(Location::Pending { .. }), None) => self.check_deletion(result, transition),
            // An acknowledgement on the retry stream deletes the entry, even if a failover has lost
            // its delivery.
            (Some(Location::Unread), None)
                if transition.purpose == Purpose::Acknowledges && self.succeeded =>
            {
                self.ended = Some(JobEnd::Done);
                None
            }
            // A failover has lost the group. The group is created again after the entries that it
            // had delivered.
            (Some(Location::Unread), None)
                if transition.purpose == Purpose::CreatesGroup && self.delivered_before =>
            {
                self.lost = true;
                None
            }
            _ => Some("made an impossible transition".to_owned()),
        }
    }

    /// Checks a claim: by another worker, or by the holder itself after a response was lost.
    fn check_claim(&mut self, transition: &Transition) -> Option<String> {
        let (
            Some(Location::Pending {
                id,
                consumer,
                deliveries,
            }),
            Some(Location::Pending {
                id: new_id,
                consumer: new_consumer,
                deliveries: new_deliveries,
            }),
        ) = (&transition.from, &transition.to)
        else {
            unreachable!("both locations are pending");
        };
        self.counted_attempts += u32::from(new_deliveries > deliveries);
        if transition.holder_is_healthy {
            return Some("was claimed from a healthy worker".to_owned());
        }
        let uncounted =
            id != new_id || (consumer != new_consumer && *new_deliveries != deliveries + 1);
        uncounted.then(|| "was claimed without counting a delivery".to_owned())
    }

    fn check_park(
        &mut self,
        result: Option<HandlerResult>,
        transition: &Transition,
    ) -> Option<String> {
        if transition.holder != Some(transition.by) {
            return Some("was parked by a worker that does not hold it".to_owned());
        }
        self.results.remove(&transition.by);
        (result != Some(HandlerResult::Park)).then(|| format!("was parked after {result:?}"))
    }

    fn check_release(
        &mut self,
        result: Option<HandlerResult>,
        transition: &Transition,
    ) -> Option<String> {
        if transition.holder != Some(transition.by) {
            return Some("was released by a worker that does not hold it".to_owned());
        }
        self.results.remove(&transition.by);
        match result {
            // The worker has released the job before it started a handler.
            None => transition
                .holder_is_running
                .then(|| "was released while its handler runs".to_owned()),
            Some(HandlerResult::Redeliver { after, counted }) => {
                self.counted_attempts += u32::from(counted);
                self.due = transition.now + after.map_or(0, |after| after.as_millis() as u64);
                None
            }
            // The job was refused a permit, and a permit was returned before the job was parked.
            Some(HandlerResult::Park) => None,
            Some(result) => Some(format!(
                "is delivered again though its handler's result is {result:?}"
            )),
        }
    }

    /// Checks that the holder of a job deleted it, for one of two reasons: the handler succeeded or
    /// discarded the job, or the job is a request whose deadline passed before a handler ran.
    fn check_deletion(
        &mut self,
        result: Option<HandlerResult>,
        transition: &Transition,
    ) -> Option<String> {
        let expired = self
            .deadline
            .is_some_and(|deadline| transition.now >= deadline);
        self.ended = Some(match result {
            Some(HandlerResult::Done) => JobEnd::Done,
            _ => JobEnd::Discarded,
        });
        let allowed = transition.holder == Some(transition.by)
            && match result {
                Some(result) => matches!(result, HandlerResult::Done | HandlerResult::Discard),
                None => expired && !transition.holder_is_running,
            };
        (!allowed).then(|| "was deleted without permission".to_owned())
    }

    /// Checks that a job was made a dead letter by its holder, or by a worker that found the lease
    /// expired and the deliveries used up.
    fn check_dead_letter(
        &mut self,
        result: Option<HandlerResult>,
        transition: &Transition,
    ) -> Option<String> {
        self.ended = Some(JobEnd::DeadLetter);
        let used_up = self.counted_attempts + 1 >= transition.max_deliveries;
        let violation = match result {
            _ if transition.holder != Some(transition.by) && transition.holder_is_healthy => {
                "while its holder is healthy"
            }
            _ if transition.holder != Some(transition.by) && used_up => return None,
            Some(HandlerResult::DeadLetter) => return None,
            Some(HandlerResult::Redeliver { .. }) if used_up => return None,
            // The handler was not started, because the deliveries were used up before.
            None if used_up && !transition.holder_is_running => return None,
            _ => "although its handler did not ask for it",
        };
        Some(format!("became a dead letter {violation}"))
    }
}
