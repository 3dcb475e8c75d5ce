//! The connection of the upkeep, on which every command has a time limit.

use std::time::Duration;

use redis::Cmd;
use tokio::time::timeout;

use crate::{
    error::Error,
    transport::redis::{
        pipeline::{Pipeline, Resend},
        response::Value,
        scripts::Script,
    },
};

/// Runs the scripts of the upkeep, each with a time limit.
pub(super) struct UpkeepConnection {
    pipeline: Pipeline,
    /// The time limit of a call. A tick that fails is followed by the next one soon.
    patience: Duration,
    address: String,
}

impl UpkeepConnection {
    pub(super) fn new(pipeline: Pipeline, patience: Duration, address: String) -> Self {
        Self {
            pipeline,
            patience,
            address,
        }
    }

    /// Runs a script. Fails if the response does not come in time.
    pub(super) async fn script(
        &self,
        script: &'static Script,
        keys: &[&str],
        args: impl FnOnce(&mut Cmd),
    ) -> Result<Value, Error> {
        self.in_time(self.pipeline.script(script, keys, args, Resend::Never))
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
