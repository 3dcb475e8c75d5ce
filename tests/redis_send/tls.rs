//! TLS.

use std::{fs, path::Path, process::Command};

use campanile::{Message, Redis};
use redis::TlsCertificates;
use tempfile::TempDir;

use crate::{
    SECOND,
    idle::{close_idle_connections, works_after_pauses},
    send,
    support::{Options, RedisServer},
    within,
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

/// A server with a port for TLS, and the directory of its certificate.
async fn secured() -> (RedisServer, u16, TempDir) {
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
    (RedisServer::with(options).await, port, dir)
}

/// A client that trusts the certificate in this file.
fn trusting(url: &str, certificate: &Path) -> redis::Client {
    let trust = TlsCertificates {
        client_tls: None,
        root_cert: Some(fs::read(certificate).unwrap()),
    };
    redis::Client::build_with_tls(url, trust).unwrap()
}

#[tokio::test]
async fn tls_works_and_a_certificate_that_is_not_trusted_is_said_to_be_none() {
    let (_server, port, dir) = secured().await;
    let url = format!("rediss://localhost:{port}/");

    let error = Redis::connect(&url).await.unwrap_err();
    assert!(error.is_config(), "{error:?}");
    assert!(error.to_string().contains("not trusted"), "{error}");

    // The choice of a provider for the whole process is the application's: it can still make it.
    let provider = rustls::crypto::ring::default_provider();
    provider.install_default().expect("nothing was installed");

    let client = trusting(&url, &dir.path().join("cert.pem"));
    let redis = Redis::from_client(client).await.unwrap().stream("s");
    assert!(send(&redis, Message::task("a", "")).await.is_ok());
}

/// Runs [`client_process`] against a server that closes idle connections.
async fn works_after_pauses_in_a_process(whose_certificates: &str) {
    let (server, port, dir) = secured().await;
    close_idle_connections(&server).await;
    let this = std::env::current_exe().unwrap();
    let client = tokio::process::Command::new(this)
        .args(["tls::client_process", "--exact", "--ignored", "--nocapture"])
        .env("CAMPANILE_TEST_CERTIFICATES", whose_certificates)
        .env("CAMPANILE_TEST_URL", server.url())
        .env("CAMPANILE_TEST_TLS_PORT", port.to_string())
        .env("SSL_CERT_FILE", dir.path().join("cert.pem"))
        .kill_on_drop(true)
        .output();
    let output = within(60 * SECOND, client).await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{}\n{said}", output.status);
    assert!(said.contains("1 passed"), "{said}");
}

/// A client in a process of its own: the system's certificates and the provider are the process's.
#[tokio::test]
#[ignore = "a client process, which the other tests start"]
async fn client_process() {
    let variable = |name: &str| std::env::var(format!("CAMPANILE_TEST_{name}"));
    let Ok(whose) = variable("CERTIFICATES") else {
        return;
    };
    let url = format!("rediss://localhost:{}/", variable("TLS_PORT").unwrap());
    let redis = match &*whose {
        "system" => Redis::connect(&url).await,
        _ => {
            let provider = rustls::crypto::ring::default_provider();
            provider.install_default().expect("nothing was installed");
            let file = std::env::var("SSL_CERT_FILE").unwrap();
            Redis::from_client(trusting(&url, Path::new(&file))).await
        }
    };
    let redis = redis.unwrap().stream("s");
    works_after_pauses(&variable("URL").unwrap(), &redis).await;
}

#[tokio::test]
async fn an_idle_connection_that_the_server_closes_is_noticed_under_tls() {
    works_after_pauses_in_a_process("system").await;
}

// The driver makes this connection, and shows a loss to the next command only.
#[tokio::test]
async fn an_idle_connection_that_the_server_closes_is_noticed_with_certificates_of_ones_own() {
    works_after_pauses_in_a_process("own").await;
}
