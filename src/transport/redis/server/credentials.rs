//! The user and the password of connections: fixed, or supplied by the application for each
//! connection.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use redis::{Cmd, RedisConnectionInfo};
use tokio::{runtime::Handle, time::timeout};

use crate::{
    error::{BoxError, Error},
    transport::redis::error,
};

/// The time limit for one call of a provider.
const PROVIDER_TIMEOUT: Duration = Duration::from_secs(5);

/// A user, and a password or a token. `Debug` shows only the lifetime.
///
/// ```
/// use campanile::transport::redis::Credentials;
/// use std::time::Duration;
///
/// let credentials = Credentials::new("worker", "a-token").expires_in(Duration::from_secs(900));
/// ```
#[derive(Clone)]
pub struct Credentials {
    /// The user, or `None` for the default user.
    user: Option<String>,
    password: String,
    /// The time until the credentials expire. `None` if they do not expire.
    lifetime: Option<Duration>,
}

impl Credentials {
    /// Creates credentials that do not expire. An empty `user` is the default user.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            user: Some(user.into()).filter(|user| !user.is_empty()),
            password: password.into(),
            lifetime: None,
        }
    }

    /// Sets the time from now until the server no longer accepts the credentials. Connections log
    /// in with new credentials before then.
    pub fn expires_in(mut self, lifetime: Duration) -> Self {
        self.lifetime = Some(lifetime);
        self
    }

    pub(super) fn lifetime(&self) -> Option<Duration> {
        self.lifetime
    }

    /// Returns the `AUTH` command with these credentials.
    pub(super) fn auth_command(&self) -> Cmd {
        let mut auth = redis::cmd("AUTH");
        auth.arg(self.user.as_deref()).arg(&self.password);
        auth
    }

    /// Returns the credentials in a URL, or `None` if the URL has no password.
    fn of_url(settings: &RedisConnectionInfo) -> Option<Self> {
        let user = settings.username().unwrap_or_default();
        Some(Self::new(user, settings.password()?))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

/// The future that [`CredentialsProvider::credentials`] returns.
pub type CredentialsFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Credentials, BoxError>> + Send + 'a>>;

/// Supplies the current user and password to [`RedisBuilder::credentials`]. Closures without
/// arguments that return a future implement this trait.
///
/// Each new connection calls the provider, and calls it again before the credentials expire. A
/// handle has several connections. If a call takes long or costs money, the provider should cache
/// the credentials.
///
/// [`RedisBuilder::credentials`]: super::RedisBuilder::credentials
pub trait CredentialsProvider: Send + Sync + 'static {
    /// Returns credentials that are valid now. The future runs on the runtime on which the handle
    /// was connected. It must not block the thread.
    ///
    /// # Errors
    /// Any error of the application. The error must not contain a password: the error is logged,
    /// and commands that wait for the connection fail with this error as the source. After an
    /// error, a panic, or 5 s without a result, an open handle calls the provider again, with a
    /// back-off.
    fn credentials(&self) -> CredentialsFuture<'_>;
}

impl<F, T> CredentialsProvider for F
where
    F: Fn() -> T + Send + Sync + 'static,
    T: Future<Output = Result<Credentials, BoxError>> + Send + 'static,
{
    fn credentials(&self) -> CredentialsFuture<'_> {
        Box::pin(self())
    }
}

/// Supplies the credentials of new connections.
pub(super) enum CredentialsSource {
    /// The same credentials for all connections. If `None`, the connections do not log in.
    Fixed(Option<Credentials>),
    /// Asks the application's provider for each connection.
    Provider(Arc<ProviderCaller>),
}

impl CredentialsSource {
    pub(super) fn new(
        settings: &RedisConnectionInfo,
        provider: Option<Arc<dyn CredentialsProvider>>,
    ) -> Result<Self, Error> {
        let Some(provider) = provider else {
            return Ok(Self::Fixed(Credentials::of_url(settings)));
        };
        if settings.username().is_some() || settings.password().is_some() {
            return Err(Error::config(
                "the user and the password are in the URL, and `credentials` provides them too; \
                 leave them out of the URL",
            ));
        }
        Ok(Self::Provider(Arc::new(ProviderCaller::new(provider))))
    }

    /// Returns the credentials for a new connection to the server at `address`.
    pub(super) async fn current(&self, address: &str) -> Result<Option<Credentials>, Error> {
        match self {
            Self::Fixed(credentials) => Ok(credentials.clone()),
            Self::Provider(provider) => provider.ask(address).await.map(Some),
        }
    }

    pub(super) fn provider(&self) -> Option<&Arc<ProviderCaller>> {
        match self {
            Self::Fixed(_) => None,
            Self::Provider(provider) => Some(provider),
        }
    }
}

/// Calls a provider on the application's runtime, even for connections of the upkeep. The upkeep
/// renews leases on a separate runtime. A provider that blocks a thread of that runtime would delay
/// the renewals.
pub(super) struct ProviderCaller {
    provider: Arc<dyn CredentialsProvider>,
    /// The runtime on which the first connection was made.
    runtime: OnceLock<Handle>,
}

impl ProviderCaller {
    pub(super) fn new(provider: Arc<dyn CredentialsProvider>) -> Self {
        Self {
            provider,
            runtime: OnceLock::new(),
        }
    }

    /// Calls the provider, with a time limit. Errors name the server at `address`.
    pub(super) async fn ask(&self, address: &str) -> Result<Credentials, Error> {
        let provider = self.provider.clone();
        let asking = async move { timeout(PROVIDER_TIMEOUT, provider.credentials()).await };
        let runtime = self.runtime.get_or_init(Handle::current);
        match runtime.spawn(asking).await {
            Ok(Ok(Ok(credentials))) => Ok(credentials),
            Ok(Ok(Err(cause))) => Err(error::without_credentials(address, cause)),
            Ok(Err(_)) => {
                let cause = format!("no answer within {PROVIDER_TIMEOUT:?}");
                Err(error::without_credentials(address, cause.into()))
            }
            Err(ended) if ended.is_panic() => {
                let cause = "the provider has panicked".into();
                Err(error::without_credentials(address, cause))
            }
            Err(_) => Err(error::runtime_ended()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(credentials: &Credentials) -> String {
        let packed = credentials.auth_command().get_packed_command();
        String::from_utf8(packed).unwrap().replace("\r\n", " ")
    }

    #[test]
    fn an_empty_user_is_the_default_one() {
        assert_eq!(sent(&Credentials::new("", "pw")), "*2 $4 AUTH $2 pw ");
        let named = Credentials::new("me", "pw");
        assert_eq!(sent(&named), "*3 $4 AUTH $2 me $2 pw ");
    }

    #[test]
    fn debug_shows_neither_user_nor_password() {
        let credentials = Credentials::new("hunter1", "hunter2").expires_in(Duration::ZERO);
        let shown = format!("{credentials:?}");
        assert!(!shown.contains("hunter"), "{shown}");
    }

    fn provided(provider: impl CredentialsProvider) -> ProviderCaller {
        ProviderCaller::new(Arc::new(provider))
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_provider_is_a_temporary_error() {
        let fails = provided(|| async { Err("the vault is sealed".into()) });
        let hangs = provided(std::future::pending);
        let panics = provided(|| async { panic!("a bug") });
        for (provider, cause) in [
            (fails, "the vault is sealed"),
            (hangs, "no answer within 5s"),
            (panics, "has panicked"),
        ] {
            let error = provider.ask("here").await.unwrap_err();
            assert!(error::is_temporary(&error), "{error:?}");
            let text = error.chain();
            assert!(text.contains(cause) && text.contains("here"), "{text}");
        }
    }

    #[test]
    fn a_provider_is_asked_on_the_runtime_of_the_first_connection() {
        let runtime = || {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap()
        };
        let (first, second) = (runtime(), runtime());
        let provider = provided(|| async {
            let runtime = Handle::current().id().to_string();
            Ok(Credentials::new(runtime, ""))
        });
        let expected = Some(first.handle().id().to_string());
        for runtime in [&first, &second] {
            let asked = runtime.block_on(provider.ask("here")).unwrap();
            assert_eq!(asked.user, expected);
        }
    }
}
