//! Turns off single mechanisms, so that a bench can measure how each affects the speed. Without the
//! feature `ablation` all mechanisms are on.

#![cfg_attr(not(feature = "ablation"), allow(dead_code, unreachable_pub))]

/// A mechanism whose effect on the speed is measured.
#[derive(Debug, Clone, Copy)]
pub enum Mechanism {
    /// The connection that reads also acknowledges the deliveries of the previous read.
    AcknowledgeWithRead,
    /// A read is sent before the entries of the previous read are decoded.
    ReadAhead,
    /// A source of several streams reads them mostly with a plain command, and seldom with a
    /// script.
    PlainReads,
    /// A tokio task that has handled a delivery stays for later deliveries, and one tokio task at a
    /// time starts deliveries. Without this mechanism, each delivery spawns a tokio task.
    KeptTasks,
    /// Each delivery is counted in the statistics that its worker reports. Unlike the other
    /// mechanisms, this one makes workers slower.
    WorkerCounts,
}

#[cfg(feature = "ablation")]
mod switches {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Mechanism;

    static OFF: AtomicU8 = AtomicU8::new(0);

    impl Mechanism {
        fn bit(self) -> u8 {
            1 << self as u8
        }

        /// Turns this mechanism off, and all others on, in the whole process.
        pub fn turn_off_alone(self) {
            OFF.store(self.bit(), Ordering::Relaxed);
        }

        /// Turns all mechanisms on.
        pub fn turn_all_on() {
            OFF.store(0, Ordering::Relaxed);
        }

        pub(crate) fn is_off(self) -> bool {
            OFF.load(Ordering::Relaxed) & self.bit() != 0
        }
    }
}

#[cfg(not(feature = "ablation"))]
impl Mechanism {
    pub(crate) const fn is_off(self) -> bool {
        false
    }
}
