//! The signals that end a command.

use std::{
    io, process,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

/// The exit code of a command that was interrupted by Ctrl-C.
const INTERRUPTED_EXIT_CODE: i32 = 130;

/// A second signal within this time after the first is a duplicate, and is ignored.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(1);

/// Returns a token that the first Ctrl-C or SIGTERM cancels. A second signal ends the process,
/// unless it arrives within a second of the first.
///
/// A command that has to clean up or to report before its end uses this token. Without it, the
/// first signal ends the process immediately.
pub(crate) fn cancel_on_interrupt() -> io::Result<CancellationToken> {
    let interrupted = CancellationToken::new();
    let mut signals = Signals::listen()?;
    tokio::spawn({
        let interrupted = interrupted.clone();
        async move {
            signals.next().await;
            interrupted.cancel();
            let first = Instant::now();
            while first.elapsed() < DUPLICATE_WINDOW {
                signals.next().await;
            }
            process::exit(INTERRUPTED_EXIT_CODE);
        }
    });
    Ok(interrupted)
}

#[cfg(unix)]
struct Signals([tokio::signal::unix::Signal; 2]);

#[cfg(unix)]
impl Signals {
    fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        ]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
