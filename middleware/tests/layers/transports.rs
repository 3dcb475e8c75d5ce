//! The transports of these tests, as one trait.

use std::time::{Duration, Instant};

use campanile::{
    Redis,
    transport::{Broker, Counts, DeadLetters, Limit, Settings, memory::Memory},
};
use tokio::time::sleep;

/// The longest wait for a condition.
const LIMIT: Duration = Duration::from_secs(60);

/// A transport of these tests.
pub(crate) trait Transport: Broker {
    fn set(self, settings: Settings) -> Self;
    fn counts(&self) -> Counts;
    fn dead_letters(&self) -> DeadLetters;
    fn limit(&self, name: &str) -> Limit;
}

macro_rules! transports {
    ($($transport:ty),*) => {$(
        impl Transport for $transport {
            fn set(self, settings: Settings) -> Self {
                self.with_settings(settings)
            }

            fn counts(&self) -> Counts {
                self.counts()
            }

            fn dead_letters(&self) -> DeadLetters {
                self.dead_letters()
            }

            fn limit(&self, name: &str) -> Limit {
                self.limit(name).expect("the name of the limit is valid")
            }
        }
    )*};
}

transports!(Memory, Redis);

/// Waits until a condition holds, in real time. Panics if it takes too long even for a loaded
/// machine.
pub(crate) async fn until(mut check: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !check().await {
        assert!(
            started.elapsed() < LIMIT,
            "the condition did not hold within {LIMIT:?}"
        );
        sleep(Duration::from_millis(5)).await;
    }
}
