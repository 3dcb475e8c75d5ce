//! The circuit: its state, and the transitions between states.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::Instant,
};

use crate::sync::lock;

/// The state of a circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CircuitState {
    /// All calls are admitted and counted.
    Closed,
    /// No call is admitted. After the time of `open_for`, the next call makes the circuit half
    /// open.
    Open,
    /// A few calls are admitted as probes.
    HalfOpen,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct CircuitConfig {
    pub(super) failure_rate: f64,
    pub(super) window: Duration,
    pub(super) min_calls: u32,
    pub(super) open_for: Duration,
    pub(super) probes: u32,
}

impl Default for CircuitConfig {
    fn default() -> Self {
        Self {
            failure_rate: 0.5,
            window: Duration::from_secs(10),
            min_calls: 20,
            open_for: Duration::from_secs(5),
            probes: 3,
        }
    }
}

impl CircuitConfig {
    fn too_many_failed(&self, calls: CallCounts) -> bool {
        let rate = f64::from(calls.failed) / f64::from(calls.all);
        calls.all >= self.min_calls && rate >= self.failure_rate
    }

    /// Returns the phase of a circuit that opens now.
    fn open_phase(&self) -> Phase {
        let now = Instant::now();
        // If the sum overflows, the circuit opens for a year.
        let until = now
            .checked_add(self.open_for)
            .unwrap_or_else(|| now + Duration::from_secs(31_536_000));
        Phase::Open { until }
    }
}

pub(super) struct Circuit {
    config: CircuitConfig,
    phase: Mutex<Phase>,
    /// The number of changes of the phase so far. Incremented while the phase is locked.
    epoch: AtomicU64,
    /// Wakes services that wait for a free probe.
    changed: Arc<Notify>,
}

enum Phase {
    Closed(Window),
    Open { until: Instant },
    HalfOpen { running: u32, succeeded: u32 },
}

/// A change of the state by the outcome of a call.
enum Transition {
    Opened(CallCounts),
    Reopened,
    Closed,
}

impl Transition {
    fn log(self) {
        match self {
            Self::Opened(CallCounts { failed, all }) => {
                tracing::warn!(failed, all, "the circuit opens: too many calls have failed");
            }
            Self::Reopened => tracing::warn!("the circuit stays open: a probe has failed"),
            Self::Closed => tracing::info!("the circuit is closed again"),
        }
    }
}

/// The reason why a call is not admitted.
pub(super) enum Refusal {
    /// The circuit is open until this time.
    Open(Instant),
    /// All probes are in use. The future completes when a probe may be free.
    Busy(OwnedNotified),
}

impl Circuit {
    pub(super) fn new(config: CircuitConfig) -> Self {
        Self {
            config,
            phase: Mutex::new(Phase::Closed(Window::default())),
            epoch: AtomicU64::new(0),
            changed: Arc::default(),
        }
    }

    pub(super) fn config(&self) -> CircuitConfig {
        self.config
    }

    pub(super) fn state(&self) -> CircuitState {
        match *self.lock() {
            Phase::Closed(_) => CircuitState::Closed,
            Phase::Open { .. } => CircuitState::Open,
            Phase::HalfOpen { .. } => CircuitState::HalfOpen,
        }
    }

    /// Admits a call, or returns the reason for its refusal.
    pub(super) fn admit(self: &Arc<Self>) -> Result<CallPermit, Refusal> {
        let mut phase = self.lock();
        if let Phase::Open { until } = *phase {
            if Instant::now() < until {
                return Err(Refusal::Open(until));
            }
            // No caller needs to be woken: each waiting caller sleeps until `until`.
            let (running, succeeded) = (0, 0);
            self.set_phase(&mut phase, Phase::HalfOpen { running, succeeded });
        }
        let is_probe = match &mut *phase {
            Phase::HalfOpen { running, succeeded }
                if *running + *succeeded < self.config.probes =>
            {
                *running += 1;
                true
            }
            Phase::HalfOpen { .. } => {
                // The future is created under the lock, so that the caller cannot miss a change.
                return Err(Refusal::Busy(self.changed.clone().notified_owned()));
            }
            _ => false,
        };
        Ok(CallPermit {
            circuit: self.clone(),
            epoch: self.epoch.load(Ordering::Relaxed),
            is_probe,
        })
    }

    /// Counts the outcome of a call that was admitted in this epoch. Ignores the outcome if the
    /// phase has changed since then.
    fn count(&self, epoch: u64, success: bool) {
        let mut phase = self.lock();
        if epoch != self.epoch.load(Ordering::Relaxed) {
            return;
        }
        let transition = match &mut *phase {
            Phase::Closed(window) => {
                let calls = window.add(success, self.config.window);
                self.config.too_many_failed(calls).then(|| {
                    self.set_phase(&mut phase, self.config.open_phase());
                    Transition::Opened(calls)
                })
            }
            Phase::HalfOpen { succeeded, .. } if success => {
                *succeeded += 1;
                (*succeeded >= self.config.probes).then(|| {
                    self.set_phase(&mut phase, Phase::Closed(Window::default()));
                    Transition::Closed
                })
            }
            Phase::HalfOpen { .. } => {
                self.set_phase(&mut phase, self.config.open_phase());
                Some(Transition::Reopened)
            }
            Phase::Open { .. } => None,
        };
        // Releases the lock first, because wakers and log subscribers may call this circuit.
        drop(phase);
        if let Some(transition) = transition {
            self.changed.notify_waiters();
            transition.log();
        }
    }

    fn set_phase(&self, phase: &mut Phase, next: Phase) {
        *phase = next;
        self.epoch.fetch_add(1, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        lock(&self.phase)
    }
}

impl fmt::Debug for Circuit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Circuit")
            .field("config", &self.config)
            .field("state", &self.state())
            .finish()
    }
}

/// The permit for one call. Dropping the permit counts no outcome. If the call is a probe, dropping
/// the permit also releases the probe.
#[derive(Debug)]
pub(super) struct CallPermit {
    circuit: Arc<Circuit>,
    epoch: u64,
    is_probe: bool,
}

impl CallPermit {
    /// Returns `true` if the state has not changed since the permit was granted.
    pub(super) fn is_current(&self) -> bool {
        self.epoch == self.circuit.epoch.load(Ordering::Relaxed)
    }

    pub(super) fn count(self, success: bool) {
        self.circuit.count(self.epoch, success);
    }
}

impl Drop for CallPermit {
    fn drop(&mut self) {
        if !self.is_probe {
            return;
        }
        let mut phase = self.circuit.lock();
        if let Phase::HalfOpen { running, .. } = &mut *phase
            && self.is_current()
        {
            *running -= 1;
            drop(phase);
            self.circuit.changed.notify_waiters();
        }
    }
}

/// Counts the calls of the last `window`, separately for each tenth of this time.
#[derive(Default)]
struct Window {
    began: Option<Instant>,
    /// The tenths of the window that have calls, the oldest first. Each pair is the number of the
    /// tenth since `began`, and its counts.
    tenths: VecDeque<(u128, CallCounts)>,
}

#[derive(Clone, Copy, Default)]
struct CallCounts {
    failed: u32,
    all: u32,
}

impl Window {
    /// Adds a call, and returns the sum of all calls in the window.
    fn add(&mut self, success: bool, window: Duration) -> CallCounts {
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
            self.tenths.push_back((tenth, CallCounts::default()));
        }
        if let Some((_, calls)) = self.tenths.back_mut() {
            calls.all = calls.all.saturating_add(1);
            calls.failed = calls.failed.saturating_add(u32::from(!success));
        }
        self.tenths
            .iter()
            .fold(CallCounts::default(), |sum, (_, calls)| CallCounts {
                failed: sum.failed.saturating_add(calls.failed),
                all: sum.all.saturating_add(calls.all),
            })
    }
}
