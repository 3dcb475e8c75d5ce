//! The signals by which a process is told to end.

use std::time::Duration;

use futures_util::future;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

/// A signal this soon after the first one is a repetition of it: a terminal signals a whole group of
/// processes, and a process manager among them passes the signal on.
const SAME: Duration = Duration::from_secs(1);

/// The number of signals to end, where repetitions of the first are not counted.
pub(super) struct Signals(watch::Receiver<u32>);

impl Signals {
    #[track_caller]
    pub(super) fn listen() -> Self {
        let (count, seen) = watch::channel(0);
        let mut signals = Platform::listen();
        let (told, signalled) = mpsc::channel(1);
        let counting = counting(signalled, count);
        tokio::spawn(async move {
            let forwarding = async {
                loop {
                    signals.next().await;
                    // One that waits to be counted stands for those that come meanwhile.
                    let _ = told.try_send(());
                }
            };
            tokio::select! {
                () = counting => {}
                () = forwarding => {}
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
/// Counts signals, until nobody looks at the count any more.
async fn counting(mut signalled: mpsc::Receiver<()>, count: watch::Sender<u32>) {
    let mut first = None;
    loop {
        tokio::select! {
            signal = signalled.recv() => if signal.is_none() {
                return;
            },
            () = count.closed() => return,
        }
        let now = Instant::now();
        if first.is_none_or(|first| now - first >= SAME) {
            first.get_or_insert(now);
            count.send_modify(|count| *count += 1);
        }
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn signals_within_a_second_of_the_first_are_one() {
        let (count, seen) = watch::channel(0);
        let (told, signalled) = mpsc::channel(1);
        let (first, second) = Signals(seen).first_and_second();
        let (first, mut second) = (first, Box::pin(second));
        tokio::spawn(counting(signalled, count));
        told.send(()).await.unwrap();
        first.await;
        for milliseconds in [50, 900] {
            tokio::time::advance(Duration::from_millis(milliseconds)).await;
            told.send(()).await.unwrap();
            tokio::time::advance(Duration::ZERO).await;
            assert!(second.as_mut().now_or_never().is_none());
        }
        tokio::time::advance(Duration::from_millis(50)).await;
        told.send(()).await.unwrap();
        second.await;
    }
}
