//! The upkeep of a consumer: renews leases, and maintains the stream and the group.
//!
//! It has a thread, a runtime and a connection apart from the application's, so that a handler that
//! blocks its runtime does not lose its lease.

use std::{sync::Arc, thread, time::Duration};

use redis::Cmd;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    alarm::Alarm,
    health::ClockReading,
    lease::LeaseRenewer,
    maintenance::Maintenance,
    member::{CONSUMER_PREFIX, Member},
    tick::Tick,
};
use crate::{
    error::Error,
    transport::{
        Counters,
        redis::{
            pipeline::{Pipeline, Retry, SILENCE},
            response::Value,
            scripts::{self, Script},
            server::Connector,
        },
    },
};

/// Renews leases and maintains the group, until it is told to end.
pub(super) struct Upkeep {
    pub(super) member: Arc<Member>,
    pub(super) connector: Connector,
    pub(super) counters: Arc<Counters>,
    pub(super) renewer: LeaseRenewer,
    pub(super) maintenance: Maintenance,
    /// Rings when the next delayed message is due.
    pub(super) due: Arc<Alarm>,
    pub(super) ends: Ends,
}

/// The end of the upkeep.
#[derive(Debug, Clone, Default)]
pub(super) struct Ends {
    /// Cancelled when the source is dropped.
    pub(super) closed: CancellationToken,
    /// Cancelled when the consumer is about to leave the group: a command that came after it has left
    /// would create it again.
    pub(super) leaving: CancellationToken,
    /// Cancelled by the upkeep when it has ended.
    pub(super) ended: CancellationToken,
}

impl Upkeep {
    /// Starts it on a thread of its own.
    pub(super) fn start(self) -> Result<(), Error> {
        #[cfg(test)]
        if let Some(runtime) = self.connector.upkeep_runtime() {
            runtime.spawn(self.run());
            return Ok(());
        }
        let failed = |error: std::io::Error| {
            Error::config("the thread that renews leases could not be started").with_source(error)
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        thread::Builder::new()
            .name("campanile-lease".into())
            .spawn(move || runtime.block_on(self.run()))
            .map_err(failed)?;
        Ok(())
    }

    async fn run(mut self) {
        let _ended = self.ends.ended.clone().drop_guard();
        let lease = self.member.lease;
        // A connection that is dead and not closed is replaced while the leases still hold: they are
        // up to a third old, and a tick each passes before the loss is met and made good.
        let silence = (lease / 5).clamp(Duration::from_millis(250), SILENCE);
        let (connector, counters) = (self.connector.clone(), self.counters.clone());
        let server = UpkeepConnection {
            pipeline: Pipeline::with_patience(connector, None, counters, silence),
            patience: (lease / 3).max(Duration::from_millis(100)),
            address: self.connector.address().to_owned(),
        };
        let mut ticks = interval(self.member.interval());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What was due while no worker ran is due now.
        self.due.set(Duration::ZERO);
        loop {
            tokio::select! {
                biased;
                () = self.ends.closed.cancelled() => return,
                () = self.ends.leaving.cancelled() => return,
                _ = ticks.tick() => self.tick(&server).await,
                () = self.due.ring() => self.maintenance.promote(&server).await,
            }
        }
    }

    async fn tick(&mut self, server: &UpkeepConnection) {
        if let Err(error) = self.try_tick(server).await {
            self.renewer.health.failed();
            tracing::warn!(
                error = error.chain(),
                "leases could not be renewed; trying again"
            );
        }
    }

    /// Does one tick. It asks the server even when there is nothing to renew: that is how this consumer
    /// knows that it reaches it.
    async fn try_tick(&mut self, server: &UpkeepConnection) -> Result<(), Error> {
        let due = self.renewer.due();
        let request = self.maintenance.request(due.first());
        let Member { keys, consumer, .. } = &*self.member;
        let gates = [keys.gate("trim"), keys.gate("reap")];
        let keys_of_tick = [
            &*keys.stream,
            &keys.retry,
            &keys.due,
            &keys.bodies,
            &keys.stream_due,
            &keys.stream_bodies,
            &gates[0],
            &gates[1],
        ];
        let asked = Instant::now();
        let answer = server.script(&scripts::TICK, &keys_of_tick, |cmd| {
            cmd.arg(keys.group.as_str())
                .arg(consumer)
                .arg(CONSUMER_PREFIX);
            request.args(cmd);
        });
        let mut tick = Tick::read(answer.await?)?;
        let reading = ClockReading {
            asked,
            answered: Instant::now(),
            on_server: tick.time,
        };
        let lost = std::mem::take(&mut tick.lost);
        self.maintenance.ticked(tick);
        self.renewer.ticked(server, &due, reading, lost).await
    }
}

/// The connection of the upkeep.
pub(super) struct UpkeepConnection {
    pipeline: Pipeline,
    /// An answer that takes longer is no good: the leases are tried again then.
    patience: Duration,
    address: String,
}

impl UpkeepConnection {
    /// Runs a script.
    pub(super) async fn script(
        &self,
        script: &'static Script,
        keys: &[&str],
        args: impl FnOnce(&mut Cmd),
    ) -> Result<Value, Error> {
        self.in_time(self.pipeline.script(script, keys, args, Retry::Never))
            .await
    }

    async fn in_time(
        &self,
        answer: impl Future<Output = Result<Value, Error>>,
    ) -> Result<Value, Error> {
        timeout(self.patience, answer).await.unwrap_or_else(|_| {
            let address = &self.address;
            let error = Error::disconnected(format!("Redis at {address} does not answer in time"));
            Err(match self.pipeline.cause() {
                Some(cause) => error.with_source(cause),
                None => error,
            })
        })
    }
}
