//! The process signals that end a worker.

use std::time::Duration;

use futures_util::future;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

/// A signal that arrives within this time after the first is a duplicate and is not counted. On
/// Ctrl-C a terminal signals all processes of its group, and a process manager in that group
/// forwards the signal once more.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(1);

/// Counts `SIGINT` and `SIGTERM`, without duplicates of the first signal.
pub(super) struct ShutdownSignals(watch::Receiver<u32>);

impl ShutdownSignals {
    /// Installs the signal handlers.
    #[track_caller]
    pub(super) fn listen() -> Self {
        let (count, seen) = watch::channel(0);
        let mut signals = OsSignals::listen();
        let (sender, signalled) = mpsc::channel(1);
        let counting = count_signals(signalled, count);
        tokio::spawn(async move {
            let forwarding = async {
                loop {
                    signals.next().await;
                    // If the channel is full, an earlier signal waits to be counted, and this
                    // signal is a duplicate of it.
                    let _ = sender.try_send(());
                }
            };
            tokio::select! {
                () = counting => {}
                () = forwarding => {}
            }
        });
        Self(seen)
    }

    /// Returns two futures: one completes at the first signal, the other at the second.
    pub(super) fn first_and_second(
        self,
    ) -> (
        impl Future<Output = ()> + Send + 'static,
        impl Future<Output = ()> + Send + 'static,
    ) {
        (wait_for_count(self.0.clone(), 1), wait_for_count(self.0, 2))
    }
}

/// Counts signals until all senders of signals or all receivers of the count are dropped.
async fn count_signals(mut signalled: mpsc::Receiver<()>, count: watch::Sender<u32>) {
    let mut first = None;
    loop {
        tokio::select! {
            signal = signalled.recv() => if signal.is_none() {
                return;
            },
            () = count.closed() => return,
        }
        let now = Instant::now();
        if first.is_none_or(|first| now - first >= DUPLICATE_WINDOW) {
            first.get_or_insert(now);
            count.send_modify(|count| *count += 1);
        }
    }
}

/// Waits until `count` signals were counted.
async fn wait_for_count(mut seen: watch::Receiver<u32>, count: u32) {
    // An error means that the runtime has shut down and dropped the counting task: no more signals
    // are counted.
    if seen.wait_for(|seen| *seen >= count).await.is_err() {
        future::pending::<()>().await;
    }
}

#[cfg(unix)]
struct OsSignals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl OsSignals {
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
struct OsSignals;

#[cfg(not(unix))]
impl OsSignals {
    fn listen() -> Self {
        Self
    }

    async fn next(&mut self) {
        tokio::signal::ctrl_c()
            .await
            .expect("the signal handler can be installed");
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn signals_within_a_second_of_the_first_are_one() {
        let (count, seen) = watch::channel(0);
        let (sender, signalled) = mpsc::channel(1);
        let (first, second) = ShutdownSignals(seen).first_and_second();
        let (first, mut second) = (first, Box::pin(second));
        tokio::spawn(count_signals(signalled, count));
        sender.send(()).await.unwrap();
        first.await;
        for milliseconds in [50, 900] {
            tokio::time::advance(Duration::from_millis(milliseconds)).await;
            sender.send(()).await.unwrap();
            tokio::time::advance(Duration::ZERO).await;
            assert!(second.as_mut().now_or_never().is_none());
        }
        tokio::time::advance(Duration::from_millis(50)).await;
        sender.send(()).await.unwrap();
        second.await;
    }
}
