//! TLS with an explicit crypto provider.
//!
//! A library must not install the default provider of the process, because an application that
//! installs a provider later would then fail. So each TLS configuration names its provider.

use std::{
    io,
    sync::{Arc, OnceLock},
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore,
    SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{self, CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::error::{BoxError, Error};

/// The application's TLS settings, before the PEM texts are parsed.
#[derive(Clone, Default)]
pub(super) struct TlsOptions {
    /// The certificates of the authorities to trust, instead of the system's authorities.
    pub(super) ca_certificates: Vec<Vec<u8>>,
    /// The certificate of this client, and its key.
    pub(super) client_certificate: Option<(Vec<u8>, Vec<u8>)>,
    /// Set to accept any certificate of a server.
    pub(super) accept_invalid: bool,
    /// The name that a server's certificate must have, instead of the server's host.
    pub(super) server_name: Option<String>,
}

impl TlsOptions {
    pub(super) fn is_set(&self) -> bool {
        let has_name = self.server_name.is_some();
        let has_certificate = self.client_certificate.is_some();
        !self.ca_certificates.is_empty() || has_certificate || self.accept_invalid || has_name
    }
}

/// The parsed TLS settings of connections.
pub(super) struct Tls {
    /// The trusted authorities, or `None` for those of the system.
    roots: Option<RootCertStore>,
    client_certificate: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    accept_invalid: bool,
    server_name: Option<ServerName<'static>>,
    /// Made at the first use and then kept, because reading the system's certificates is slow.
    config: OnceLock<Arc<ClientConfig>>,
}

impl Tls {
    /// Parses the certificates, the key and the server's name. Fails if one of them is invalid, or
    /// if the key does not belong to the client certificate.
    pub(super) fn new(options: TlsOptions) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for pem in &options.ca_certificates {
            for certificate in certificates(pem, "CA certificate")? {
                let added = roots.add(certificate);
                added.map_err(|error| unreadable("CA certificate").with_source(error))?;
            }
        }
        let client_certificate = match &options.client_certificate {
            None => None,
            Some((certificate, key)) => {
                let certificates = certificates(certificate, "client certificate")?;
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| {
                    Error::config(
                        "the key of the client certificate cannot be read; it is a PEM text that \
                         begins with -----BEGIN PRIVATE KEY-----, without a passphrase",
                    )
                    .with_source(error)
                })?;
                Some((certificates, key))
            }
        };
        let server_name = options.server_name.map(|name| {
            let parsed = ServerName::try_from(name.clone());
            parsed.map_err(|error| {
                Error::config(format!(
                    "`{name}` is no name of a server; it looks like redis.internal or 10.0.0.1"
                ))
                .with_source(error)
            })
        });
        let tls = Self {
            roots: (!options.ca_certificates.is_empty()).then_some(roots),
            client_certificate,
            accept_invalid: options.accept_invalid,
            server_name: server_name.transpose()?,
            config: OnceLock::new(),
        };
        // The configuration is made now, so that a key that does not belong to the certificate is
        // an error here, not at the first connection.
        if tls.client_certificate.is_some() {
            tls.config().map_err(|error| {
                Error::config("the client certificate and its key do not belong together")
                    .with_source(error)
            })?;
        }
        Ok(tls)
    }

    /// Performs the TLS handshake. The server's certificate must be for `server_name`, or for
    /// `host` if `server_name` is not set.
    pub(super) async fn handshake(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host).map_err(invalid)?.to_owned(),
        };
        let config = self.config().map_err(io::Error::other)?;
        TlsConnector::from(config).connect(name, stream).await
    }

    fn config(&self) -> Result<Arc<ClientConfig>, BoxError> {
        if let Some(config) = self.config.get() {
            return Ok(config.clone());
        }
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?;
        let config = match &self.roots {
            _ if self.accept_invalid => {
                (config.dangerous()).with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
            }
            Some(roots) => config.with_root_certificates(roots.clone()),
            None => config.with_root_certificates(system_roots()?),
        };
        let config = match &self.client_certificate {
            Some((chain, key)) => config.with_client_auth_cert(chain.clone(), key.clone_key())?,
            None => config.with_no_client_auth(),
        };
        Ok(self.config.get_or_init(|| Arc::new(config)).clone())
    }
}

fn system_roots() -> Result<RootCertStore, BoxError> {
    let mut roots = RootCertStore::empty();
    let mut found = rustls_native_certs::load_native_certs();
    // Certificates that cannot be parsed are skipped, and the others are used.
    roots.add_parsable_certificates(found.certs);
    match found.errors.pop() {
        Some(error) if roots.is_empty() => Err(error.into()),
        _ => Ok(roots),
    }
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match parsed {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(unreadable(what)),
        Err(error) => Err(unreadable(what).with_source(error)),
    }
}

fn unreadable(what: &str) -> Error {
    Error::config(format!(
        "the {what} cannot be read; it is a PEM text that begins with -----BEGIN CERTIFICATE-----"
    ))
}

/// Accepts any certificate. The server still has to prove that it holds the certificate's key.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Describes a TLS error and its solution. `None` for errors that do not come from TLS.
pub(in crate::transport::redis) fn describe_fault(error: &io::Error) -> Option<&'static str> {
    use AlertDescription as Alert;
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match error {
        rustls::Error::AlertReceived(Alert::CertificateRequired) => {
            "the server asks for a client certificate; give one with \
             `Redis::builder(url).client_certificate(…)`"
        }
        rustls::Error::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::DecryptError,
        ) => "the server does not accept the client certificate",
        rustls::Error::AlertReceived(_) => {
            "the server has ended the TLS handshake; it may ask for a client certificate, or for \
             another version of TLS"
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            "the server's certificate is for another host name than the one in the URL; \
             `Redis::builder(url).server_name(…)` names the one to expect"
        }
        rustls::Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => "the server's certificate is not valid at this time",
        rustls::Error::InvalidCertificate(_) => {
            "the server's certificate is not trusted; give the certificate of its authority with \
             `Redis::builder(url).ca_certificate(…)`"
        }
        rustls::Error::InvalidMessage(_) => {
            "the server speaks no TLS there; connect to its TLS port, or let the URL begin with \
             redis://"
        }
        _ => "the TLS handshake has failed",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pem_text_that_cannot_be_read_is_an_error_that_says_which() {
        let garbage = || b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n".to_vec();
        for (options, which) in [
            (
                TlsOptions {
                    ca_certificates: vec![b"nothing".to_vec()],
                    ..Default::default()
                },
                "CA certificate",
            ),
            (
                TlsOptions {
                    ca_certificates: vec![garbage()],
                    ..Default::default()
                },
                "CA certificate",
            ),
            (
                TlsOptions {
                    client_certificate: Some((Vec::new(), Vec::new())),
                    ..Default::default()
                },
                "client certificate",
            ),
        ] {
            let error = Tls::new(options).err().expect(which);
            assert!(error.is_config());
            let text = error.to_string();
            assert!(text.contains(which) && text.contains("PEM"), "{text}");
        }
    }
}
