//! The permits of shared limits. `scripts/parking.lua` describes their keys.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::future::join_all;
use redis::Cmd;
use tokio::{
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    time::{MissedTickBehavior, interval},
};

use super::{
    Redis,
    keys::Keys,
    pipeline::Resend,
    response::integer,
    scripts::{self, Script},
};
use crate::{
    error::Error,
    message::PermitRequest,
    transport::{LimitStore, StoreFuture},
};

/// The permits of a limit, on any stream of the handle.
pub(super) struct RedisLimits {
    permits: Arc<Permits>,
    /// The queue of the task that renews and returns permits. Set once a permit was taken.
    keeper: OnceLock<UnboundedSender<Change>>,
}

/// A change of the permits that this process holds.
enum Change {
    Taken(PermitRequest),
    Returned(PermitRequest),
}

/// Calls the scripts of permits.
struct Permits(Redis);

impl RedisLimits {
    pub(super) fn new(redis: Redis) -> Self {
        let keeper = OnceLock::new();
        let permits = Arc::new(Permits(redis));
        Self { permits, keeper }
    }

    /// Queues a change for the task that keeps the permits. If its runtime has ended, the permits end
    /// with their lease.
    fn change(&self, change: Change) {
        let keeper = self.keeper.get_or_init(|| {
            let (queue, changes) = mpsc::unbounded_channel();
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(keep(Arc::clone(&self.permits), changes));
            }
            queue
        });
        let _ = keeper.send(change);
    }
}

impl LimitStore for RedisLimits {
    fn acquire<'a>(&'a self, request: &'a PermitRequest) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let is_taken = self.permits.acquire(request).await?;
            if is_taken {
                self.change(Change::Taken(request.clone()));
            }
            Ok(is_taken)
        })
    }

    fn release(&self, request: &PermitRequest) {
        self.change(Change::Returned(request.clone()));
    }

    fn book<'a>(
        &'a self,
        request: &'a PermitRequest,
        period: Duration,
    ) -> StoreFuture<'a, Duration> {
        Box::pin(self.permits.book(request, period))
    }
}

/// Renews the permits that this process holds, and returns those that it no longer needs. Ends once the
/// limit and its last permit are dropped.
async fn keep(permits: Arc<Permits>, mut changes: UnboundedReceiver<Change>) {
    const AT_ONCE: usize = 256;
    let mut held = HashMap::new();
    let mut renewals = interval(permits.lease() / 3);
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut batch = Vec::new();
    loop {
        let mut returned = Vec::new();
        tokio::select! {
            biased;
            count = changes.recv_many(&mut batch, AT_ONCE) => {
                if count == 0 {
                    return;
                }
                for change in batch.drain(..) {
                    match change {
                        Change::Taken(request) => {
                            held.insert((request.key.clone(), request.holder.clone()), request);
                        }
                        Change::Returned(request) => {
                            held.remove(&(request.key.clone(), request.holder.clone()));
                            returned.push(request);
                        }
                    }
                }
            }
            _ = renewals.tick() => {
                // A permit that has ended meanwhile is taken again, if one is free.
                let renewed = join_all(held.values().map(|request| permits.acquire(request))).await;
                log(renewed.into_iter().map(|it| it.map(drop)));
            }
        }
        log(join_all(returned.iter().map(|request| permits.release(request))).await);
    }
}

/// Logs that permits could not be renewed or returned. They end with their lease.
fn log(results: impl IntoIterator<Item = Result<(), Error>>) {
    let failed = results.into_iter().find_map(Result::err);
    if let Some(error) = failed.filter(|error| !error.is_closed()) {
        let error = error.chain();
        tracing::warn!(error, "permits of a limit could not be renewed or returned");
    }
}

impl Permits {
    fn lease(&self) -> Duration {
        self.0.settings.lease
    }

    async fn acquire(&self, request: &PermitRequest) -> Result<bool, Error> {
        let args = |cmd: &mut Cmd, _: &Keys| {
            cmd.arg(request.permits)
                .arg(self.lease().as_millis() as u64)
                .arg(&request.holder);
        };
        let taken = self.call(&scripts::ACQUIRE, request, Keys::permits, args);
        Ok(taken.await? == 1)
    }

    async fn release(&self, request: &PermitRequest) -> Result<(), Error> {
        let args = |cmd: &mut Cmd, keys: &Keys| {
            cmd.arg(&request.holder)
                .arg(keys.base())
                .arg(keys.group.as_str())
                .arg(&request.key);
        };
        let released = self.call(&scripts::RELEASE, request, Keys::permits, args);
        released.await.map(drop)
    }

    async fn book(&self, request: &PermitRequest, period: Duration) -> Result<Duration, Error> {
        let args = |cmd: &mut Cmd, _: &Keys| {
            cmd.arg(request.permits)
                .arg(period.as_millis() as u64)
                .arg(&request.holder);
        };
        let wait = self.call(&scripts::BOOK, request, Keys::starts, args);
        Ok(Duration::from_millis(wait.await?.unsigned_abs()))
    }

    /// Calls a script with one key of the limit. Sent until answered, since all of these scripts can
    /// be repeated.
    async fn call(
        &self,
        script: &'static Script,
        request: &PermitRequest,
        key: fn(&Keys, &str) -> String,
        args: impl Fn(&mut Cmd, &Keys),
    ) -> Result<i64, Error> {
        let Redis {
            options, settings, ..
        } = &self.0;
        let keys = Keys::new(&options.namespace, &request.stream, &settings.group)?;
        let key = key(&keys, &request.key);
        let pipeline = self.0.shared.pipeline.of(&keys.primary);
        let args = |cmd: &mut Cmd| args(cmd, &keys);
        let answer = pipeline
            .script(script, &[&key], args, Resend::UntilAnswered)
            .await?;
        integer(&answer)
    }
}
