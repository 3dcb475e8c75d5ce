//! Connections over TLS: which certificates are trusted, and the errors of the others.

use campanile::{Error, Message, Redis};
use redis::TlsCertificates;
use rustls::crypto::CryptoProvider;

use super::{
    SECOND,
    idle::{close_idle_connections, works_after_pauses},
    send,
    support::{Options, RedisServer, tls::Tls},
    within,
};

/// A server with a port for TLS.
struct Secured {
    server: RedisServer,
    tls: Tls,
}

impl Secured {
    /// `auth_clients` says whether the server asks clients for certificates: `no`, `optional` or
    /// `yes`.
    async fn start(auth_clients: &str) -> Self {
        let tls = Tls::new();
        let options = Options::new().args(tls.args(auth_clients));
        let server = RedisServer::with(options).await;
        Self { server, tls }
    }

    /// A builder that trusts the server.
    fn trusted(&self) -> campanile::transport::redis::RedisBuilder {
        Redis::builder(self.tls.url()).ca_certificate(self.tls.file("cert.pem"))
    }
}

async fn works(redis: Result<Redis, Error>) {
    let redis = redis.unwrap().stream("s");
    send(&redis, Message::task("a", "")).await.unwrap();
}

fn is_config_error(connected: Result<Redis, Error>, says: &str) {
    let error = connected.unwrap_err();
    assert!(error.is_config(), "{error:?}");
    assert!(error.to_string().contains(says), "{error}");
}

#[tokio::test]
async fn an_own_ca_is_trusted_and_an_unknown_one_is_refused_with_the_way_out() {
    let secured = Secured::start("no").await;
    works(secured.trusted().connect().await).await;
    works(secured.trusted().connect_when_ready().await).await;
    let url = format!("{}?protocol=resp3", secured.tls.url());
    let resp3 = Redis::builder(url).ca_certificate(secured.tls.file("cert.pem"));
    works(resp3.connect().await).await;

    is_config_error(Redis::connect(&secured.tls.url()).await, "ca_certificate");
    let stranger = Tls::new().file("cert.pem");
    let connecting = Redis::builder(secured.tls.url()).ca_certificate(stranger);
    is_config_error(connecting.connect().await, "ca_certificate");
    let other_name = format!("rediss://127.0.0.1:{}/", secured.tls.port());
    let connecting = Redis::builder(other_name).ca_certificate(secured.tls.file("cert.pem"));
    is_config_error(connecting.connect().await, "another host name");
}

#[tokio::test]
async fn a_server_at_another_host_than_its_certificates_is_known_by_its_name() {
    let secured = Secured::start("no").await;
    let named = |url: &str, name: &str| {
        let builder = Redis::builder(url).ca_certificate(secured.tls.file("cert.pem"));
        builder.server_name(name)
    };
    let by_address = format!("rediss://127.0.0.1:{}/", secured.tls.port());
    works(named(&by_address, "localhost").connect().await).await;
    let other = named(&secured.tls.url(), "redis.internal").connect().await;
    is_config_error(other, "server_name");
}

#[tokio::test]
async fn nodes_that_a_cluster_announces_by_address_are_known_by_their_name() {
    let tls = Tls::new();
    let cluster = ["--tls-cluster", "yes", "--cluster-announce-ip", "127.0.0.1"];
    let args = tls.args("no").into_iter().chain(cluster.map(str::to_owned));
    let _server = RedisServer::with(Options::new().args(args).cluster()).await;
    let url = tls.url().replacen("rediss", "rediss+cluster", 1);
    let builder = Redis::builder(url).ca_certificate(tls.file("cert.pem"));
    let sent = builder.clone().server_name("localhost").connect().await;
    works(sent).await;
    // The first node is reached by the host of the URL, and the node of the slot by its address.
    let error = builder.connect().await.unwrap_err();
    assert!(error.to_string().contains("server_name"), "{error}");
}

#[tokio::test]
async fn a_server_that_demands_a_client_certificate_gets_one_or_the_error_asks_for_it() {
    let secured = Secured::start("yes").await;
    let (certificate_of_ours, key) = (secured.tls.file("cert.pem"), secured.tls.file("key.pem"));
    let connecting = secured
        .trusted()
        .client_certificate(&certificate_of_ours, &key);
    works(connecting.connect().await).await;
    is_config_error(
        secured.trusted().connect().await,
        "client certificate; give one",
    );

    let strangers = Tls::new();
    let [stranger, strangers_key] = ["cert.pem", "key.pem"].map(|name| strangers.file(name));
    let connecting = secured
        .trusted()
        .client_certificate(&stranger, &strangers_key);
    is_config_error(
        connecting.connect().await,
        "does not accept the client certificate",
    );
    // A key of another certificate is noticed before the handle connects.
    let connecting = secured.trusted().client_certificate(&stranger, &key);
    is_config_error(connecting.connect().await, "do not belong together");
    let connecting = secured.trusted().client_certificate(&stranger, &stranger);
    is_config_error(connecting.connect().await, "-----BEGIN PRIVATE KEY-----");
}

#[tokio::test]
async fn any_certificate_is_accepted_where_that_is_asked_for() {
    let secured = Secured::start("no").await;
    let insecure = format!("{}#insecure", secured.tls.url());
    works(Redis::connect(&insecure).await).await;
    let connecting = Redis::builder(secured.tls.url()).danger_accept_invalid_certificates();
    works(connecting.connect().await).await;
    let client = redis::Client::open(insecure).unwrap();
    works(Redis::from_client(client).await).await;
}

#[tokio::test]
async fn certificates_that_would_not_be_used_are_refused() {
    let secured = Secured::start("no").await;
    let certificate = secured.tls.file("cert.pem");
    let connecting = Redis::builder(secured.server.url()).ca_certificate(&certificate);
    is_config_error(connecting.connect().await, "rediss://");
    // The certificates of a client of the crate `redis` cannot be read.
    let trust = TlsCertificates {
        client_tls: None,
        root_cert: Some(certificate),
    };
    let client = redis::Client::build_with_tls(secured.tls.url(), trust).unwrap();
    is_config_error(Redis::from_client(client).await, "Redis::builder");
}

#[tokio::test]
async fn a_silent_port_under_tls_may_be_one_without_tls() {
    let server = RedisServer::start().await;
    let url = format!("rediss://127.0.0.1:{}/", server.port());
    let error = within(7 * SECOND, Redis::connect(&url)).await.unwrap_err();
    assert!(error.to_string().contains("TLS port"), "{error}");
}

// This process has no other test that reads or installs the provider.
#[tokio::test]
async fn the_crypto_provider_of_the_process_is_neither_installed_nor_used() {
    let secured = Secured::start("no").await;
    works(secured.trusted().connect().await).await;
    assert!(CryptoProvider::get_default().is_none());
    // Another library may install a provider that cannot do this handshake.
    let mut other = rustls::crypto::ring::default_provider();
    other.cipher_suites.clear();
    other.kx_groups.clear();
    other.install_default().expect("no provider is installed");
    works(secured.trusted().connect().await).await;
}

#[tokio::test]
async fn an_idle_connection_that_the_server_closes_is_noticed_under_tls() {
    let secured = Secured::start("no").await;
    close_idle_connections(&secured.server).await;
    let redis = secured.trusted().connect().await.unwrap().stream("s");
    works_after_pauses(&secured.server.url(), &redis).await;
}

/// Connects in a process whose system trusts the certificate in `SSL_CERT_FILE`.
#[tokio::test]
#[ignore = "a client process, which another test starts"]
async fn client_process() {
    if let Ok(url) = std::env::var("CAMPANILE_TEST_URL") {
        works(Redis::connect(&url).await).await;
    }
}

#[tokio::test]
async fn a_certificate_that_the_system_trusts_is_trusted() {
    let secured = Secured::start("no").await;
    let this = std::env::current_exe().unwrap();
    let client = tokio::process::Command::new(this)
        .args([
            "send::tls::client_process",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .env("CAMPANILE_TEST_URL", secured.tls.url())
        .env("SSL_CERT_FILE", secured.tls.dir().join("cert.pem"))
        .kill_on_drop(true)
        .output();
    let output = within(60 * SECOND, client).await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{}\n{said}", output.status);
    assert!(said.contains("1 passed"), "{said}");
}
