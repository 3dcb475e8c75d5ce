//! Keeps the order of the deliveries of an owned partition.
//!
//! The deliveries with one key run one at a time, in the order of the stream. A failed delivery
//! keeps its key while it waits for its next attempt. The key is free once a verdict ends the
//! delivery. Deliveries without a key never wait. Entries that a former owner left pending
//! (*inherited* entries) are delivered first, one at a time even if their keys differ.
//!
//! ```text
//! fetch ──deliveries──► admit ──may start──► prefetch buffer ──► serve
//!                         │ held by key          ▲                  │ verdict
//!                         ▼                      │ next of the key  ▼
//!                        held ───────────────────┴──── `record_end` or `redeliver`
//! ```

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use foldhash::HashMap;
use redis::Cmd;
use tokio::{runtime::Handle, sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    member::Member,
    prefetch::PrefetchWriter,
    report::Report,
    settle::{RedisSettler, SettlePolicy},
    settlement::Unsettled,
};
use crate::{
    error::Error,
    message::{Attempt, Message, PartitionKey},
    sync::lock,
    transport::{
        Delivery, PartitionTerm, Undecodable,
        redis::{
            pipeline::{Pipeline, Resend},
            response::integer,
            scripts,
        },
    },
};

/// The order of the deliveries of one partition, for one term of its owner.
pub(super) struct KeyOrder {
    pub(super) term: PartitionTerm,
    member: Arc<Member>,
    pipeline: Pipeline,
    report: Arc<Report>,
    buffer: PrefetchWriter,
    /// The application's runtime. Tasks on it wait for further attempts.
    runtime: Handle,
    /// The maximum number of deliveries that wait for their keys. At this number no more deliveries
    /// are fetched.
    max_waiting: usize,
    state: Mutex<OrderState>,
    /// Notified when a delivery ends, fails or is released.
    changed: Notify,
    /// Cancelled when no further delivery may start.
    draining: CancellationToken,
    /// Cancelled if a delivery was dropped without a verdict, was lost, or could not be settled.
    /// Its entry stays pending, and is delivered again, in order, only in the next term of an
    /// owner.
    broken: CancellationToken,
}

#[derive(Default)]
struct OrderState {
    /// For each key of a running or failed delivery, the deliveries that wait for this key.
    keys: HashMap<PartitionKey, VecDeque<Delivery<RedisSettler>>>,
    /// The number of waiting deliveries.
    held: usize,
    /// The deliveries that a former owner left and that have not started.
    inherited: VecDeque<Delivery<RedisSettler>>,
    /// Set while one of the inherited deliveries runs or waits for another attempt.
    runs_inherited: bool,
    /// Deliveries that came back before their handlers started. They still hold their keys, and are
    /// handed out again.
    put_back: VecDeque<Delivery<RedisSettler>>,
    /// The number of deliveries that were handed out and have not ended, failed or been released.
    running: usize,
}

/// The dependencies of a [`KeyOrder`].
pub(super) struct KeyOrderParts {
    pub(super) term: PartitionTerm,
    pub(super) member: Arc<Member>,
    pub(super) pipeline: Pipeline,
    pub(super) report: Arc<Report>,
    pub(super) buffer: PrefetchWriter,
    pub(super) max_waiting: usize,
}

/// The place of a delivery in the order. The delivery keeps its place until it is dropped.
pub(super) struct Turn {
    order: Arc<KeyOrder>,
    key: Option<PartitionKey>,
    /// A copy of the delivery's content for further attempts.
    content: Result<Message, Undecodable>,
    is_inherited: bool,
    state: TurnState,
}

/// The state of a turn. It decides what happens when the turn is dropped.
#[derive(Debug, Clone, Copy, PartialEq)]
enum TurnState {
    /// The delivery is not handed out. A drop leaves its entry pending.
    Waiting,
    /// The delivery is handed out. A drop without a verdict breaks the order.
    Running,
    /// The delivery has a verdict that ends it. A drop frees its key.
    Ending,
}

impl KeyOrder {
    /// Makes an order. Must be called on the application's runtime, on which further attempts wait.
    pub(super) fn new(parts: KeyOrderParts) -> Arc<Self> {
        let KeyOrderParts {
            term,
            member,
            pipeline,
            report,
            buffer,
            max_waiting,
        } = parts;
        Arc::new(Self {
            term,
            member,
            pipeline,
            report,
            buffer,
            runtime: Handle::current(),
            max_waiting,
            state: Mutex::default(),
            changed: Notify::new(),
            draining: CancellationToken::new(),
            broken: CancellationToken::new(),
        })
    }

    /// Makes the turn of a delivery that was just fetched.
    pub(super) fn turn(self: &Arc<Self>, content: &Result<Message, Undecodable>) -> Turn {
        let key = content.as_ref().ok();
        Turn {
            order: self.clone(),
            key: key.and_then(|message| message.parts().partition_key.clone()),
            content: content.clone(),
            is_inherited: false,
            state: TurnState::Waiting,
        }
    }

    /// Takes the deliveries of a read. Returns those that may start now, and keeps the others.
    /// Inherited deliveries are not returned: they are added to the prefetch buffer one by one.
    pub(super) fn admit(
        self: &Arc<Self>,
        deliveries: Vec<Delivery<RedisSettler>>,
        are_inherited: bool,
    ) -> Vec<Delivery<RedisSettler>> {
        let mut state = self.lock();
        if are_inherited {
            state.inherited.extend(deliveries);
            drop(state);
            self.deliver_inherited();
            return Vec::new();
        }
        let may_start = deliveries
            .into_iter()
            .filter_map(|delivery| state.start(delivery));
        may_start.collect()
    }

    /// Hands out released deliveries again, at most `max`.
    pub(super) fn take_put_back(&self, max: usize) -> Vec<Delivery<RedisSettler>> {
        let mut state = self.lock();
        let count = state.put_back.len().min(max);
        let ready = state.put_back.drain(..count).map(mark_running);
        let ready: Vec<_> = ready.collect();
        state.running += ready.len();
        ready
    }

    /// Returns the number of deliveries that may be fetched now. Zero until all inherited
    /// deliveries have ended, and after `drain`, `end` or `break_off`.
    pub(super) fn room(&self) -> usize {
        let state = self.lock();
        let waits = state.runs_inherited || !state.inherited.is_empty();
        match waits || self.draining.is_cancelled() {
            true => 0,
            false => self.max_waiting.saturating_sub(state.held),
        }
    }

    /// Waits until a delivery ends, fails or is released.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Starts no further deliveries, waits until no delivery is running, and drops those that have
    /// not started.
    pub(super) async fn drain(&self) {
        self.draining.cancel();
        loop {
            let changed = self.changed.notified();
            if self.lock().running == 0 {
                break;
            }
            changed.await;
        }
        let rest = std::mem::take(&mut *self.lock());
        drop(rest);
    }

    /// Starts no further deliveries, and drops those that have not started. Their entries stay
    /// pending for the next owner.
    pub(super) fn end(&self) {
        self.draining.cancel();
        let mut state = self.lock();
        let emptied = OrderState {
            running: state.running,
            ..OrderState::default()
        };
        let rest = std::mem::replace(&mut *state, emptied);
        drop(state);
        drop(rest);
    }

    /// Marks the order as broken and starts no further deliveries. Called if the outcome of a
    /// delivery is unknown, since no later delivery with its key may then start.
    pub(super) fn break_off(&self) {
        self.broken.cancel();
        self.draining.cancel();
    }

    /// Returns `true` if the order is broken. The partition then needs another term.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.is_cancelled()
    }

    /// Starts the next inherited delivery, unless one of them runs or waits for another attempt.
    fn deliver_inherited(self: &Arc<Self>) {
        let next = {
            let mut state = self.lock();
            if state.runs_inherited || self.draining.is_cancelled() {
                return;
            }
            let next = state.inherited.pop_front();
            state.runs_inherited = next.is_some();
            next
        };
        if let Some(Delivery { settle, .. }) = next
            && let Some((mut delivery, policy)) = settle.into_parts()
        {
            if let Some(turn) = &mut delivery.turn {
                turn.is_inherited = true;
            }
            self.deliver_again(delivery, policy, Duration::ZERO, true);
        }
    }

    /// Delivers a failed delivery again after a wait. Its key stays held meanwhile. `counted` is
    /// `false` if the failed attempt does not count.
    pub(super) fn redeliver(
        self: &Arc<Self>,
        mut delivery: Unsettled,
        policy: &Arc<SettlePolicy>,
        after: Duration,
        counted: bool,
    ) {
        if let Some(turn) = &mut delivery.turn {
            turn.state = TurnState::Waiting;
        }
        self.lock().running -= 1;
        self.changed.notify_waiters();
        let counters = &self.report.counters;
        counters.redelivered.increment();
        if !counted {
            counters.uncounted.increment();
        }
        self.deliver_again(delivery, policy.clone(), after, counted);
    }

    /// Takes back a delivery that was released before its handler started.
    pub(super) fn put_back(&self, mut delivery: Unsettled, policy: &Arc<SettlePolicy>) {
        let Some(turn) = &mut delivery.turn else {
            return;
        };
        turn.state = TurnState::Waiting;
        let content = turn.content.clone();
        let delivery = Delivery::new(content, RedisSettler::new(delivery, policy));
        let mut state = self.lock();
        state.running -= 1;
        let is_draining = self.draining.is_cancelled();
        let dropped = match is_draining {
            true => Some(delivery),
            false => {
                state.put_back.push_back(delivery);
                None
            }
        };
        drop(state);
        drop(dropped);
        // The first call wakes `drain`. The second is kept for the next call of `changed`.
        self.changed.notify_waiters();
        self.changed.notify_one();
    }

    /// Starts a task that waits and then hands the delivery out. Before that, the task counts the
    /// attempt on the server, unless `counted` is `false`. After [`drain`](Self::drain) or
    /// [`end`](Self::end) the task drops the delivery instead.
    fn deliver_again(
        self: &Arc<Self>,
        delivery: Unsettled,
        policy: Arc<SettlePolicy>,
        after: Duration,
        counted: bool,
    ) {
        let order = self.clone();
        self.runtime.spawn(async move {
            let attempt = async {
                sleep(after).await;
                match counted {
                    true => order.count_attempt(&delivery).await,
                    false => Ok(true),
                }
            };
            let counted_now = tokio::select! {
                biased;
                () = order.draining.cancelled() => return,
                counted = attempt => counted,
            };
            match counted_now {
                Ok(true) => order.hand_out(delivery, &policy, u32::from(counted)),
                Ok(false) => {
                    let message = "a delivery was lost to another owner of its partition";
                    let lose = || delivery.guard.lease.lose();
                    order.report.lost(delivery.origin, lose, message);
                    order.break_off();
                }
                Err(error) => {
                    let (id, error) = (delivery.origin, error.chain());
                    tracing::warn!(%id, error, "a delivery could not be repeated in its place");
                    order.break_off();
                }
            }
        });
    }

    /// Marks a delivery as running, and adds it to the prefetch buffer.
    fn hand_out(
        self: &Arc<Self>,
        mut delivery: Unsettled,
        policy: &Arc<SettlePolicy>,
        more_attempts: u32,
    ) {
        let Some(turn) = &mut delivery.turn else {
            return;
        };
        delivery.attempt = delivery.attempt.saturating_add(more_attempts);
        if let Ok(message) = &mut turn.content {
            message.parts_mut().attempt = Attempt(delivery.attempt);
        }
        turn.state = TurnState::Running;
        let content = turn.content.clone();
        let delivery = Delivery::new(content, RedisSettler::new(delivery, policy));
        self.lock().running += 1;
        self.buffer.add(vec![delivery]);
    }

    /// Counts an attempt on the server. Returns `false` if the entry is pending for another
    /// consumer.
    async fn count_attempt(&self, delivery: &Unsettled) -> Result<bool, Error> {
        let (which, id) = delivery.guard.delivery_key;
        let keys = [delivery.stream.key_of(which)];
        let args = |cmd: &mut Cmd| {
            cmd.arg(self.member.group.as_str())
                .arg(&self.member.consumer)
                .arg(id);
        };
        // If the command is sent again after a lost connection, it may count twice. The message
        // then has one attempt fewer left.
        let counted =
            self.pipeline
                .script(&scripts::COUNT_ATTEMPT, &keys, args, Resend::UntilAnswered);
        Ok(integer(&counted.await?)? == 1)
    }

    /// Records that a delivery has ended. Starts the next delivery that waits for its key, or the
    /// next inherited one if `was_inherited` is `true`.
    fn record_end(self: &Arc<Self>, key: Option<&PartitionKey>, was_inherited: bool) {
        let next = {
            let mut state = self.lock();
            state.running -= 1;
            if was_inherited {
                state.runs_inherited = false;
            }
            match self.draining.is_cancelled() {
                true => None,
                false => key.and_then(|key| state.next_of(key)),
            }
        };
        if let Some(next) = next {
            self.buffer.add(vec![next]);
        }
        if was_inherited {
            self.deliver_inherited();
        }
        self.changed.notify_waiters();
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, OrderState> {
        lock(&self.state)
    }
}

impl OrderState {
    /// Marks a delivery as running and returns it. If its key is held, keeps it and returns `None`.
    fn start(&mut self, delivery: Delivery<RedisSettler>) -> Option<Delivery<RedisSettler>> {
        if let Some(key) = delivery.settle.partition_key() {
            if let Some(held) = self.keys.get_mut(&key) {
                held.push_back(delivery);
                self.held += 1;
                return None;
            }
            self.keys.insert(key, VecDeque::new());
        }
        self.running += 1;
        Some(mark_running(delivery))
    }

    /// Takes the next delivery that waits for a key. If none waits, frees the key.
    fn next_of(&mut self, key: &PartitionKey) -> Option<Delivery<RedisSettler>> {
        let next = self.keys.get_mut(key)?.pop_front();
        match next {
            None => {
                self.keys.remove(key);
                None
            }
            Some(next) => {
                self.held -= 1;
                self.running += 1;
                Some(mark_running(next))
            }
        }
    }
}

/// Marks a delivery as running.
fn mark_running(mut delivery: Delivery<RedisSettler>) -> Delivery<RedisSettler> {
    if let Some(turn) = delivery.settle.turn_mut() {
        turn.state = TurnState::Running;
    }
    delivery
}

impl Turn {
    pub(super) fn key(&self) -> Option<&PartitionKey> {
        self.key.as_ref()
    }

    pub(super) fn order(&self) -> Arc<KeyOrder> {
        self.order.clone()
    }

    /// Records that the delivery has a verdict that ends it. Its key becomes free when the delivery
    /// is dropped, after the settlement.
    pub(super) fn end(&mut self) {
        self.state = TurnState::Ending;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        match self.state {
            TurnState::Waiting => {}
            TurnState::Running => {
                self.order.lock().running -= 1;
                self.order.break_off();
                self.order.changed.notify_waiters();
            }
            TurnState::Ending => self.order.record_end(self.key.as_ref(), self.is_inherited),
        }
    }
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turn")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
