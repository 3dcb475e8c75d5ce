//! A builder of connections with certificates.

use std::fmt;

use super::{Connector, tls::TlsOptions};
use crate::{error::Error, transport::redis::Redis};

impl Redis {
    /// Starts a connection that needs certificates besides its URL.
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
            tls: TlsOptions::default(),
        }
    }
}

/// Connects to a server by a URL and certificates. See [`Redis::builder`].
#[derive(Clone)]
#[must_use = "a builder does nothing until it connects"]
pub struct RedisBuilder {
    url: String,
    tls: TlsOptions,
}

impl RedisBuilder {
    /// Trusts the certificates in a PEM text, and all that they have signed, instead of the
    /// system's certificates. A second call adds to the first.
    #[cfg(feature = "redis-rustls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis-rustls")))]
    pub fn ca_certificate(mut self, pem: impl AsRef<[u8]>) -> Self {
        self.tls.ca.push(pem.as_ref().to_vec());
        self
    }

    /// Presents this client's certificate, followed by those that lead to its authority, if the
    /// server asks for one. Both arguments are PEM texts; the key is in PKCS #8, PKCS #1 or SEC 1.
    #[cfg(feature = "redis-rustls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis-rustls")))]
    pub fn client_certificate(
        mut self,
        certificate: impl AsRef<[u8]>,
        key: impl AsRef<[u8]>,
    ) -> Self {
        self.tls.client = Some((certificate.as_ref().to_vec(), key.as_ref().to_vec()));
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

    /// Connects.
    ///
    /// # Errors
    /// As [`Redis::connect`]. Also if a certificate or a key cannot be read, or if one is given and
    /// the URL does not ask for TLS.
    pub async fn connect(self) -> Result<Redis, Error> {
        Redis::over(self.connector()?).await
    }

    /// Connects, and waits while the server is unreachable or not ready.
    ///
    /// # Errors
    /// As [`Redis::connect_when_ready`], and as [`connect`](Self::connect) for certificates.
    ///
    /// # Cancel safety
    /// Dropping the future stops the attempts.
    pub async fn connect_when_ready(self) -> Result<Redis, Error> {
        Redis::over_when_ready(self.connector()?).await
    }

    fn connector(self) -> Result<Connector, Error> {
        Connector::new(super::url::parse(&self.url)?, self.tls)
    }
}

// Shows neither the URL, which may contain a password, nor the key.
impl fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBuilder").finish_non_exhaustive()
    }
}
