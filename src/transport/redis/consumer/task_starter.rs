//! Records the start of tasks whose status is recorded, and drops cancelled tasks.

use std::sync::Arc;

use futures_util::future::join_all;
use redis::Cmd;

use super::{member::Member, settle::RedisSettler, settlement::Unsettled};
use crate::{
    error::Error,
    transport::{
        Delivery,
        redis::{
            pipeline::{Pipeline, Resend},
            response::integer,
            scripts,
        },
    },
};

/// Records the start of the tasks of one consumer.
pub(super) struct TaskStarter {
    pub(super) member: Arc<Member>,
    pub(super) pipeline: Pipeline,
}

impl TaskStarter {
    /// Records the start of tasks whose status is recorded. Returns the deliveries that may run. A
    /// delivery may not run if its task was cancelled, or if it is no longer pending for this
    /// consumer. If the start of a task cannot be recorded, its delivery may run.
    pub(super) async fn record_starts(
        &self,
        deliveries: Vec<Delivery<RedisSettler>>,
    ) -> Vec<Delivery<RedisSettler>> {
        let mut recorded = deliveries.iter().filter_map(|it| it.settle.recorded_task());
        if recorded.next().is_none() {
            return deliveries;
        }
        let started = join_all(deliveries.into_iter().map(async |delivery| {
            let Some(unsettled) = delivery.settle.recorded_task() else {
                return Some(delivery);
            };
            let may_run = match self.record_start(unsettled).await {
                Ok(may_run) => may_run,
                Err(error) => {
                    let id = unsettled.task_id();
                    tracing::warn!(
                        id,
                        error = error.chain(),
                        "the start of a task could not be recorded"
                    );
                    true
                }
            };
            may_run.then_some(delivery)
        }));
        started.await.into_iter().flatten().collect()
    }

    /// Records the start of a task. Returns `false` if the task must not run (see `start.lua`).
    async fn record_start(&self, delivery: &Unsettled) -> Result<bool, Error> {
        let stream = &delivery.stream;
        let keys = [
            stream.key_of(delivery.guard.delivery_key.0),
            &stream.keys.dead,
        ];
        let args = |cmd: &mut Cmd| {
            self.member
                .add_fence_args(cmd, delivery.guard.delivery_key)
                .arg(delivery.task_id())
                .arg(delivery.attempt);
        };
        let started = self
            .pipeline
            .script(&scripts::START, &keys, args, Resend::UntilAnswered);
        Ok(integer(&started.await?)? == 1)
    }
}
