//! The connection of the upkeep, on which every command has a time limit.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use redis::Cmd;
use tokio::time::timeout;

use crate::{
    error::Error,
    transport::{
        Counters,
        redis::{
            pipeline::{Pipeline, Resend, SILENCE},
            response::Value,
            scripts::Script,
            server::Connector,
        },
    },
};

/// The connections of a source's upkeep: one to each primary in use. All consumers of the source
/// share them.
#[derive(Clone, Default)]
pub(super) struct UpkeepPipeline(Arc<OnceLock<Pipeline>>);

impl UpkeepPipeline {
    /// Returns the connection to the primary of a key, or to any primary if `key` is `None`. The
    /// first call makes the pipeline, on the runtime of its caller.
    pub(super) fn connection(
        &self,
        connector: &Connector,
        counters: &Arc<Counters>,
        lease: Duration,
        key: Option<&str>,
    ) -> UpkeepConnection {
        // The limit is short, so that a dead connection is replaced while the leases are valid.
        // When the connection dies, a third of a lease may have passed since the last renewal. One
        // tick may pass until the loss is noticed, and another until the new connection renews the
        // lease.
        let max_silence = (lease / 5).clamp(Duration::from_millis(250), SILENCE);
        let make =
            || Pipeline::with_max_silence(connector.for_any(), None, counters.clone(), max_silence);
        let pipeline = self.0.get_or_init(make);
        let pipeline = match key {
            Some(key) => pipeline.for_key(key),
            None => pipeline.clone(),
        };
        let time_limit = (lease / 3).max(Duration::from_millis(100));
        UpkeepConnection::new(pipeline, time_limit, connector.address())
    }
}

/// Runs the scripts of the upkeep, each with a time limit.
pub(super) struct UpkeepConnection {
    pipeline: Pipeline,
    /// The time limit of a call. The limit can be short, because the upkeep soon makes another
    /// call.
    time_limit: Duration,
    address: String,
}

impl UpkeepConnection {
    pub(super) fn new(pipeline: Pipeline, time_limit: Duration, address: String) -> Self {
        Self {
            pipeline,
            time_limit,
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
        self.with_time_limit(self.pipeline.script(script, keys, args, Resend::Never))
            .await
    }

    /// Runs a command. Fails if the response does not come in time.
    pub(super) async fn command(&self, cmd: Cmd) -> Result<Value, Error> {
        self.with_time_limit(self.pipeline.command(cmd, Resend::Never))
            .await
    }

    async fn with_time_limit(
        &self,
        response: impl Future<Output = Result<Value, Error>>,
    ) -> Result<Value, Error> {
        timeout(self.time_limit, response)
            .await
            .unwrap_or_else(|_| {
                let address = &self.address;
                let error =
                    Error::disconnected(format!("Redis at {address} does not answer in time"));
                Err(match self.pipeline.cause() {
                    Some(cause) => error.with_source(cause),
                    None => error,
                })
            })
    }
}
