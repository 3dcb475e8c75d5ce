//! The image service in the test kit, and as a process in memory and on Redis.

#[allow(dead_code, reason = "the service is no example of cargo's")]
#[path = "../../../tests/examples/process.rs"]
mod process;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::{process::Stdio, time::Duration};

use campanile::{
    Json,
    testing::{Harness, task},
    transport::memory::Memory,
};
use example_images::{
    contracts::{CONVERT, Image, SIZE},
    work,
};
use process::SOON;
use serde_json::{Value, json};
use support::{RedisServer, Signal, raw::eventually, within};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
};

const KEY: &str = "key-of-ann";

fn image(rows: usize) -> Image {
    Image {
        title: "a cat".into(),
        rows: vec![vec![0, 255]; rows],
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_is_converted_and_announced_in_either_version() {
    let memory = Memory::new();
    let limit = memory.limit("conversions").expect("a limit");
    let mut service = Harness::over(memory);
    service.serve(work::app(limit)).await;
    let client = service.client();
    let tenant = |name| client.enqueue(CONVERT, image(3)).header("x-tenant", name);
    tenant("ann").await.expect("it is sent");
    let old = client.enqueue("images.convert", Json(json!({ "rows": [[1]] })));
    old.header("x-tenant", "bob").await.expect("it is sent");
    service.settled().await;
    service.assert_acknowledged(task("images.convert").times(2));
    assert_eq!(client.call(SIZE, image(3)).await.expect("a reply"), 6);
}

/// The service as a process.
struct Running {
    child: Child,
    address: String,
}

impl Running {
    async fn start(url: Option<String>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_example-images"));
        command.env("LISTEN", "127.0.0.1:0").env_remove("REDIS_URL");
        command.env("RUST_LOG", "warn").kill_on_drop(true);
        if let Some(url) = url {
            command.env("REDIS_URL", url);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let line = within(SOON, lines.next_line()).await.expect("text");
        let address = line
            .as_deref()
            .and_then(|it| it.strip_prefix("listening on "));
        let address = address.expect("an address").to_owned();
        // The pipe must not become full.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { child, address }
    }

    /// Sends an HTTP request with these further headers. Returns the status and the body.
    async fn http(&self, request: &str, headers: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address)
            .await
            .expect("a connection");
        let length = body.len();
        let request = format!(
            "{request} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut response = Vec::new();
        let read = stream.read_to_end(&mut response);
        within(SOON, read).await.expect("a response");
        let response = String::from_utf8_lossy(&response);
        let (head, body) = response.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).expect("a status");
        (status.parse().expect("a number"), body.to_owned())
    }

    async fn api(&self, request: &str, body: &Value) -> (u16, Value) {
        let headers = format!("x-api-key: {KEY}\r\n");
        let (status, body) = self.http(request, &headers, &body.to_string()).await;
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    async fn convert(&self, rows: usize) -> String {
        let image = json!({ "title": "a cat", "rows": vec![[0, 255]; rows] });
        let (status, answer) = self.api("POST /images", &image).await;
        assert_eq!(status, 202, "{answer}");
        answer["id"].as_str().expect("an id").to_owned()
    }

    async fn reaches(&self, id: &str, state: &str) -> Value {
        let is_met = || async {
            let (_, status) = self.api(&format!("GET /images/{id}"), &Value::Null).await;
            (status["state"] == state).then_some(status)
        };
        eventually(is_met, SOON).await
    }
}

#[tokio::test]
async fn images_are_converted_sized_and_cancelled_over_http() {
    let redis = RedisServer::start().await;
    for url in [None, Some(redis.url())] {
        let mut service = Running::start(url).await;
        let id = service.convert(2).await;
        let done = service.reaches(&id, "done").await;
        assert_eq!(done["result"], json!([[255, 0], [255, 0]]));
        assert_eq!(done["progress"], json!([2, 2]));

        let id = service.convert(1000).await;
        service.reaches(&id, "running").await;
        let cancelled = service
            .api(&format!("DELETE /images/{id}"), &Value::Null)
            .await;
        assert_eq!(cancelled, (200, json!(true)));
        service.reaches(&id, "cancelled").await;

        let size = json!({ "title": "", "rows": [[1, 2, 3]] });
        assert_eq!(
            service.api("POST /images/size", &size).await,
            (200, json!(3))
        );
        assert_eq!(service.http("POST /images", "", "{}").await.0, 401);
        let (_, metrics) = service.http("GET /metrics", "", "").await;
        assert!(metrics.contains("images.convert"), "{metrics}");
        let (status, page) = service.http("GET /ops", "", "").await;
        assert!(status == 200 && page.contains("images"), "{status} {page}");

        Signal::Term.send(service.child.id().expect("it runs"));
        let ended = within(Duration::from_secs(30), service.child.wait()).await;
        assert!(ended.expect("a status").success());
    }
}
