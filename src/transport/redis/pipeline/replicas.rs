//! Waits for replicas to confirm commands.
//!
//! If replicas must confirm commands of a pipeline, the pipeline ends in one `WAIT`. The `WAIT`
//! covers all earlier writes of its connection, and blocks the connection until its response. So
//! the connection carries no other commands, and sends its next pipeline after the response. If a
//! command is sent again, another `WAIT` follows it.
//! <https://redis.io/docs/latest/commands/wait/>

use std::time::Duration;

use super::batch::CommandBatch;
use crate::{message::Replicas, transport::redis::response::Value};

impl Replicas {
    /// Returns a requirement that covers `self` and `other`.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            count: self.count.max(other.count),
            within: self.within.max(other.within),
        }
    }
}

/// Returns a requirement that covers the requirements of all batches; `None` if no batch has one.
pub(super) fn required_by(batches: &[CommandBatch]) -> Option<Replicas> {
    let requirements = batches.iter().filter_map(|batch| batch.replicas);
    requirements.reduce(Replicas::and)
}

/// Makes a batch of one `WAIT`.
pub(super) fn wait_batch(Replicas { count, within }: Replicas) -> CommandBatch {
    // Rounded up, since zero would mean no limit.
    let milliseconds = (within + Duration::from_nanos(999_999)).as_millis();
    let mut wait = redis::cmd("WAIT");
    wait.arg(count)
        .arg(u64::try_from(milliseconds).unwrap_or(u64::MAX));
    // The completion is not needed, since the response is read from the pipeline.
    CommandBatch::single(wait).0
}

/// Pairs each response, except errors, with the response to `WAIT`.
pub(super) fn attach(confirmation: &Value, responses: &mut [Value]) {
    for response in responses {
        if !matches!(response, Value::ServerError(_)) {
            *response = Value::Array(vec![std::mem::take(response), confirmation.clone()]);
        }
    }
}
