//! Keeps futures that wake each other from waking their task while it polls them.
//!
//! A task that is woken while it runs goes to the end of the scheduler's queue and wakes an idle
//! thread to look there. That costs more than all the rest of sending one command.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// How often everything is polled before the task is woken after all: the futures may be out of
/// tokio's budget for this turn, and would wake the task for ever.
const ROUNDS: usize = 3;

pub(super) struct Gate {
    waker: Waker,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    inside: AtomicBool,
    woken: AtomicBool,
    task: AtomicWaker,
}

impl Gate {
    pub(super) fn new() -> Self {
        let state = Arc::<State>::default();
        Self {
            waker: state.clone().into(),
            state,
        }
    }

    /// Polls until nothing was woken meanwhile.
    pub(super) fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.state.task.register(cx.waker());
        let mut inner = Context::from_waker(&self.waker);
        for _ in 0..ROUNDS {
            self.state.inside.store(true, Ordering::SeqCst);
            self.state.woken.store(false, Ordering::SeqCst);
            let polled = poll(&mut inner);
            // In this order: what is woken now either sees that nobody is inside, or is seen here.
            self.state.inside.store(false, Ordering::SeqCst);
            if polled.is_ready() || !self.state.woken.load(Ordering::SeqCst) {
                return polled;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Wake for State {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        if !self.inside.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_wake_inside_polls_again_and_one_outside_wakes_the_task() {
        let count = Arc::<Count>::default();
        let waker = count.clone().into();
        let gate = Gate::new();
        let (mut polls, mut kept) = (0, None);
        let polled = gate.poll::<()>(&mut Context::from_waker(&waker), |cx| {
            polls += 1;
            if polls == 1 {
                cx.waker().wake_by_ref();
            }
            kept = Some(cx.waker().clone());
            Poll::Pending
        });
        assert!(polled.is_pending());
        assert_eq!((polls, count.0.load(Ordering::SeqCst)), (2, 0));
        kept.unwrap().wake();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn what_wakes_itself_for_ever_does_not_hold_the_task() {
        let count = Arc::<Count>::default();
        let waker = count.clone().into();
        let polled = Gate::new().poll::<()>(&mut Context::from_waker(&waker), |cx| {
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        assert!(polled.is_pending());
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
    }
}
