//! The user and the password of connections: fixed, or asked of the application for each
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

/// The longest wait for a provider's answer.
const PROVIDER_TIMEOUT: Duration = Duration::from_secs(5);

/// A user and a password, or a token in its place. `Debug` shows neither.
///
/// ```
/// use campanile::transport::redis::Credentials;
/// use std::time::Duration;
///
/// let credentials = Credentials::new("worker", "a-token").expires_in(Duration::from_secs(900));
/// ```
#[derive(Clone)]
pub struct Credentials {
    /// `None` for the default user.
    user: Option<String>,
    password: String,
    lifetime: Option<Duration>,
}

impl Credentials {
    /// The credentials of a user. An empty user is the default one.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            user: Some(user.into()).filter(|user| !user.is_empty()),
            password: password.into(),
            lifetime: None,
        }
    }

    /// Sets the time from now after which the server no longer accepts the credentials. Connections
    /// get new ones before that.
    pub fn expires_in(mut self, lifetime: Duration) -> Self {
        self.lifetime = Some(lifetime);
        self
    }

    pub(super) fn lifetime(&self) -> Option<Duration> {
        self.lifetime
    }

    /// The command that logs in.
    pub(super) fn command(&self) -> Cmd {
        let mut auth = redis::cmd("AUTH");
        auth.arg(self.user.as_deref()).arg(&self.password);
        auth
    }

    /// The login of a URL; `None` if it has none.
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

/// The future of a [`CredentialsProvider`].
pub type CredentialsFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Credentials, BoxError>> + Send + 'a>>;

/// Returns the current user and password, for [`RedisBuilder::credentials`]. A closure without
/// arguments that returns a future is a provider.
///
/// The provider is asked for each connection, and again before the returned credentials expire. A
/// handle has several connections, so a provider should cache an expensive answer.
///
/// [`RedisBuilder::credentials`]: super::RedisBuilder::credentials
pub trait CredentialsProvider: Send + Sync + 'static {
    /// Returns credentials that are valid now. The future runs as a task of the runtime on which
    /// the handle was connected, and must not block its thread.
    ///
    /// # Errors
    /// Any error of the application. The error is logged, and is part of the errors of commands
    /// that wait for the connection, so it must not contain a password. The provider is asked
    /// again, with a back-off, also if it does not answer within 5 s, or panics.
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

/// The origin of the credentials of connections.
pub(super) enum CredentialsSource {
    /// Always the same credentials; `None` to connect without a login.
    Fixed(Option<Credentials>),
    Provider(Arc<ProviderTask>),
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
        Ok(Self::Provider(Arc::new(ProviderTask::new(provider))))
    }

    /// The credentials for a new connection.
    pub(super) async fn current(&self, address: &str) -> Result<Option<Credentials>, Error> {
        match self {
            Self::Fixed(credentials) => Ok(credentials.clone()),
            Self::Provider(provider) => provider.ask(address).await.map(Some),
        }
    }

    pub(super) fn provider(&self) -> Option<&Arc<ProviderTask>> {
        match self {
            Self::Fixed(_) => None,
            Self::Provider(provider) => Some(provider),
        }
    }
}

/// Asks a provider on the application's runtime. Connections of the upkeep belong to another
/// runtime, where a provider that blocks would hold up the renewal of leases.
pub(super) struct ProviderTask {
    provider: Arc<dyn CredentialsProvider>,
    /// The runtime of the first connection.
    runtime: OnceLock<Handle>,
}

impl ProviderTask {
    pub(super) fn new(provider: Arc<dyn CredentialsProvider>) -> Self {
        Self {
            provider,
            runtime: OnceLock::new(),
        }
    }

    /// Asks for the credentials of the server at an address.
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
        let packed = credentials.command().get_packed_command();
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

    fn provided(provider: impl CredentialsProvider) -> ProviderTask {
        ProviderTask::new(Arc::new(provider))
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_fails_is_an_error_that_may_pass() {
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
