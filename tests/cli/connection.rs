//! Failures to connect. Each message comes within seconds, names the remedy, and shows no password.

use std::time::Instant;

use super::{
    support::{Options, Signal},
    *,
};

/// Runs some commands. Each must fail within 30 s, with these texts.
async fn fails_to_connect(url: &str, texts: &[&str]) {
    for line in [
        "stats",
        "stats --watch",
        "groups list",
        "consumers list",
        "dead list",
        "send task n",
        "tail stream",
        "tail events e",
    ] {
        let started = Instant::now();
        let ran = run(campanile_at(url, line)).await.ended_with(3);
        assert!(started.elapsed() < Duration::from_secs(30), "{line}");
        ran.tells(texts);
        assert!(!ran.stderr.contains("hunter2"), "{}", ran.stderr);
        assert_eq!(ran.text(), "", "{line}");
    }
}

#[tokio::test]
async fn a_missing_server_is_named_without_the_password() {
    let texts = ["error: cannot reach Redis at 127.0.0.1:1", "redis-server"];
    fails_to_connect("redis://:hunter2@127.0.0.1:1/", &texts).await;
}

#[tokio::test]
async fn a_wrong_and_a_missing_password_have_different_messages() {
    let server = RedisServer::with(Options::new().password("right")).await;
    let at = |login: &str| format!("redis://{login}127.0.0.1:{}/", server.port());
    fails_to_connect(
        &at(":hunter2@"),
        &["does not accept the user name or the password"],
    )
    .await;
    fails_to_connect(&at(""), &["Redis asks for a password"]).await;
    let create = "XGROUP CREATE app_stream app_group 0 MKSTREAM";
    server.command(&create.split(' ').collect::<Vec<_>>()).await;
    run(campanile(&server, "stats")).await.ended_with(0);
}

#[tokio::test]
async fn an_invalid_url_is_not_repeated() {
    let texts = [
        "the Redis URL cannot be read",
        "redis://user:password@host:port/db",
    ];
    fails_to_connect("http://user:hunter2@localhost/", &texts).await;
}

#[tokio::test]
async fn a_frozen_server_fails_a_command_within_seconds() {
    let server = RedisServer::start().await;
    server.signal(Signal::Stop);
    let ran = run(campanile(&server, "stats")).await.ended_with(3);
    ran.tells(&["cannot reach Redis at 127.0.0.1"]);
    server.signal(Signal::Cont);
}

#[tokio::test]
async fn a_missing_right_is_named() {
    let acl = "user few on >hunter2 ~other +ping";
    let server = RedisServer::with(Options::new().acl(acl)).await;
    let url = format!("redis://few:hunter2@127.0.0.1:{}/", server.port());
    for line in [
        "stats",
        "stats --watch",
        "groups list",
        "consumers list",
        "dead list",
        "dead purge --all --yes",
        "send task n",
        "send event n",
        "send rpc n --timeout 5s",
        "tail stream",
        "tail events e",
    ] {
        let ran = run(campanile_at(&url, line)).await.ended_with(1);
        ran.tells(&["error: ", "ACL SETUSER"]);
        assert!(!ran.stderr.contains("hunter2"), "{}", ran.stderr);
    }
}

#[tokio::test]
async fn the_rights_that_the_guide_names_are_enough() {
    let acl = "user stats on >pw ~app_stream ~{app_stream}:* +xlen +zcard +zrange +xinfo +xpending +xrange \
               +exists +time +evalsha +eval\n\
               user scaler on >pw ~app_stream ~{app_stream}:* +xlen +zcard +zcount +zrange +xinfo +xrange \
               +exists +time +evalsha +eval\n\
               user watcher on >pw ~app_stream ~{app_stream}:retry:* +xinfo\n\
               user reader on >pw ~app_stream ~{app_stream}:dead:* +xinfo +xlen +xrange +evalsha +eval\n\
               user keeper on >pw ~app_stream ~{app_stream}:dead:* ~{app_stream}:retry:* +xinfo +xlen +xrange \
               +xrevrange +xadd +xdel +evalsha +eval\n\
               user hearer on >pw &e &e.* +subscribe +psubscribe +ping +time";
    let server = RedisServer::with(Options::new().acl(acl)).await;
    let create = "XGROUP CREATE app_stream app_group 0 MKSTREAM";
    server.command(&create.split(' ').collect::<Vec<_>>()).await;
    for name in ["a", "b", "c"] {
        letter(&server, name, "page 7").await;
    }
    let ids = run(campanile(&server, "dead list --json")).await.json();
    let id = ids["letters"][0]["id"].as_str().expect("an id");
    for (user, line) in [
        ("stats", "stats"),
        ("stats", "groups list"),
        ("scaler", "scale"),
        ("watcher", "consumers list"),
        ("reader", "dead list"),
        ("reader", &format!("dead show {id}")),
        ("keeper", &format!("dead replay {id}")),
        ("keeper", "dead replay --name b"),
        ("keeper", "dead purge --all --yes"),
        // Zero events are enough to check the subscription.
        ("hearer", "tail events e --pattern e.* --count 0"),
    ] {
        let url = format!("redis://{user}:pw@127.0.0.1:{}/", server.port());
        run(campanile_at(&url, line)).await.ended_with(0);
    }
}

#[tokio::test]
async fn the_help_lists_the_exit_codes_and_no_password() {
    let help = |line: &'static str| run(campanile_at("redis://:hunter2@127.0.0.1:1/", line));
    for line in ["--help", "-h", "dead --help", "stats --help"] {
        let ran = help(line).await.ended_with(0);
        assert!(ran.text().contains("REDIS_URL"), "{line}: {}", ran.text());
        assert!(!ran.text().contains("hunter2"), "{line}: {}", ran.text());
    }
    let whole = help("--help").await;
    for text in ["Exit codes:", "130  Ctrl-C", "no connection to Redis"] {
        assert!(whole.text().contains(text), "{}", whole.text());
    }
    help("").await.ended_with(2).tells(&["Usage: campanile"]);
}

#[cfg(feature = "redis-rustls")]
mod tls {
    use super::*;
    use crate::support::tls::Tls;

    /// A server that asks for a client certificate.
    async fn secured() -> (RedisServer, Tls) {
        let tls = Tls::new();
        let server = RedisServer::with(Options::new().args(tls.args("yes"))).await;
        (server, tls)
    }

    #[tokio::test]
    async fn certificates_are_given_as_files() {
        let (_server, tls) = secured().await;
        let file = |name: &str| tls.dir().join(name).display().to_string();
        let (cert, key) = (file("cert.pem"), file("key.pem"));
        for line in [
            format!("send task n --ca {cert} --cert {cert} --key {key}"),
            format!("--insecure --cert {cert} --key {key} stats"),
        ] {
            run(campanile_at(&tls.url(), &line)).await.ended_with(0);
        }
        for (line, text) in [
            (
                format!("stats --ca {cert}"),
                "asks for a client certificate",
            ),
            ("stats".into(), "is not trusted"),
        ] {
            let ran = run(campanile_at(&tls.url(), &line)).await.ended_with(3);
            ran.tells(&[text]);
        }
    }

    #[tokio::test]
    async fn a_file_without_a_certificate_is_named_with_what_is_wanted() {
        let tls = Tls::new();
        let file = |name: &str| tls.dir().join(name).display().to_string();
        let (cert, key, other) = (file("cert.pem"), file("key.pem"), file("config"));
        let absent = file("absent.pem");
        let begins = "begins with -----BEGIN";
        for (line, texts) in [
            (format!("stats --ca {other}"), ["--ca ", &other, begins]),
            (format!("stats --ca {key}"), ["--ca ", &key, begins]),
            (
                format!("stats --ca {absent}"),
                ["--ca ", &absent, "cannot be read: "],
            ),
            (
                format!("stats --cert {cert} --key {other}"),
                ["--key ", &other, begins],
            ),
            (
                format!("stats --cert {cert}"),
                ["--cert", "--key", "belong together"],
            ),
        ] {
            let ran = run(campanile_at(&tls.url(), &line)).await.ended_with(2);
            ran.tells(&texts);
        }
        let line = format!("stats --ca {cert}");
        let ran = run(campanile_at("redis://:hunter2@127.0.0.1:1/", &line)).await;
        let ran = ran.ended_with(2);
        ran.tells(&["rediss://"]);
        assert!(!ran.stderr.contains("hunter2"), "{}", ran.stderr);
    }
}
