//! A worker in the process of the test.

use std::time::Duration;

use campanile::{Error, Servable, serve, transport::Transport};
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};

/// A running `serve`. Dropping it simulates the crash of a worker: nothing is settled or released.
#[derive(Debug)]
pub(crate) struct Worker {
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<Result<(), Error>>,
}

impl Worker {
    pub(crate) fn start(transport: impl Transport, app: impl Servable) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let served = serve(transport, app).with_graceful_shutdown(async {
            // A dropped sender means a simulated crash, not a shutdown.
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
        });
        Self {
            stop: Some(stop),
            served: tokio::spawn(served.into_future()),
        }
    }

    /// Shuts the worker down gracefully.
    pub(crate) async fn stop(mut self) -> Result<(), Error> {
        if let Some(stop) = self.stop.take() {
            // Fails if the worker has ended by itself. Its result then has the reason.
            let _ = stop.send(());
        }
        self.ended().await
    }

    /// Waits until the worker ends.
    pub(crate) async fn ended(mut self) -> Result<(), Error> {
        timeout(Duration::from_secs(60), &mut self.served)
            .await
            .expect("the worker did not end in time")
            .expect("the worker panicked")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.served.abort();
    }
}
