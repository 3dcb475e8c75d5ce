//! The workers of a group: their announcements, their statistics, and orders to single workers.

mod histogram;
mod history;
mod info;
mod json;
mod monitor;
mod orders;
mod stats;

use std::{fmt, sync::Arc};

pub use self::{
    histogram::Quantiles,
    history::Minute,
    info::{FollowedOrder, WorkerInfo, WorkerState},
    monitor::WorkerMonitor,
    orders::WorkerOrder,
    stats::{Answers, LastError, Pong, RouteStats, Running, WorkerDescription, WorkerStats},
};
pub(crate) use self::{
    history::{MINUTES, MinuteCounts},
    info::host_name,
};
use super::StoreFuture;
use crate::error::Error;

/// The workers of a stream's group, in any process. Returned by the `workers` method of a
/// transport's handle.
///
/// Each worker announces itself when it starts, and removes the announcement when it ends. If a
/// worker dies, another worker of the group removes the announcement, about a minute after the last
/// sign of life. A worker that serves several streams is listed for each of them. A worker that
/// handles only events, or that owns no partition now, is not listed.
///
/// A worker sends its statistics only when it is asked, and at most once a second, no matter how
/// many processes ask.
///
/// ```
/// use campanile::{Client, Router, serve, transport::memory::Memory};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let memory = Memory::new();
/// let app = Router::new().task("mail.send", async |_: String| {});
/// let worker = serve(memory.clone(), app).service("mail", env!("CARGO_PKG_VERSION"));
/// let worker = tokio::spawn(worker.into_future());
/// # tokio::task::yield_now().await;
///
/// let workers = memory.workers();
/// assert_eq!(workers.list().await?[0].service, "mail");
/// let stats = workers.stats().await?;
/// assert_eq!(stats.answers[0].in_flight, 0);
/// # worker.abort();
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Workers(Arc<dyn WorkerStore>);

impl Workers {
    /// Creates a handle of a store. For transports.
    pub fn new(store: impl WorkerStore + 'static) -> Self {
        Self(Arc::new(store))
    }

    /// Returns the workers, sorted by service and name. Reads only their announcements: no worker
    /// is asked.
    ///
    /// # Errors
    /// If the store cannot be reached.
    pub async fn list(&self) -> Result<Vec<WorkerInfo>, Error> {
        let mut workers = self.0.list().await?;
        workers.sort_by(|a, b| (&a.service, &a.worker).cmp(&(&b.service, &b.worker)));
        Ok(workers)
    }

    /// Asks all live workers for their statistics, and waits for the answers, for 2.5 s at most.
    ///
    /// # Errors
    /// If the store cannot be reached.
    pub async fn stats(&self) -> Result<Answers<WorkerStats>, Error> {
        let mut found = self.0.stats().await?;
        found.answers.sort_by(|a, b| a.worker.cmp(&b.worker));
        found.silent.sort();
        Ok(found)
    }

    /// Asks all live workers for the descriptions of their routes, and waits for the answers, for
    /// 2.5 s at most. A worker whose version does not know this question counts as silent.
    ///
    /// # Errors
    /// If the store cannot be reached.
    pub async fn describe(&self) -> Result<Answers<WorkerDescription>, Error> {
        let mut found = self.0.describe().await?;
        found.answers.sort_by(|a, b| {
            let by = |it: &WorkerDescription| (it.service.clone(), it.version.clone());
            (by(a), &a.worker).cmp(&(by(b), &b.worker))
        });
        found.silent.sort();
        Ok(found)
    }

    /// Asks all live workers for a sign of life, and waits for the answers, for 2.5 s at most.
    ///
    /// # Errors
    /// If the store cannot be reached.
    pub async fn ping(&self) -> Result<Answers<Pong>, Error> {
        let mut found = self.0.ping().await?;
        found.answers.sort_by(|a, b| a.worker.cmp(&b.worker));
        found.silent.sort();
        Ok(found)
    }

    /// Gives an order to the worker with this [name](WorkerInfo::worker). The worker follows the
    /// order within about a second. It logs the order with `by`, the name of the operator, and
    /// shows both in [`WorkerInfo::orders`]. Returns `false` if there is no live worker of this
    /// name.
    ///
    /// An order ends with the worker: after a restart of its process, the configured settings
    /// apply.
    ///
    /// # Errors
    /// If `by` is empty or longer than 200 bytes, the order is invalid, or the store cannot be
    /// reached.
    pub async fn order(&self, worker: &str, order: WorkerOrder, by: &str) -> Result<bool, Error> {
        order.check(by)?;
        self.0.order(worker, &order, by).await
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers").finish_non_exhaustive()
    }
}

/// The workers of a group. Implemented by transports, for [`Workers`].
pub trait WorkerStore: Send + Sync {
    /// See [`Workers::list`].
    fn list(&self) -> StoreFuture<'_, Vec<WorkerInfo>>;

    /// See [`Workers::stats`].
    fn stats(&self) -> StoreFuture<'_, Answers<WorkerStats>>;

    /// See [`Workers::describe`].
    fn describe(&self) -> StoreFuture<'_, Answers<WorkerDescription>>;

    /// See [`Workers::ping`].
    fn ping(&self) -> StoreFuture<'_, Answers<Pong>>;

    /// See [`Workers::order`]. [`Workers`] has checked the order already.
    fn order<'a>(
        &'a self,
        worker: &'a str,
        order: &'a WorkerOrder,
        by: &'a str,
    ) -> StoreFuture<'a, bool>;
}
