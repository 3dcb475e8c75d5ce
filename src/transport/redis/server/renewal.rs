//! Renews the credentials of a connection before they expire.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use redis::{Cmd, RedisResult};
use tokio::time::{Sleep, sleep};

use super::{
    BACKOFF,
    credentials::{Credentials, ProviderCaller},
    outage::LogLimit,
};
use crate::{error::Error, transport::redis::error};

/// The maximum time between the renewal of credentials and their expiry.
const MAX_MARGIN: Duration = Duration::from_secs(5 * 60);
/// The minimum time between two renewals.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// Renews the credentials of one connection. The connection polls for an `AUTH` command, sends it,
/// and passes the response to [`answered`](Self::answered). The login with the old credentials
/// stays valid until then.
pub(in crate::transport::redis) struct Renewal {
    provider: Arc<ProviderCaller>,
    address: String,
    state: RenewalState,
    failures: u32,
    warning_limit: LogLimit,
}

/// The state of a renewal.
enum RenewalState {
    /// Waits until the next renewal is due, or the next attempt after a failure.
    Waiting(Pin<Box<Sleep>>),
    /// Waits for the provider.
    Asking(Pin<Box<dyn Future<Output = Result<Credentials, Error>> + Send>>),
    /// Waits for the response to the `AUTH` command. Contains the lifetime of the new credentials.
    Sent(Option<Duration>),
    /// The credentials do not expire, so no renewal follows.
    Ended,
}

impl RenewalState {
    fn after(lifetime: Option<Duration>) -> Self {
        match lifetime {
            Some(lifetime) => Self::Waiting(Box::pin(sleep(renewal_age(lifetime)))),
            None => Self::Ended,
        }
    }
}

/// Returns the age at which credentials with this lifetime are renewed: a quarter of the lifetime
/// before they expire, but at most [`MAX_MARGIN`] before. The age is at least [`MIN_INTERVAL`].
fn renewal_age(lifetime: Duration) -> Duration {
    let margin = (lifetime / 4).min(MAX_MARGIN);
    (lifetime - margin).max(MIN_INTERVAL)
}

impl Renewal {
    /// Creates the renewal for a connection whose login has this lifetime.
    pub(super) fn new(
        provider: &Arc<ProviderCaller>,
        address: String,
        lifetime: Option<Duration>,
    ) -> Self {
        Self {
            provider: provider.clone(),
            address,
            state: RenewalState::after(lifetime),
            failures: 0,
            warning_limit: LogLimit::default(),
        }
    }

    /// Creates the renewal for a connection to a simulated server.
    #[cfg(test)]
    pub(in crate::transport::redis) fn of(
        provider: impl super::CredentialsProvider,
        lifetime: Duration,
    ) -> Self {
        let provider = Arc::new(ProviderCaller::new(Arc::new(provider)));
        Self::new(&provider, "here".into(), Some(lifetime))
    }

    /// Polls for the `AUTH` command with new credentials. Pending until the next renewal is due and
    /// the provider has returned credentials.
    pub(in crate::transport::redis) fn poll_command(&mut self, cx: &mut Context<'_>) -> Poll<Cmd> {
        loop {
            match &mut self.state {
                RenewalState::Waiting(until) => {
                    ready!(until.as_mut().poll(cx));
                    let (provider, address) = (self.provider.clone(), self.address.clone());
                    let asking = async move { provider.ask(&address).await };
                    self.state = RenewalState::Asking(Box::pin(asking));
                }
                RenewalState::Asking(request) => match ready!(request.as_mut().poll(cx)) {
                    Ok(credentials) => {
                        self.state = RenewalState::Sent(credentials.lifetime());
                        return Poll::Ready(credentials.auth_command());
                    }
                    Err(error) => self.failed(&error),
                },
                // `answered` sets the state that follows `Sent`.
                RenewalState::Sent(_) | RenewalState::Ended => return Poll::Pending,
            }
        }
    }

    /// Handles the response to the `AUTH` command. After a refusal the old login stays valid, and
    /// another attempt follows.
    pub(in crate::transport::redis) fn handle_response<T>(&mut self, response: RedisResult<T>) {
        let RenewalState::Sent(lifetime) = self.state else {
            return;
        };
        match response {
            Ok(_) => {
                self.failures = 0;
                self.state = RenewalState::after(lifetime);
            }
            Err(refusal) => self.failed(&error::login_refused(&self.address).with_source(refusal)),
        }
    }

    fn failed(&mut self, error: &Error) {
        self.failures = self.failures.saturating_add(1);
        if let Some(withheld) = self.warning_limit.admit() {
            tracing::warn!(
                address = self.address,
                error = error.chain(),
                withheld,
                "cannot renew the credentials of a connection to Redis; trying again"
            );
        }
        self.state = RenewalState::Waiting(Box::pin(sleep(BACKOFF.after(self.failures))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_renewed_well_before_they_expire_and_not_all_the_time() {
        let seconds = Duration::from_secs;
        for (lifetime, expected) in [(0, 1), (1, 1), (60, 45), (900, 675), (43_200, 42_900)] {
            assert_eq!(
                renewal_age(seconds(lifetime)),
                seconds(expected),
                "{lifetime}"
            );
        }
        // The longest lifetime does not overflow.
        assert!(renewal_age(Duration::MAX) > seconds(u64::MAX / 2));
    }
}
