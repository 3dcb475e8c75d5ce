//! The state of a circuit, and what calls do to it.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::Instant,
};

/// How a circuit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Calls pass and are counted.
    Closed,
    /// Nothing passes. When its time is over, the next call makes it half open.
    Open,
    /// A few calls pass, to see how they end.
    HalfOpen,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) failure_rate: f64,
    pub(super) window: Duration,
    pub(super) minimum_calls: u32,
    pub(super) open_for: Duration,
    pub(super) probes: u32,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            failure_rate: 0.5,
            window: Duration::from_secs(10),
            minimum_calls: 20,
            open_for: Duration::from_secs(5),
            probes: 3,
        }
    }
}

impl Rules {
    fn are_too_many(&self, calls: Calls) -> bool {
        let rate = f64::from(calls.failed) / f64::from(calls.all);
        calls.all >= self.minimum_calls && rate >= self.failure_rate
    }

    fn open(&self) -> Phase {
        let now = Instant::now();
        // A year stands for "never" where the sum would overflow.
        let until = now
            .checked_add(self.open_for)
            .unwrap_or_else(|| now + Duration::from_secs(31_536_000));
        Phase::Open { until }
    }
}

pub(super) struct Circuit {
    rules: Rules,
    phase: Mutex<Phase>,
    /// Goes up with each change of the phase, under its lock.
    epoch: AtomicU64,
    /// Wakes those that were not let through.
    changed: Arc<Notify>,
}

enum Phase {
    Closed(Window),
    Open { until: Instant },
    HalfOpen { under_way: u32, good: u32 },
}

/// What a call has made of the circuit.
enum Turned {
    Opened(Calls),
    Reopened,
    Closed,
}

impl Turned {
    fn log(self) {
        match self {
            Self::Opened(Calls { failed, all }) => {
                tracing::warn!(failed, all, "a circuit opens: too many calls have failed");
            }
            Self::Reopened => tracing::warn!("a circuit stays open: a probe has failed"),
            Self::Closed => tracing::info!("a circuit is closed again"),
        }
    }
}

/// Why a call is not let through.
pub(super) enum Refusal {
    /// The circuit is open until then.
    Open(Instant),
    /// Enough probes are under way. Ready when that may have changed.
    Busy(OwnedNotified),
}

impl Circuit {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            phase: Mutex::new(Phase::Closed(Window::default())),
            epoch: AtomicU64::new(0),
            changed: Arc::default(),
        }
    }

    pub(super) fn rules(&self) -> Rules {
        self.rules
    }

    pub(super) fn state(&self) -> State {
        match *self.lock() {
            Phase::Closed(_) => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Lets a call through, or says why not.
    pub(super) fn admit(self: &Arc<Self>) -> Result<Ticket, Refusal> {
        let mut phase = self.lock();
        if let Phase::Open { until } = *phase {
            if Instant::now() < until {
                return Err(Refusal::Open(until));
            }
            // Nobody has to be woken: those who wait for an open circuit wait for this time.
            let (under_way, good) = (0, 0);
            self.turn(&mut phase, Phase::HalfOpen { under_way, good });
        }
        let probe = match &mut *phase {
            Phase::HalfOpen { under_way, good } if *under_way + *good < self.rules.probes => {
                *under_way += 1;
                true
            }
            Phase::HalfOpen { .. } => {
                // Made under the lock, so that no change in between is missed.
                return Err(Refusal::Busy(self.changed.clone().notified_owned()));
            }
            _ => false,
        };
        Ok(Ticket {
            circuit: self.clone(),
            epoch: self.epoch.load(Ordering::Relaxed),
            probe,
        })
    }

    /// Counts how a call of this epoch has ended.
    fn count(&self, epoch: u64, success: bool) {
        let mut phase = self.lock();
        if epoch != self.epoch.load(Ordering::Relaxed) {
            return;
        }
        let turned = match &mut *phase {
            Phase::Closed(window) => {
                let calls = window.add(success, self.rules.window);
                self.rules.are_too_many(calls).then(|| {
                    self.turn(&mut phase, self.rules.open());
                    Turned::Opened(calls)
                })
            }
            Phase::HalfOpen { good, .. } if success => {
                *good += 1;
                (*good >= self.rules.probes).then(|| {
                    self.turn(&mut phase, Phase::Closed(Window::default()));
                    Turned::Closed
                })
            }
            Phase::HalfOpen { .. } => {
                self.turn(&mut phase, self.rules.open());
                Some(Turned::Reopened)
            }
            Phase::Open { .. } => None,
        };
        // Neither wakers nor a subscriber may find it locked.
        drop(phase);
        if let Some(turned) = turned {
            self.changed.notify_waiters();
            turned.log();
        }
    }

    fn turn(&self, phase: &mut Phase, next: Phase) {
        *phase = next;
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Circuit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Circuit")
            .field("rules", &self.rules)
            .field("state", &self.state())
            .finish()
    }
}

/// The right to make one call. Dropping it counts for nothing, and gives a probe back.
#[derive(Debug)]
pub(super) struct Ticket {
    circuit: Arc<Circuit>,
    epoch: u64,
    probe: bool,
}

impl Ticket {
    /// Whether the circuit is still as it was.
    pub(super) fn is_current(&self) -> bool {
        self.epoch == self.circuit.epoch.load(Ordering::Relaxed)
    }

    pub(super) fn count(self, success: bool) {
        self.circuit.count(self.epoch, success);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.probe {
            return;
        }
        let mut phase = self.circuit.lock();
        if let Phase::HalfOpen { under_way, .. } = &mut *phase
            && self.is_current()
        {
            *under_way -= 1;
            drop(phase);
            self.circuit.changed.notify_waiters();
        }
    }
}

/// The calls of late, by tenths of the window.
#[derive(Default)]
struct Window {
    began: Option<Instant>,
    /// The oldest first, each with the number of its tenth.
    tenths: VecDeque<(u128, Calls)>,
}

#[derive(Clone, Copy, Default)]
struct Calls {
    failed: u32,
    all: u32,
}

impl Window {
    /// Adds a call, and returns the sum of all.
    fn add(&mut self, success: bool, window: Duration) -> Calls {
        let now = Instant::now();
        let began = *self.began.get_or_insert(now);
        let tenth = (now - began).as_nanos() / (window.as_nanos() / 10);
        while self
            .tenths
            .front()
            .is_some_and(|(old, _)| old + 10 <= tenth)
        {
            self.tenths.pop_front();
        }
        if self.tenths.back().is_none_or(|(last, _)| *last != tenth) {
            self.tenths.push_back((tenth, Calls::default()));
        }
        if let Some((_, calls)) = self.tenths.back_mut() {
            calls.all = calls.all.saturating_add(1);
            calls.failed = calls.failed.saturating_add(u32::from(!success));
        }
        self.tenths
            .iter()
            .fold(Calls::default(), |sum, (_, calls)| Calls {
                failed: sum.failed.saturating_add(calls.failed),
                all: sum.all.saturating_add(calls.all),
            })
    }
}
