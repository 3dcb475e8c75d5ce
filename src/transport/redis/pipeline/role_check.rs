//! Detects that a server was demoted although it still responds.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;

use super::{Outcome, batch::CommandBatch};
use crate::{sync::Completion, transport::redis::server::is_replica};

/// The shortest time between two checks of the server's role.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Sends a `ROLE` every few seconds, together with other commands. Without the check, a demoted
/// server would accept a `PUBLISH` whose message reaches no worker, because workers subscribe at
/// the new primary.
pub(super) struct RoleCheck {
    last_check_at: Instant,
    response: Option<Completion<Outcome>>,
}

impl RoleCheck {
    /// Makes a check that is first due after [`CHECK_INTERVAL`].
    pub(super) fn since_now() -> Self {
        Self {
            last_check_at: Instant::now(),
            response: None,
        }
    }

    /// Returns a batch with a `ROLE`, if a check is due and no earlier check is in flight.
    pub(super) fn due_check(&mut self) -> Option<CommandBatch> {
        let now = Instant::now();
        let is_due = now - self.last_check_at >= CHECK_INTERVAL;
        (is_due && self.response.is_none()).then(|| {
            self.last_check_at = now;
            let (batch, response) = CommandBatch::single(redis::cmd("ROLE"));
            self.response = Some(response);
            batch
        })
    }

    /// Returns `true` if the check has a response, and the response says that the server is a
    /// replica.
    pub(super) fn is_demoted(&mut self) -> bool {
        let response = self.response.as_mut().and_then(FutureExt::now_or_never);
        if response.is_some() {
            self.response = None;
        }
        matches!(response, Some(Ok(role)) if is_replica(&role))
    }
}
