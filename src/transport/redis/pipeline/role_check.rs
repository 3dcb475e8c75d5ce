//! Notices that a server was demoted although it answers.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;

use super::{Outcome, batch::CommandBatch};
use crate::{sync::Completion, transport::redis::server::is_replica};

/// The shortest time between two checks of the server's role.
const ROLE_CHECK: Duration = Duration::from_secs(5);

/// Asks for the role of the server now and then, together with other commands. A demoted server
/// still accepts a `PUBLISH`, which reaches nobody.
pub(super) struct RoleCheck {
    last: Instant,
    answer: Option<Completion<Outcome>>,
}

impl RoleCheck {
    /// The first check is due in [`ROLE_CHECK`].
    pub(super) fn since_now() -> Self {
        Self {
            last: Instant::now(),
            answer: None,
        }
    }

    /// The command that asks for the role, if a check is due.
    pub(super) fn question(&mut self) -> Option<CommandBatch> {
        let now = Instant::now();
        let is_due = now - self.last >= ROLE_CHECK;
        (is_due && self.answer.is_none()).then(|| {
            self.last = now;
            let (batch, answer) = CommandBatch::of(redis::cmd("ROLE"));
            self.answer = Some(answer);
            batch
        })
    }

    /// Returns `true` if the response is that of a replica.
    pub(super) fn is_demoted(&mut self) -> bool {
        let answer = self.answer.as_mut().and_then(FutureExt::now_or_never);
        if answer.is_some() {
            self.answer = None;
        }
        matches!(answer, Some(Ok(role)) if is_replica(&role))
    }
}
