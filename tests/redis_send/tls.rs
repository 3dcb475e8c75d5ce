//! TLS.

use std::{fs, path::Path, process::Command};

use campanile::{Message, Redis};
use redis::TlsCertificates;

use crate::{
    send,
    support::{Options, RedisServer},
};

/// A certificate for `localhost` that is its own root, and its key.
fn certificate(dir: &Path) {
    let config = "[req]\ndistinguished_name=name\nx509_extensions=ext\nprompt=no\n\
                  [name]\nCN=localhost\n\
                  [ext]\nsubjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n";
    fs::write(dir.join("config"), config).unwrap();
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

#[tokio::test]
async fn tls_works_and_a_certificate_that_is_not_trusted_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    certificate(dir.path());
    let file = |name: &str| dir.path().join(name).display().to_string();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .unwrap()
        .port();
    let options = Options::new()
        .args(["--tls-port", &port.to_string(), "--tls-auth-clients", "no"])
        .args(["--tls-cert-file", &file("cert.pem")])
        .args(["--tls-key-file", &file("key.pem")])
        .args(["--tls-ca-cert-file", &file("cert.pem")]);
    let _server = RedisServer::with(options).await;
    let url = format!("rediss://localhost:{port}/");

    let error = Redis::connect(&url).await.unwrap_err();
    assert!(error.is_config(), "{error:?}");
    assert!(error.to_string().contains("not trusted"), "{error}");

    // The choice of a provider for the whole process is the application's: it can still make it.
    let provider = rustls::crypto::ring::default_provider();
    provider.install_default().expect("nothing was installed");

    let trust = TlsCertificates {
        client_tls: None,
        root_cert: Some(fs::read(file("cert.pem")).unwrap()),
    };
    let client = redis::Client::build_with_tls(&*url, trust).unwrap();
    let redis = Redis::from_client(client).await.unwrap().stream("s");
    assert!(send(&redis, Message::task("a", "")).await.is_ok());
}
