//! Builds handles with certificates, or with credentials that change.

use std::{fmt, sync::Arc};

use super::{Connector, credentials::CredentialsProvider, tls::TlsOptions, url};
use crate::{
    error::Error,
    transport::redis::{Redis, namespace::Namespace},
};

impl Redis {
    /// Returns a builder for a handle that needs more than a URL: certificates, or credentials that
    /// change. See [credentials and TLS](super::super#credentials-and-tls).
    ///
    /// ```no_run
    /// # #[cfg(feature = "redis-rustls")]
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// use campanile::Redis;
    ///
    /// let redis = Redis::builder("rediss://redis.internal:6380/")
    ///     .ca_certificate(std::fs::read("ca.pem")?)
    ///     .client_certificate(std::fs::read("worker.pem")?, std::fs::read("worker.key")?)
    ///     .connect()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder(url: impl Into<String>) -> RedisBuilder {
        RedisBuilder {
            url: url.into(),
            credentials: None,
            sentinel_credentials: None,
            tls: TlsOptions::default(),
            namespace: None,
        }
    }
}

/// Builds a [`Redis`] handle from a URL, certificates and credentials. See [`Redis::builder`].
#[derive(Clone)]
#[must_use = "a builder does nothing until it connects"]
pub struct RedisBuilder {
    url: String,
    credentials: Option<Arc<dyn CredentialsProvider>>,
    sentinel_credentials: Option<(String, String)>,
    tls: TlsOptions,
    namespace: Option<String>,
}

impl RedisBuilder {
    /// Takes the user and the password from a provider instead of the URL. Each new connection to a
    /// Redis server asks the provider. If the credentials have a lifetime, each connection logs in
    /// with new credentials before they expire.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// use campanile::{Redis, transport::redis::Credentials};
    ///
    /// // A file whose content changes.
    /// let redis = Redis::builder("redis://redis.internal/")
    ///     .credentials(|| async {
    ///         let password = tokio::fs::read_to_string("/run/secrets/redis").await?;
    ///         Ok(Credentials::new("worker", password.trim_end()))
    ///     })
    ///     .connect()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn credentials(mut self, provider: impl CredentialsProvider) -> Self {
        self.credentials = Some(Arc::new(provider));
        self
    }

    /// Sets the user and the password for Sentinels. The parameters `sentinel_username` and
    /// `sentinel_password` of the URL do the same. An empty `user` is the default user.
    pub fn sentinel_credentials(
        mut self,
        user: impl Into<String>,
        password: impl Into<String>,
    ) -> Self {
        self.sentinel_credentials = Some((user.into(), password.into()));
        self
    }

    /// Trusts the authorities whose certificates are in a PEM text, instead of the system's
    /// authorities. Each further call adds authorities.
    #[cfg(feature = "redis-rustls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis-rustls")))]
    pub fn ca_certificate(mut self, pem: impl AsRef<[u8]>) -> Self {
        self.tls.ca_certificates.push(pem.as_ref().to_vec());
        self
    }

    /// Sets the certificate that this client presents to a server that asks for one.
    ///
    /// `certificate` is a PEM text with the client's certificate, followed by those of its
    /// intermediate authorities. `key` is a PEM text in PKCS #8, PKCS #1 or SEC 1.
    #[cfg(feature = "redis-rustls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis-rustls")))]
    pub fn client_certificate(
        mut self,
        certificate: impl AsRef<[u8]>,
        key: impl AsRef<[u8]>,
    ) -> Self {
        self.tls.client_certificate = Some((certificate.as_ref().to_vec(), key.as_ref().to_vec()));
        self
    }

    /// Sets the host name, or IP address, to expect in the certificates of all servers and
    /// Sentinels. The default is the host of each connection. Sentinels and clusters often announce
    /// servers by addresses that are in no certificate.
    #[cfg(feature = "redis-rustls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis-rustls")))]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.tls.server_name = Some(name.into());
        self
    }

    /// Accepts any certificate of any server. An attacker on the network can then read and change
    /// the password and every message. `#insecure` at the end of the URL has the same effect.
    #[cfg(feature = "redis-rustls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis-rustls")))]
    pub fn danger_accept_invalid_certificates(mut self) -> Self {
        self.tls.accept_invalid = true;
        self
    }

    /// Sets the namespace of all keys and channels, instead of the parameter `namespace` of the
    /// URL. See [`Redis::namespace`].
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Checks the URL, the namespace, the certificates and the key without connecting.
    ///
    /// # Errors
    /// If one of these settings is invalid, or two of them contradict each other.
    /// [`is_config`](Error::is_config) is `true` for the error.
    pub fn check(&self) -> Result<(), Error> {
        self.connector_and_namespace().map(drop)
    }

    /// Connects to the server and returns the handle.
    ///
    /// # Errors
    /// The errors of [`Redis::connect`] and [`check`](Self::check). If the credentials provider
    /// fails, [`is_disconnected`](Error::is_disconnected) is `true` for the error, and its source
    /// is the provider's error.
    pub async fn connect(self) -> Result<Redis, Error> {
        let (connector, namespace) = self.connector_and_namespace()?;
        Ok(Redis::with_connector(connector)
            .await?
            .in_namespace(namespace))
    }

    /// Connects like [`connect`](Self::connect), but tries again while the server is unreachable or
    /// not ready, or while the credentials provider fails.
    ///
    /// # Errors
    /// The errors of [`Redis::connect_when_ready`] and [`check`](Self::check).
    ///
    /// # Cancel safety
    /// Dropping the future stops the attempts.
    pub async fn connect_when_ready(self) -> Result<Redis, Error> {
        let (connector, namespace) = self.connector_and_namespace()?;
        let redis = Redis::with_connector_when_ready(connector).await?;
        Ok(redis.in_namespace(namespace))
    }

    fn connector_and_namespace(&self) -> Result<(Connector, Namespace), Error> {
        let mut parsed = url::parse(&self.url)?;
        let namespace = match &self.namespace {
            Some(namespace) => Namespace::new(namespace)?,
            None => parsed.namespace.clone(),
        };
        if let Some((user, password)) = &self.sentinel_credentials {
            parsed.set_sentinel_credentials(user, password)?;
        }
        let connector = Connector::new(parsed, self.credentials.clone(), self.tls.clone())?;
        Ok((connector, namespace))
    }
}

// Omits the URL and the credentials, which may contain passwords, and the client's private key.
impl fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBuilder").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::redis::Credentials;

    fn refused(builder: RedisBuilder) -> String {
        let error = builder.check().unwrap_err();
        assert!(error.is_config(), "{error:?}");
        let text = error.chain();
        assert!(!text.contains("hunter2"), "{text}");
        text
    }

    #[test]
    fn credentials_come_from_one_place() {
        let provider = || async { Ok(Credentials::new("me", "hunter2")) };
        for login in ["hunter2@", ":hunter2@", "me:hunter2@"] {
            let builder = Redis::builder(format!("redis://{login}host/")).credentials(provider);
            assert!(refused(builder).contains("leave them out of the URL"));
        }
        Redis::builder("redis://host/")
            .credentials(provider)
            .check()
            .unwrap();
    }

    #[test]
    fn a_namespace_is_checked_without_a_connection_and_replaces_that_of_the_url() {
        for url in [
            "redis://host/?namespace=a:b",
            "redis+cluster://host?namespace=",
        ] {
            assert!(
                refused(Redis::builder(url)).contains("begins with a letter"),
                "{url}"
            );
        }
        assert!(refused(Redis::builder("redis://host/").namespace("7")).contains("`7`"));
        let url = "redis+unix:///run/redis.sock?db=1&namespace=a";
        let namespace = |builder: RedisBuilder| builder.connector_and_namespace().unwrap().1;
        assert_eq!(namespace(Redis::builder(url)), Namespace::new("a").unwrap());
        let replaced = Redis::builder(url).namespace("b");
        assert_eq!(namespace(replaced), Namespace::new("b").unwrap());
    }

    #[test]
    fn sentinel_credentials_need_sentinels_and_one_place() {
        let with = |url: &str| Redis::builder(url).sentinel_credentials("me", "hunter2");
        for url in ["redis://host/", "redis+cluster://host/"] {
            assert!(refused(with(url)).contains("redis+sentinel://"), "{url}");
        }
        let both = with("redis+sentinel://host/name?sentinel_password=hunter2");
        assert!(refused(both).contains("leave them out of the URL"));
        with("redis+sentinel://user:pw@host/name").check().unwrap();
    }

    #[test]
    #[cfg(feature = "redis-rustls")]
    fn a_server_name_needs_tls_and_is_a_name() {
        let with = |url: &str, name: &str| Redis::builder(url).server_name(name);
        assert!(refused(with("redis://host/", "redis.internal")).contains("rediss://"));
        assert!(refused(with("rediss://host/", "no name")).contains("`no name`"));
        for name in ["redis.internal", "10.0.0.1", "::1"] {
            with("rediss://host/", name).check().expect(name);
        }
    }
}
