//! Sends tasks that replicas confirm.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

use tokio::runtime::Handle;

use super::{Stored, decode_accepted};
use crate::{
    error::{BoxError, Error},
    message::{Name, Replicas},
    transport::redis::{
        Redis, error,
        pipeline::{Pipeline, Resend},
        response::{Value, array, bytes, integer, wrong_length},
    },
};

/// The pipeline for tasks that replicas confirm.
pub(in crate::transport::redis) struct ReplicatedSends {
    /// Started by the first task that replicas confirm.
    pipeline: OnceLock<Pipeline>,
    /// The runtime of the handle's other connections.
    runtime: Handle,
    /// The largest number of connected replicas that a primary has reported.
    max_connected: AtomicU32,
}

impl ReplicatedSends {
    pub(in crate::transport::redis) fn new() -> Self {
        Self {
            pipeline: OnceLock::new(),
            runtime: Handle::current(),
            max_connected: AtomicU32::new(0),
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
            let _runtime = shared.replicated_sends.runtime.enter();
            Pipeline::spawn(shared.connector.clone(), None, shared.counters.clone())
        };
        let pipeline = shared.replicated_sends.pipeline.get_or_init(start);
        pipeline.for_key(stream).confirmed_by(replicas)
    }

    /// Returns a future that fails if the primary of this stream has fewer replicas than must
    /// confirm a task. The caller sends the task only after this check. Returns `None` if a primary
    /// has already reported enough replicas.
    pub(super) fn replica_check(
        &self,
        stream: &Name,
        Replicas { count, .. }: Replicas,
    ) -> Option<impl Future<Output = Result<(), Error>> + Send + 'static + use<>> {
        if count
            <= self
                .shared
                .replicated_sends
                .max_connected
                .load(Ordering::Relaxed)
        {
            return None;
        }
        let shared = self.shared.clone();
        let key = self.options.namespace.apply(stream);
        let pipeline = shared.pipeline.for_key(&key);
        Some(async move {
            let mut command = redis::cmd("INFO");
            command.arg("replication");
            let response = pipeline.submit(command, Resend::UntilAnswered).await?;
            // Without permission for `INFO` the check is skipped. The response to `WAIT` still
            // shows how many replicas have confirmed the task.
            let Ok(info) = error::check(response).and_then(bytes) else {
                return Ok(());
            };
            let Some(connected) = replicas_of_primary(&String::from_utf8_lossy(&info)) else {
                return Ok(());
            };
            shared
                .replicated_sends
                .max_connected
                .fetch_max(connected, Ordering::Relaxed);
            if connected >= count {
                return Ok(());
            }
            Err(Error::refused(format!(
                "{count} replicas must confirm the task, and the primary has {connected} \
                 (`connected_slaves` of `INFO replication`); nothing was sent; ask for at most \
                 {connected} replicas, or add replicas"
            )))
        })
    }
}

/// Returns the number of connected replicas in the response to `INFO replication`. `None` if
/// the server is not a primary.
fn replicas_of_primary(info: &str) -> Option<u32> {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name));
    field("role:").filter(|role| *role == "master")?;
    field("connected_slaves:")?.parse().ok()
}

/// Decodes the responses to a task and to the `WAIT` after it. Fails if too few replicas have
/// confirmed the task.
pub(in crate::transport::redis) fn decode_confirmed(
    response: Value,
    required: Replicas,
) -> Result<Stored, Error> {
    let responses = array(error::check(response)?)?;
    let length = responses.len();
    let Ok([stored, confirmation]) = <[Value; 2]>::try_from(responses) else {
        return Err(wrong_length(2, length));
    };
    let stored = decode_accepted(stored)?;
    let Replicas {
        count: wanted,
        within,
    } = required;
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
