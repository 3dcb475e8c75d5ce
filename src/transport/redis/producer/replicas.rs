//! Sends tasks that replicas confirm.

use std::sync::OnceLock;

use tokio::runtime::Handle;

use super::{Stored, accepted};
use crate::{
    error::{BoxError, Error},
    message::Replicas,
    transport::redis::{
        Redis, error,
        pipeline::Pipeline,
        response::{Value, array, integer, miscounted},
    },
};

/// The connections for tasks that replicas confirm: one to each server, made for the first such
/// task.
pub(in crate::transport::redis) struct ReplicatedSends {
    /// Started by the first such task.
    pipeline: OnceLock<Pipeline>,
    /// The runtime of the handle's other connections.
    runtime: Handle,
}

impl ReplicatedSends {
    pub(in crate::transport::redis) fn new() -> Self {
        Self {
            pipeline: OnceLock::new(),
            runtime: Handle::current(),
        }
    }
}

impl Redis {
    /// Returns the pipeline for a task on this stream. Tasks that replicas confirm have a separate
    /// pipeline.
    pub(super) fn task_pipeline(&self, stream: &str, replicas: Option<Replicas>) -> Pipeline {
        let shared = &self.shared;
        let Some(replicas) = replicas else {
            return shared.pipeline.for_key(stream);
        };
        let start = || {
            let _runtime = shared.replicated.runtime.enter();
            Pipeline::spawn(shared.connector.clone(), None, shared.counters.clone())
        };
        let pipeline = shared.replicated.pipeline.get_or_init(start);
        pipeline.for_key(stream).confirmed_by(replicas)
    }
}

/// Decodes the response to a task that replicas confirm. Fails if too few replicas have confirmed
/// the task.
pub(in crate::transport::redis) fn confirmed(
    response: Value,
    asked: Replicas,
) -> Result<Stored, Error> {
    let responses = array(error::check(response)?)?;
    let count = responses.len();
    let Ok([stored, confirmation]) = <[Value; 2]>::try_from(responses) else {
        return Err(miscounted(2, count));
    };
    let stored = accepted(stored)?;
    let Replicas {
        count: wanted,
        within,
    } = asked;
    let (found, source) = match confirmation {
        Value::Nil => (
            "the connection was lost before its replicas answered".to_owned(),
            None,
        ),
        confirmation => match error::check(confirmation).and_then(|it| integer(&it)) {
            Ok(count) if count >= i64::from(wanted) => return Ok(stored),
            Ok(count) => (
                format!("{count} of {wanted} replicas have confirmed it within {within:?}"),
                None,
            ),
            Err(error) => (
                "the server has not asked its replicas".to_owned(),
                Some(BoxError::from(error)),
            ),
        },
    };
    let text = format!(
        "the task is stored, but {found}; send it again only with its idempotency key; `INFO \
         replication` shows how many replicas there are, which is the most that may be asked for, \
         and how far they lag"
    );
    Err(Error::unreplicated_with_source(stored.id, text, source))
}
