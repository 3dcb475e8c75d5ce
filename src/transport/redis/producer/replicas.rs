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
        response::{Value, array, bytes, integer, miscounted},
    },
};

/// The connections for tasks that replicas confirm: one to each server, made for the first such
/// task.
pub(in crate::transport::redis) struct ReplicatedSends {
    /// Started by the first such task.
    pipeline: OnceLock<Pipeline>,
    /// The runtime of the handle's other connections.
    runtime: Handle,
    /// The largest number of replicas that a primary has had.
    known: AtomicU32,
}

impl ReplicatedSends {
    pub(in crate::transport::redis) fn new() -> Self {
        Self {
            pipeline: OnceLock::new(),
            runtime: Handle::current(),
            known: AtomicU32::new(0),
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

    /// Checks that the primary of this stream has as many replicas as must confirm a task, so that a
    /// number that it never had fails before anything is sent. `None` if a primary has had as many.
    pub(super) fn replica_check(
        &self,
        stream: &Name,
        Replicas { count, .. }: Replicas,
    ) -> Option<impl Future<Output = Result<(), Error>> + Send + 'static + use<>> {
        if count <= self.shared.replicated.known.load(Ordering::Relaxed) {
            return None;
        }
        let shared = self.shared.clone();
        let key = self.options.namespace.apply(stream);
        let pipeline = shared.pipeline.for_key(&key);
        Some(async move {
            let mut info = redis::cmd("INFO");
            info.arg("replication");
            let response = pipeline.submit(info, Resend::UntilAnswered).await?;
            // A user without the right to `INFO` only gets the response to `WAIT`.
            let Ok(info) = error::check(response).and_then(bytes) else {
                return Ok(());
            };
            let Some(connected) = replicas_of_primary(&String::from_utf8_lossy(&info)) else {
                return Ok(());
            };
            shared
                .replicated
                .known
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

/// Returns the number of connected replicas in the response to `INFO replication`. `None` for a
/// server that is no primary.
fn replicas_of_primary(info: &str) -> Option<u32> {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name));
    field("role:").filter(|role| *role == "master")?;
    field("connected_slaves:")?.parse().ok()
}

/// Decodes the response to a task that replicas confirm. Fails if too few replicas have confirmed
/// the task.
pub(in crate::transport::redis) fn decode_confirmed(
    response: Value,
    asked: Replicas,
) -> Result<Stored, Error> {
    let responses = array(error::check(response)?)?;
    let count = responses.len();
    let Ok([stored, confirmation]) = <[Value; 2]>::try_from(responses) else {
        return Err(miscounted(2, count));
    };
    let stored = decode_accepted(stored)?;
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
