//! TLS with a provider of its own.
//!
//! The driver takes its provider from the process. A library must not choose for the process: an
//! application that installs a provider later would find the place taken. So the handshake is made
//! here, and the provider is named.

use std::sync::{Arc, OnceLock};

use rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::error::{BoxError, Error};

/// The configuration of one server's connections. Reading the system's certificates takes long, so
/// it is done once.
#[derive(Default)]
pub(super) struct Tls(OnceLock<Arc<ClientConfig>>);

impl Tls {
    /// Makes the handshake over a connection. Its error is one of the system, or names what the
    /// certificate lacks.
    pub(super) async fn handshake(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, redis::RedisError> {
        let name = ServerName::try_from(host)?.to_owned();
        let connector = TlsConnector::from(self.config()?);
        Ok(connector.connect(name, stream).await?)
    }

    fn config(&self) -> Result<Arc<ClientConfig>, redis::RedisError> {
        if let Some(config) = self.0.get() {
            return Ok(config.clone());
        }
        let config = config().map_err(|error| {
            let text = "no TLS without the system's certificates";
            redis::RedisError::from((
                redis::ErrorKind::InvalidClientConfig,
                text,
                error.to_string(),
            ))
        })?;
        Ok(self.0.get_or_init(|| Arc::new(config)).clone())
    }
}

fn config() -> Result<ClientConfig, BoxError> {
    let mut roots = RootCertStore::empty();
    let mut found = rustls_native_certs::load_native_certs();
    // One certificate that cannot be read leaves the others usable.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty()
        && let Some(error) = found.errors.pop()
    {
        return Err(error.into());
    }
    let provider = Arc::new(ring::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// Refuses a client that has certificates of its own where the process has no provider: the driver
/// makes those connections, and would choose a provider for the process.
pub(super) fn check_provider() -> Result<(), Error> {
    match rustls::crypto::CryptoProvider::get_default() {
        Some(_) => Ok(()),
        None => Err(Error::config(
            "a client with certificates of its own needs the process's rustls provider; choose one \
             at the start of the program, as by \
             `rustls::crypto::ring::default_provider().install_default()`",
        )),
    }
}
