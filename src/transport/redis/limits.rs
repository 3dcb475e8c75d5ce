//! The permits of shared limits. `scripts/parking.lua` describes their keys.

use std::{
    collections::{BTreeMap, HashMap},
    pin::pin,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use futures_util::future::join_all;
use redis::Cmd;
use tokio::{
    sync::{
        Notify,
        mpsc::{self, UnboundedReceiver, UnboundedSender},
    },
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
    message::{Name, PermitRequest},
    sync::lock,
    transport::{LimitStore, StoreFuture},
};

/// The permits of a limit, on any stream of the handle.
pub(super) struct RedisLimits {
    permits: Arc<PermitScripts>,
    uses: Arc<Uses>,
    /// The queue of the task that renews and returns permits. The first change starts the task.
    change_queue: OnceLock<UnboundedSender<UseChange>>,
}

/// A change of the permits that this process holds.
enum UseChange {
    /// A use has taken its permit.
    Taken(PermitRequest),
    /// A use has ended, with or without a permit.
    Ended(PermitRequest),
}

/// The stream, the key and the holder of a permit.
type PermitName = (Name, String, String);

fn name_of(request: &PermitRequest) -> PermitName {
    let (stream, key) = (request.stream.clone(), request.key.clone());
    (stream, key, request.holder.clone())
}

/// The uses of the permits that this process holds or asks for. A delivery may take its permit
/// several times, for example if a layer calls the handler again. The server counts all of these
/// uses as one permit. So the permit is returned only when no use has it or asks for it.
#[derive(Default)]
struct Uses {
    by_permit: Mutex<HashMap<PermitName, UsesOfPermit>>,
    /// Notified when permits were returned to the server.
    returned: Notify,
}

/// The uses of one permit.
#[derive(Default)]
struct UsesOfPermit {
    count: usize,
    /// Set while the permit is being returned to the server.
    is_returning: bool,
}

impl Uses {
    /// Begins a use. Waits while the permit is being returned to the server.
    async fn begin(&self, name: &PermitName) {
        loop {
            // Enabled before the check, so that no notification is missed.
            let mut returned = pin!(self.returned.notified());
            returned.as_mut().enable();
            {
                let mut uses = lock(&self.by_permit);
                let found = uses.entry(name.clone()).or_default();
                if !found.is_returning {
                    found.count += 1;
                    return;
                }
            }
            returned.await;
        }
    }

    /// Ends a use. Returns `true` if it was the last use of the permit. If it was, and `is_held` is
    /// set, marks the permit as being returned to the server.
    fn end(&self, name: &PermitName, is_held: bool) -> bool {
        let mut uses = lock(&self.by_permit);
        let Some(found) = uses.get_mut(name) else {
            return false;
        };
        found.count -= 1;
        let is_last = found.count == 0;
        match is_last && is_held {
            true => found.is_returning = true,
            false if is_last => drop(uses.remove(name)),
            false => {}
        }
        is_last
    }
}

/// A use that asks for its permit. Dropping this value before the permit is taken ends the use.
struct PendingUse<'a> {
    limits: &'a RedisLimits,
    request: &'a PermitRequest,
    is_taken: bool,
}

impl Drop for PendingUse<'_> {
    fn drop(&mut self) {
        if !self.is_taken {
            self.limits.release(self.request);
        }
    }
}

/// The permits that are being returned to the server. Dropping this value allows new uses of these
/// permits.
struct PermitReturn<'a> {
    uses: &'a Uses,
    requests: Vec<PermitRequest>,
}

impl Drop for PermitReturn<'_> {
    fn drop(&mut self) {
        let mut uses = lock(&self.uses.by_permit);
        for request in &self.requests {
            uses.remove(&name_of(request));
        }
        self.uses.returned.notify_waiters();
    }
}

/// Calls the scripts of permits.
struct PermitScripts(Redis);

impl RedisLimits {
    pub(super) fn new(redis: Redis) -> Self {
        let change_queue = OnceLock::new();
        let permits = Arc::new(PermitScripts(redis));
        let uses = Arc::default();
        Self {
            permits,
            uses,
            change_queue,
        }
    }

    /// Queues a change for the task that renews and returns permits. If the runtime of that task
    /// has ended, the permits end with their lease.
    fn change(&self, change: UseChange) {
        let queue = self.change_queue.get_or_init(|| {
            let (queue, changes) = mpsc::unbounded_channel();
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                let (permits, uses) = (Arc::clone(&self.permits), Arc::clone(&self.uses));
                runtime.spawn(keep_permits(permits, uses, changes));
            }
            queue
        });
        let _ = queue.send(change);
    }
}

impl LimitStore for RedisLimits {
    fn acquire<'a>(&'a self, request: &'a PermitRequest) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            self.uses.begin(&name_of(request)).await;
            let mut pending = PendingUse {
                limits: self,
                request,
                is_taken: false,
            };
            pending.is_taken = self.permits.acquire(request).await?;
            if pending.is_taken {
                self.change(UseChange::Taken(request.clone()));
            }
            Ok(pending.is_taken)
        })
    }

    fn release(&self, request: &PermitRequest) {
        self.change(UseChange::Ended(request.clone()));
    }

    fn book<'a>(
        &'a self,
        request: &'a PermitRequest,
        period: Duration,
    ) -> StoreFuture<'a, Duration> {
        Box::pin(self.permits.book(request, period))
    }
}

/// Renews the permits that this process holds, and returns the permits that it no longer needs.
/// Ends once the limit and its last permit are dropped.
async fn keep_permits(
    permits: Arc<PermitScripts>,
    uses: Arc<Uses>,
    mut changes: UnboundedReceiver<UseChange>,
) {
    const MAX_BATCH: usize = 256;
    let mut held = BTreeMap::new();
    let mut renewals = interval(permits.lease() / 3);
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut batch = Vec::new();
    loop {
        let requests = Vec::new();
        // Dropped at the end of each turn, when the permits were returned.
        let mut returned = PermitReturn {
            uses: &uses,
            requests,
        };
        tokio::select! {
            biased;
            count = changes.recv_many(&mut batch, MAX_BATCH) => {
                if count == 0 {
                    return;
                }
                for change in batch.drain(..) {
                    match change {
                        UseChange::Taken(request) => {
                            held.insert(name_of(&request), request);
                        }
                        UseChange::Ended(request) => {
                            let name = name_of(&request);
                            let is_last = uses.end(&name, held.contains_key(&name));
                            if is_last && held.remove(&name).is_some() {
                                returned.requests.push(request);
                            }
                        }
                    }
                }
            }
            _ = renewals.tick() => {
                // The renewal of an expired permit takes a new permit, if one is free.
                let renewed = join_all(held.values().map(|request| permits.acquire(request))).await;
                log_first_error(renewed.into_iter().map(|it| it.map(drop)));
            }
        }
        log_first_error(
            join_all(
                returned
                    .requests
                    .iter()
                    .map(|request| permits.release(request)),
            )
            .await,
        );
    }
}

/// Logs the first error, if there is one. Permits that could not be renewed or returned end with
/// their lease.
fn log_first_error(results: impl IntoIterator<Item = Result<(), Error>>) {
    let failed = results.into_iter().find_map(Result::err);
    if let Some(error) = failed.filter(|error| !error.is_closed()) {
        let error = error.chain();
        tracing::warn!(error, "permits of a limit could not be renewed or returned");
    }
}

impl PermitScripts {
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
        let released = self.call(&scripts::RETURN_PERMIT, request, Keys::permits, args);
        released.await.map(drop)
    }

    async fn book(&self, request: &PermitRequest, period: Duration) -> Result<Duration, Error> {
        let args = |cmd: &mut Cmd, _: &Keys| {
            cmd.arg(request.permits)
                .arg(period.as_millis() as u64)
                .arg(&request.holder);
        };
        let wait = self.call(&scripts::BOOK_TIME, request, Keys::rate_starts, args);
        Ok(Duration::from_millis(wait.await?.unsigned_abs()))
    }

    /// Calls a script with one key, which `key_of` returns for the key of the limit. The call is
    /// sent again until it is answered, since all scripts of permits can be repeated.
    async fn call(
        &self,
        script: &'static Script,
        request: &PermitRequest,
        key_of: fn(&Keys, &str) -> String,
        args: impl Fn(&mut Cmd, &Keys),
    ) -> Result<i64, Error> {
        let Redis {
            options, settings, ..
        } = &self.0;
        let keys = Keys::new(&options.namespace, &request.stream, &settings.group)?;
        let key = key_of(&keys, &request.key);
        let pipeline = self.0.shared.pipeline.for_key(&keys.stream_key);
        let args = |cmd: &mut Cmd| args(cmd, &keys);
        let response = pipeline
            .script(script, &[&key], args, Resend::UntilAnswered)
            .await?;
        integer(&response)
    }
}
