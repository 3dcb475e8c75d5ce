//! The signals by which a process is told to end.

use futures_util::future;
use tokio::sync::watch;

/// How many have come.
pub(super) struct Signals(watch::Receiver<u32>);

impl Signals {
    #[track_caller]
    pub(super) fn listen() -> Self {
        let (count, seen) = watch::channel(0);
        let mut signals = Platform::listen();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = signals.next() => count.send_modify(|count| *count += 1),
                    () = count.closed() => return,
                }
            }
        });
        Self(seen)
    }

    pub(super) fn first_and_second(
        self,
    ) -> (
        impl Future<Output = ()> + Send + 'static,
        impl Future<Output = ()> + Send + 'static,
    ) {
        (reaches(self.0.clone(), 1), reaches(self.0, 2))
    }
}

async fn reaches(mut seen: watch::Receiver<u32>, count: u32) {
    // The task that counts ends with the runtime, and then nothing is told any more.
    if seen.wait_for(|seen| *seen >= count).await.is_err() {
        future::pending::<()>().await;
    }
}

#[cfg(unix)]
struct Platform {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Platform {
    #[track_caller]
    fn listen() -> Self {
        use tokio::signal::unix::{SignalKind, signal};

        let listen = |kind| signal(kind).expect("the signal handler can be installed");
        Self {
            interrupt: listen(SignalKind::interrupt()),
            terminate: listen(SignalKind::terminate()),
        }
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Platform;

#[cfg(not(unix))]
impl Platform {
    fn listen() -> Self {
        Self
    }

    async fn next(&mut self) {
        tokio::signal::ctrl_c()
            .await
            .expect("the signal handler can be installed");
    }
}
