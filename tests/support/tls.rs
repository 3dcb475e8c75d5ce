//! TLS ports of servers, with a self-signed certificate for `localhost` or for other names.

use std::{fs, net::TcpListener, path::Path, process::Command};

use tempfile::TempDir;

/// A free port, and the directory with the certificate and its key.
#[derive(Debug)]
pub(crate) struct Tls {
    port: u16,
    dir: TempDir,
}

impl Tls {
    /// Makes a certificate, `cert.pem`, and its key, `key.pem`.
    pub(crate) fn new() -> Self {
        Self::with_names("DNS:localhost")
    }

    /// Makes a certificate for these names, in OpenSSL's notation, such as
    /// `DNS:localhost,IP:127.0.0.1`.
    pub(crate) fn with_names(names: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        certificate(dir.path(), names);
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        Self { port, dir }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("rediss://localhost:{}/", self.port)
    }

    /// The directory of the certificate and the key.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn file(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir().join(name)).expect("the file is there")
    }

    /// The arguments of a `redis-server` that listens on this port. `auth_clients` says whether the
    /// server asks clients for certificates: `no`, `optional` or `yes`.
    pub(crate) fn args(&self, auth_clients: &str) -> Vec<String> {
        self.args_at(self.port, auth_clients)
    }

    /// Like [`args`](Self::args), for another of several servers with this certificate.
    pub(crate) fn args_at(&self, port: u16, auth_clients: &str) -> Vec<String> {
        let file = |name: &str| self.dir().join(name).display().to_string();
        [
            ("--tls-port", port.to_string()),
            ("--tls-auth-clients", auth_clients.to_owned()),
            ("--tls-cert-file", file("cert.pem")),
            ("--tls-key-file", file("key.pem")),
            ("--tls-ca-cert-file", file("cert.pem")),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
    }
}

fn certificate(dir: &Path, names: &str) {
    let config = format!(
        "[req]\ndistinguished_name=name\nx509_extensions=ext\nprompt=no\n\
         [name]\nCN=localhost\n\
         [ext]\nsubjectAltName={names}\nbasicConstraints=CA:FALSE\n"
    );
    fs::write(dir.join("config"), config).expect("the directory is writable");
    let made = Command::new("openssl")
        .current_dir(dir)
        .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
        .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args([
            "-config", "config", "-keyout", "key.pem", "-out", "cert.pem",
        ])
        .output()
        .expect("openssl is missing; install it: apt-get install openssl");
    assert!(made.status.success(), "{made:?}");
}
