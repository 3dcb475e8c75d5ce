//! A worker in the test's own process.

use std::time::Duration;

use campanile::{Error, IntoService, serve, transport::Transport};
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};

/// A running `serve`. Dropping it kills the worker, as far as one process can: nothing is settled
/// or given back.
#[derive(Debug)]
pub(crate) struct Worker {
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<Result<(), Error>>,
}

impl Worker {
    pub(crate) fn start(transport: impl Transport, app: impl IntoService + Send + 'static) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let served = serve(transport, app).with_graceful_shutdown(async {
            // A sender that is dropped is no signal: the worker is about to be killed.
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
        });
        Self {
            stop: Some(stop),
            served: tokio::spawn(served.into_future()),
        }
    }

    /// Shuts it down gracefully.
    pub(crate) async fn stop(mut self) -> Result<(), Error> {
        if let Some(stop) = self.stop.take() {
            // It may have ended by itself already; then its result says why.
            let _ = stop.send(());
        }
        self.ended().await
    }

    /// Waits until it ends.
    pub(crate) async fn ended(mut self) -> Result<(), Error> {
        timeout(Duration::from_secs(60), &mut self.served)
            .await
            .expect("the worker does not end")
            .expect("the worker panicked")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.served.abort();
    }
}
