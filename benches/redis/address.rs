//! The address of the server, and how each side connects to it.

use campanile::Redis;
use serde::{Deserialize, Serialize};

/// The URL of a server, and the certificate to trust if the server uses TLS.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Address {
    url: String,
    certificate: Option<Vec<u8>>,
}

impl Address {
    pub(crate) fn plain(url: String) -> Self {
        Self {
            url,
            certificate: None,
        }
    }

    pub(crate) fn tls(url: String, certificate: Vec<u8>) -> Self {
        Self {
            url,
            certificate: Some(certificate),
        }
    }

    /// The address of the same server behind another port of this machine.
    pub(crate) fn with_port(&self, port: u16) -> Self {
        let url = match self.certificate {
            // The certificate is for `localhost`.
            Some(_) => format!("rediss://localhost:{port}/"),
            None => format!("redis://127.0.0.1:{port}/"),
        };
        Self {
            url,
            certificate: self.certificate.clone(),
        }
    }

    /// Connects Campanile.
    pub(crate) async fn connect(&self) -> Redis {
        let builder = Redis::builder(&self.url);
        #[cfg(feature = "redis-rustls")]
        let builder = match &self.certificate {
            Some(certificate) => builder.ca_certificate(certificate),
            None => builder,
        };
        builder.connect().await.expect("a connection")
    }

    /// A client of bare redis-rs, which treats a cluster of one primary as a plain server.
    pub(crate) fn client(&self) -> redis::Client {
        let url = self.url.replacen("redis+cluster", "redis", 1);
        let client = match &self.certificate {
            #[cfg(feature = "redis-rustls")]
            Some(certificate) => {
                // redis-rs uses the crypto provider of the process. An error means that a provider
                // is installed already.
                let _ = rustls::crypto::ring::default_provider().install_default();
                let trusted = redis::TlsCertificates {
                    client_tls: None,
                    root_cert: Some(certificate.clone()),
                };
                redis::Client::build_with_tls(url, trusted)
            }
            _ => redis::Client::open(url),
        };
        client.expect("the URL is valid")
    }
}
