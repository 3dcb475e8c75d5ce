//! The rules for the ways that a job may go.

use std::{collections::BTreeMap, time::Duration};

use super::{book::WorkerId, places::Place};

/// How a handler ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    Done,
    /// To be delivered again; `None` is the worker's back-off.
    Again {
        after: Option<Duration>,
        counted: bool,
    },
    Dead,
    Discard,
}

/// How a job ended for a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Done,
    Dead,
    Discarded,
}

/// What is known of a job in a group.
#[derive(Debug, Default)]
pub(super) struct Tale {
    pub(super) place: Option<Place>,
    pub(super) ended: Option<Ended>,
    pub(super) starts: u32,
    /// The failures that count, and how often it was taken from somebody.
    pub(super) spent: u32,
    /// Before this it must not start.
    pub(super) due: u64,
    /// When a request is too old to be started.
    pub(super) deadline: Option<u64>,
    /// When it ended.
    pub(super) ended_at: u64,
    /// Whether a handler has finished it.
    pub(super) finished: bool,
    /// When workers had it last that have it no longer.
    pub(super) lost: BTreeMap<WorkerId, u64>,
    /// What the handlers have said since it came to their workers.
    pub(super) said: BTreeMap<WorkerId, Said>,
}

/// A job that has gone from one place to another.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) from: Option<Place>,
    pub(super) to: Option<Place>,
    /// The worker that had it, and the one that has it now.
    pub(super) holder: Option<WorkerId>,
    pub(super) taker: Option<WorkerId>,
    /// Whose command did it, and whether that has only said that it is done.
    pub(super) by: WorkerId,
    pub(super) acknowledged: bool,
    pub(super) now: u64,
    /// Whether the holder is alive and was not kept from the server for a whole lease.
    pub(super) holder_is_well: bool,
    /// Whether its handler runs there, and was not told that it is lost.
    pub(super) running: bool,
    /// How many deliveries it gets.
    pub(super) most: u32,
}

impl Tale {
    /// Goes on with the tale. Returns what is wrong with that.
    pub(super) fn go_on(&mut self, step: &Move) -> Option<String> {
        self.ended_at = step.now;
        let said = step
            .holder
            .and_then(|holder| self.said.get(&holder).copied());
        if let Some(holder) = step.holder {
            self.lost.insert(holder, step.now);
        }
        if let Some(taker) = step.taker {
            self.said.remove(&taker);
        }
        match (&step.from, &step.to) {
            (None, Some(Place::Delayed | Place::Unread)) => {
                let ended = self.ended?;
                Some(format!("is back after it was {ended:?}"))
            }
            (Some(Place::Delayed | Place::Due), Some(Place::Unread)) => {
                (step.now < self.due).then(|| "is delivered before it is due".to_owned())
            }
            (Some(Place::Unread), Some(Place::Pending { .. })) => None,
            (Some(Place::Pending { .. }), Some(Place::Pending { .. })) => self.is_taken(step),
            (Some(Place::Pending { .. }), Some(Place::Unread | Place::Due)) => {
                self.is_given_away(said, step)
            }
            (Some(Place::Pending { .. }), Some(Place::Dead)) => self.is_buried(said, step),
            // Whoever has finished it may say so, whosever it is by now.
            (Some(Place::Pending { .. }), None) if step.acknowledged => {
                self.ended = Some(Ended::Done);
                (!self.finished).then(|| "was acknowledged before it was done".to_owned())
            }
            (Some(Place::Pending { .. }), None) => self.is_dropped(said, step),
            _ => Some("went a way that there is not".to_owned()),
        }
    }

    /// By another worker, or by its own when that did not know of it.
    fn is_taken(&mut self, step: &Move) -> Option<String> {
        let (
            Some(Place::Pending {
                id,
                consumer,
                deliveries,
            }),
            Some(Place::Pending {
                id: same,
                consumer: of,
                deliveries: then,
            }),
        ) = (&step.from, &step.to)
        else {
            unreachable!("both are with a worker");
        };
        self.spent += u32::from(then > deliveries);
        if step.holder_is_well {
            return Some("was taken from a worker that is well".to_owned());
        }
        let odd = id != same || (consumer != of && *then != deliveries + 1);
        odd.then(|| "was taken over without counting".to_owned())
    }

    fn is_given_away(&mut self, said: Option<Said>, step: &Move) -> Option<String> {
        if step.holder != Some(step.by) {
            return Some("was given away by who does not have it".to_owned());
        }
        self.said.remove(&step.by);
        match said {
            // It was not started.
            None => step
                .running
                .then(|| "was given away while its handler runs".to_owned()),
            Some(Said::Again { after, counted }) => {
                self.spent += u32::from(counted);
                self.due = step.now + after.map_or(0, |after| after.as_millis() as u64);
                None
            }
            Some(said) => Some(format!(
                "is delivered again though its handler said {said:?}"
            )),
        }
    }

    /// By its worker: because its handler has asked for it, or as a request that has its reply or is
    /// too old.
    fn is_dropped(&mut self, said: Option<Said>, step: &Move) -> Option<String> {
        let too_old = self.deadline.is_some_and(|deadline| step.now >= deadline);
        self.ended = Some(match said {
            Some(Said::Done) => Ended::Done,
            _ => Ended::Discarded,
        });
        let may = step.holder == Some(step.by)
            && match said {
                Some(Said::Done) => self.deadline.is_some(),
                Some(said) => said == Said::Discard,
                None => too_old && !step.running,
            };
        (!may).then(|| "was dropped by who may not".to_owned())
    }

    /// By its worker, or by whoever has found that nobody looks after it and its deliveries are
    /// used up.
    fn is_buried(&mut self, said: Option<Said>, step: &Move) -> Option<String> {
        self.ended = Some(Ended::Dead);
        let used_up = self.spent + 1 >= step.most;
        let wrong = match said {
            _ if step.holder != Some(step.by) && step.holder_is_well => {
                "beside a worker that is well"
            }
            _ if step.holder != Some(step.by) && used_up => return None,
            Some(Said::Dead) => return None,
            Some(Said::Again { .. }) if used_up => return None,
            // It was not started: it had been, too often.
            None if used_up && !step.running => return None,
            _ => "though its handler did not say so",
        };
        Some(format!("was buried {wrong}"))
    }
}
