//! Owns partitions of a stream: at most one worker of a group owns each partition.
//!
//! A worker owns a partition for a *term*. For each term it starts a consumer with a new name. That
//! consumer first inherits the entries that former owners left pending, and then reads new ones.
//! Every settlement is fenced by the consumer's name, so the verdict of a former owner has no
//! effect on an inherited entry.
//!
//! ```text
//!          assigned, and is free or has a dead owner: `own.lua`
//!  free ────────────────────────────────────────────────► owned: a slot consumer
//!   ▲                                                        │ assigned to another member,
//!   │ `disown.lua`                                           ▼ or its order is broken
//!   └──────────────────────────────────────────────────── leaving: drains running deliveries
//! ```

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use redis::Cmd;
use tokio::{
    sync::{Mutex, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{
    Report,
    announcer::MonitorSlot,
    assignment::assigned_partitions,
    heartbeat::{LiveMembers, MissingOwners},
    member::Member,
    poison::PoisonSlot,
    prefetch::{PrefetchBuffer, PrefetchWriter},
    served_names::ServedNames,
    slot_consumer::{SharedPipelines, SlotConsumer, SlotContext},
    streams::ServedStream,
    upkeep::StopSignals,
};
use crate::{
    error::Error,
    transport::{
        PartitionTerm, Settings,
        redis::{
            handle::SharedHandle,
            keys::Keys,
            options::Options,
            pipeline::Resend,
            response::{array, bytes, integer, unexpected},
            scripts,
        },
    },
};

/// The values that all partitions of a worker share.
pub(super) struct OwnershipParts {
    /// This worker as a member of the group.
    pub(super) member: Arc<Member>,
    pub(super) settings: Settings,
    pub(super) options: Arc<Options>,
    pub(super) shared: Arc<SharedHandle>,
    pub(super) report: Arc<Report>,
    pub(super) buffer: Arc<PrefetchBuffer>,
    pub(super) pipelines: SharedPipelines,
    pub(super) names: Option<Arc<ServedNames>>,
    pub(super) monitor: MonitorSlot,
    /// The signals that stop the partitions and the heartbeats of this worker.
    pub(super) stop_signals: StopSignals,
}

/// Follows the changes of the group's members for one worker. Begins and ends terms of this worker
/// as the assignment of the partitions changes.
pub(super) struct Ownership {
    partitions: Arc<Mutex<AllPartitions>>,
    follow_task: JoinHandle<()>,
}

/// All partitions of the stream, each with its state for this worker.
struct AllPartitions {
    parts: OwnershipParts,
    partitions: Vec<Partition>,
    missing_owners: MissingOwners,
    /// The value of [`LiveMembers::deaths`] when this worker last abandoned its terms.
    deaths: u64,
}

/// One partition of the stream.
struct Partition {
    keys: Keys,
    state: PartitionState,
    /// Set if the server may list this member as the owner, although the member has no term of this
    /// partition. Until the partition is freed, no other member can own it.
    to_be_freed: bool,
    /// After an error, this worker does not try to own the partition before this time.
    not_before: Option<Instant>,
}

/// The state of a partition for this worker.
enum PartitionState {
    /// This worker does not own the partition. Another worker may own it.
    Free,
    /// This worker owns the partition.
    Owned(Box<Term>),
    /// The task drains the running deliveries, and ends the consumer of the term.
    Leaving(JoinHandle<()>),
}

/// A partition that this worker owns.
struct Term {
    keys: Keys,
    consumer: SlotConsumer,
}

/// The wait after an error before this worker tries to own the partition again.
const BACK_OFF: Duration = Duration::from_secs(1);

impl Ownership {
    /// Starts the task that begins and ends terms. `members` has the current members of the group.
    pub(super) fn start(
        parts: OwnershipParts,
        keys: Vec<Keys>,
        mut members: watch::Receiver<LiveMembers>,
    ) -> Self {
        let closed = parts.stop_signals.closed.clone();
        let interval = parts.member.interval();
        let partition = |keys| Partition {
            keys,
            state: PartitionState::Free,
            to_be_freed: false,
            not_before: None,
        };
        let partitions = Arc::new(Mutex::new(AllPartitions {
            parts,
            partitions: keys.into_iter().map(partition).collect(),
            missing_owners: MissingOwners::default(),
            deaths: 0,
        }));
        let followed = partitions.clone();
        let follow_task = tokio::spawn(async move {
            let follow = async {
                loop {
                    let known = members.borrow_and_update().clone();
                    let next = Instant::now() + interval;
                    followed.lock().await.follow(&known).await;
                    tokio::select! {
                        changed = members.changed() => if changed.is_err() { return },
                        () = sleep_until(next) => {}
                    }
                }
            };
            closed.run_until_cancelled(follow).await;
        });
        Self {
            partitions,
            follow_task,
        }
    }

    /// Stops fetching from all partitions, and drops the deliveries that have not started.
    pub(super) async fn stop(&self) {
        self.follow_task.abort();
        let mut partitions = self.partitions.lock().await;
        let terms = partitions.partitions.iter_mut().filter_map(Partition::term);
        join_all(terms.map(|term| async {
            term.consumer.stop().await;
            term.consumer.end_order();
        }))
        .await;
    }

    /// Waits until all verdicts so far are settled, frees the partitions, and stops the heartbeats.
    pub(super) async fn close(&self) -> Result<(), Error> {
        let mut partitions = self.partitions.lock().await;
        let AllPartitions {
            parts, partitions, ..
        } = &mut *partitions;
        let left = partitions.iter_mut().map(async |partition| {
            let closed = match std::mem::replace(&mut partition.state, PartitionState::Free) {
                PartitionState::Free => Ok(()),
                PartitionState::Owned(term) => term.end().await,
                PartitionState::Leaving(leaving) => {
                    let _ = timeout(parts.member.lease, leaving).await;
                    Ok(())
                }
            };
            // If the server cannot be reached, this member counts as dead after a lease. Other
            // members can then own the partition.
            let _ = timeout(parts.member.lease, partition.free(parts)).await;
            closed
        });
        let left = join_all(left).await;
        // The heartbeats stop last: without them the other members would consider this member dead
        // while it still drains.
        parts.stop_signals.leaving.cancel();
        let _ = timeout(parts.member.lease, parts.stop_signals.ended.cancelled()).await;
        left.into_iter().collect()
    }
}

impl Drop for Ownership {
    fn drop(&mut self) {
        self.follow_task.abort();
    }
}

impl Partition {
    fn term(&mut self) -> Option<&mut Term> {
        match &mut self.state {
            PartitionState::Owned(term) => Some(term),
            PartitionState::Free | PartitionState::Leaving(_) => None,
        }
    }
}

impl AllPartitions {
    /// Begins and ends terms to match the assignment among the live members. If the group has
    /// considered this member dead since the last call, abandons all its terms first.
    async fn follow(&mut self, members: &LiveMembers) {
        if members.deaths != self.deaths {
            self.deaths = members.deaths;
            for partition in &mut self.partitions {
                if let Some(term) = partition.term() {
                    term.consumer.abandon();
                    partition.state = PartitionState::Free;
                    partition.to_be_freed = true;
                }
            }
        }
        if members.live.is_empty() {
            return;
        }
        let me = self.parts.member.consumer.clone();
        let live = members.live.iter().map(String::as_str);
        let mine = assigned_partitions(live, &me, self.partitions.len());
        let mut dead = self.missing_owners.dead(self.parts.member.lease);
        dead.extend(members.dead.iter().cloned());
        let Self {
            parts,
            partitions,
            missing_owners,
            ..
        } = self;
        let (parts, missing_owners, dead) = (&*parts, &*missing_owners, &dead);
        let followed = partitions.iter_mut().enumerate();
        join_all(followed.map(async |(number, partition)| {
            let is_mine = mine.contains(&number);
            partition
                .follow(parts, number, is_mine, dead, |owner| {
                    missing_owners.note(owner, members);
                })
                .await;
        }))
        .await;
    }
}

impl Partition {
    /// Begins or ends a term of this partition, if the assignment requires it. Calls `note_owner`
    /// if another member owns the partition.
    async fn follow(
        &mut self,
        parts: &OwnershipParts,
        number: usize,
        is_mine: bool,
        dead: &[String],
        note_owner: impl Fn(&str),
    ) {
        match &mut self.state {
            PartitionState::Leaving(leaving) if leaving.is_finished() => {
                self.state = PartitionState::Free;
                self.to_be_freed = true;
            }
            PartitionState::Leaving(_) => return,
            PartitionState::Owned(term) if is_mine && !term.consumer.is_order_broken() => return,
            PartitionState::Owned(_) => {
                let PartitionState::Owned(term) =
                    std::mem::replace(&mut self.state, PartitionState::Free)
                else {
                    return;
                };
                self.state = PartitionState::Leaving(tokio::spawn(term.leave()));
                return;
            }
            PartitionState::Free => {}
        }
        if self.to_be_freed && !is_mine {
            self.free(parts).await;
            return;
        }
        let now = Instant::now();
        if !is_mine || self.not_before.is_some_and(|time| time > now) {
            return;
        }
        // If `begin` fails, the server may still list this member as the owner.
        self.to_be_freed = true;
        match Term::begin(parts, number, self.keys.clone(), dead).await {
            Ok(BeginResult::Owned(term)) => self.state = PartitionState::Owned(term),
            Ok(BeginResult::OwnedBy(owner)) => {
                self.to_be_freed = false;
                note_owner(&owner);
            }
            Err(error) => {
                self.not_before = Some(now + BACK_OFF);
                let (stream, error) = (&self.keys.stream, error.chain());
                tracing::warn!(%stream, error, "the partition cannot be owned now; trying again");
            }
        }
    }
}

impl Partition {
    /// Frees the partition for other members. If this fails, a later call of `follow` tries again.
    async fn free(&mut self, parts: &OwnershipParts) {
        let owner = self.keys.owner();
        let names = [owner.as_str()];
        let args = |cmd: &mut Cmd| {
            cmd.arg(&parts.member.consumer);
        };
        let pipeline = parts.shared.pipeline.for_key(&self.keys.stream_key);
        let freed = pipeline.script(&scripts::DISOWN, &names, args, Resend::Never);
        match freed.await {
            Ok(_) => self.to_be_freed = false,
            Err(error) => {
                let (stream, error) = (&self.keys.stream, error.chain());
                tracing::debug!(%stream, error, "the partition could not be freed; trying again");
            }
        }
    }
}

/// The result of an attempt to own a partition.
enum BeginResult {
    Owned(Box<Term>),
    /// Another member owns the partition.
    OwnedBy(String),
}

impl Term {
    /// Tries to own a partition. Succeeds if no member owns it, or if its owner is this member or
    /// one of the dead members.
    async fn begin(
        parts: &OwnershipParts,
        number: usize,
        keys: Keys,
        dead: &[String],
    ) -> Result<BeginResult, Error> {
        let group = keys.group.clone();
        let member = Arc::new(Member::new(
            group,
            parts.member.lease,
            parts.member.versions.clone(),
        ));
        let owner = keys.owner();
        let names = [owner.as_str()];
        let args = |cmd: &mut Cmd| {
            cmd.arg(&parts.member.consumer)
                .arg(&member.consumer)
                .arg(dead);
        };
        let pipeline = parts.shared.pipeline.for_key(&keys.stream_key);
        // If the outcome of the command is unknown, the command is not sent again. If the
        // command took effect, a later attempt begins another term of this member.
        let response = pipeline
            .script(&scripts::OWN, &names, args, Resend::Never)
            .await?;
        let mut response = array(response)?.into_iter();
        let first = response.next();
        let first = first.ok_or_else(|| unexpected("a term", "nothing"))?;
        // The number of the new term, or 0 and the name of the other owner.
        let term = match u64::try_from(integer(&first)?) {
            Ok(0) | Err(_) => {
                let owner = response.next().map(bytes).transpose()?.unwrap_or_default();
                return Ok(BeginResult::OwnedBy(
                    String::from_utf8_lossy(&owner).into_owned(),
                ));
            }
            Ok(term) => PartitionTerm::new(number, term),
        };
        let context = SlotContext {
            member: &member,
            settings: &parts.settings,
            options: &parts.options,
            shared: &parts.shared,
            report: &parts.report,
            poison: &PoisonSlot::default(),
            stop_signals: StopSignals {
                closed: parts.stop_signals.closed.child_token(),
                ..StopSignals::default()
            },
            names: parts.names.as_ref(),
            monitor: &parts.monitor,
            pipelines: Some(&parts.pipelines),
            term: Some(term),
        };
        let streams = vec![Arc::new(ServedStream::new(0, keys.clone(), 1))];
        let writer = PrefetchWriter::new(parts.buffer.clone(), number);
        match SlotConsumer::open(context, streams, writer).await {
            Ok(consumer) => {
                let stream = &keys.stream;
                tracing::debug!(%stream, term = term.term, "the worker owns the partition");
                Ok(BeginResult::Owned(Box::new(Self { keys, consumer })))
            }
            Err(error) => Err(error),
        }
    }

    /// Drains the running deliveries, and ends the consumer.
    async fn leave(mut self: Box<Self>) {
        self.consumer.stop_fetching().await;
        self.consumer.drain().await;
        if let Err(error) = self.end().await {
            let (stream, error) = (&self.keys.stream, error.chain());
            tracing::debug!(%stream, error, "the consumer of the partition was not closed");
        }
    }

    /// Waits until all settlements have finished, and ends the consumer.
    async fn end(&self) -> Result<(), Error> {
        let closed = self.consumer.close().await;
        self.consumer.abandon();
        closed
    }
}
