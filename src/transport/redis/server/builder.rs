//! Connects with more than a URL.

use std::fmt;

use super::{Connector, tls::TlsOptions};
use crate::{error::Error, transport::redis::Redis};

impl Redis {
    /// Begins a connection that needs more than a URL: certificates.
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

/// Connects to a server with a URL and certificates. See [`Redis::builder`].
#[derive(Clone)]
#[must_use = "a builder does nothing until it connects"]
pub struct RedisBuilder {
    url: String,
    tls: TlsOptions,
}

impl RedisBuilder {
    /// Trusts the certificates in a PEM text, and whatever they have signed, in place of the system's
    /// certificates. A second call adds to the first.
    #[cfg(feature = "redis-rustls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis-rustls")))]
    pub fn ca_certificate(mut self, pem: impl AsRef<[u8]>) -> Self {
        self.tls.ca.push(pem.as_ref().to_vec());
        self
    }

    /// Presents this client's certificate, with those that lead to its authority behind it, to a
    /// server that asks for one. Both are PEM texts; the key is in PKCS #8, PKCS #1 or SEC 1.
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

    /// Accepts any certificate of any server. Whoever is on the way to the server can then read the
    /// password and every message, and change them. `#insecure` at the end of the URL does the same.
    #[cfg(feature = "redis-rustls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis-rustls")))]
    pub fn danger_accept_invalid_certificates(mut self) -> Self {
        self.tls.accept_invalid = true;
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// As [`Redis::connect`]. Also when a certificate or a key cannot be read, or where one is given
    /// and the URL does not ask for TLS.
    pub async fn connect(self) -> Result<Redis, Error> {
        Redis::over(self.connector()?).await
    }

    /// Connects, and waits for a server that is away or not ready.
    ///
    /// # Errors
    /// As [`Redis::connect_when_ready`], and as [`connect`](Self::connect) for certificates.
    ///
    /// # Cancel safety
    /// Dropping the future gives up.
    pub async fn connect_when_ready(self) -> Result<Redis, Error> {
        Redis::over_when_ready(self.connector()?).await
    }

    fn connector(self) -> Result<Connector, Error> {
        Connector::new(super::url::parse(&self.url)?, self.tls)
    }
}

// Neither the URL, which may hold a password, nor a key.
impl fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBuilder").finish_non_exhaustive()
    }
}
