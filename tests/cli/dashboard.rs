//! `campanile dashboard`

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::Child,
};

use super::*;
use crate::support::Signal;

/// Starts a dashboard with these arguments. Returns its process and its address.
pub(super) async fn start(server: &RedisServer, arguments: &str) -> (Child, String) {
    let line = format!("dashboard --listen 127.0.0.1:0 {arguments}");
    let mut command = campanile(server, &line);
    let mut child = command.stderr(Stdio::inherit()).spawn().expect("it starts");
    let stdout = child.stdout.take().expect("it is piped");
    let mut line = String::new();
    let mut stdout = BufReader::new(stdout);
    let read = stdout.read_line(&mut line);
    within(SOON, read)
        .await
        .map(drop)
        .expect("it says where it is");
    let address = line
        .trim()
        .trim_start_matches("the dashboard is at http://");
    (child, address.trim_end_matches('/').to_owned())
}

/// Sends a `GET`, and returns the whole response.
async fn get(address: &str, host: &str, target: &str) -> String {
    let head = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    request(address, &head).await
}

/// Sends a request, and returns the whole response.
pub(super) async fn request(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it reads");
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await.expect("it answers");
    String::from_utf8_lossy(&response).into_owned()
}

#[tokio::test]
async fn the_dashboard_answers_until_it_is_ended() {
    let server = RedisServer::start().await;
    group(&server, "app_stream", "app_group").await;
    letter(&server, "mail.send", "{}").await;
    let (mut child, address) = start(&server, "--also other").await;
    let page = get(&address, &address, "/").await;
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    for part in [
        "app_stream",
        "other",
        "content-security-policy: default-src 'none'",
    ] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    let dead = get(&address, &address, "/dead?stream=app_stream").await;
    assert!(dead.contains("the printer is on fire"), "{dead}");
    // A web site whose name points to this machine.
    let foreign = get(&address, "evil.example", "/").await;
    assert!(foreign.starts_with("HTTP/1.1 421"), "{foreign}");
    // A live view that is open does not hold up the end.
    let mut live = TcpStream::connect(&address).await.expect("it listens");
    let request = format!("GET /live?of=%2F HTTP/1.1\r\nhost: {address}\r\n\r\n");
    live.write_all(request.as_bytes()).await.expect("it reads");
    live.read_u8().await.expect("it answers");
    Signal::Term.send(child.id().expect("it runs"));
    let ended = within(SOON, child.wait()).await.expect("it ends");
    assert_eq!(ended.code(), Some(0));
}

#[tokio::test]
async fn an_address_that_others_reach_needs_a_flag() {
    let server = RedisServer::start().await;
    let refused = run(campanile(&server, "dashboard --listen 0.0.0.0:0")).await;
    refused
        .ended_with(2)
        .tells(&["no login", "--allow-unauthenticated"]);
    let mistake = run(campanile(&server, "dashboard --listen nowhere")).await;
    mistake.ended_with(2);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound");
    let line = format!("dashboard --listen {address}");
    let taken = run(campanile(&server, &line)).await;
    taken.ended_with(1).tells(&["cannot listen on"]);
}
