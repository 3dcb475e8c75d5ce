//! The image service in the test kit, and as a process in memory and on Redis.

#[path = "../../../tests/examples/collector.rs"]
mod collector;
#[allow(dead_code, reason = "the service is no example of cargo's")]
#[path = "../../../tests/examples/process.rs"]
mod process;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::{collections::BTreeSet, fs, process::Stdio, time::Duration};

use campanile::{
    Json,
    testing::{Harness, task},
    transport::memory::Memory,
};
use collector::{Collector, chain};
use example_images::{
    contracts::{CONVERT, Image, SIZE},
    work,
};
use process::SOON;
use serde_json::{Value, json};
use support::{
    Options, RedisServer, Signal, cluster::Cluster, raw::eventually, sentinel::SentinelGroup,
    tls::Tls, within,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    sync::mpsc,
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
    /// Its output.
    lines: mpsc::UnboundedReceiver<String>,
}

impl Running {
    async fn start(url: Option<String>, variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_example-images"));
        command.env("LISTEN", "127.0.0.1:0").env_remove("REDIS_URL");
        command.env("RUST_LOG", "warn").kill_on_drop(true);
        command.envs(variables.iter().copied());
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
        let (sender, received) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                drop(sender.send(line));
            }
        });
        let lines = received;
        Self {
            child,
            address,
            lines,
        }
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

    /// Ends the process as a deploy does.
    async fn stop(mut self) {
        Signal::Term.send(self.child.id().expect("it runs"));
        let ended = within(Duration::from_secs(30), self.child.wait()).await;
        assert!(ended.expect("a status").success());
    }

    async fn convert(&self, rows: usize) -> String {
        let image = json!({ "title": "a cat", "rows": vec![[0, 255]; rows] });
        let (status, answer) = self.api("POST /images", &image).await;
        assert_eq!(status, 202, "{answer}");
        answer["id"].as_str().expect("an id").to_owned()
    }

    /// Waits until both services have handled the event of a conversion.
    async fn announced(&mut self) {
        let mut services = BTreeSet::new();
        while services.len() < 2 {
            let line = within(SOON, self.lines.recv()).await;
            let line = line.expect("the service has not ended");
            let service = line.split_once(": ").expect("a service").0;
            services.insert(service.to_owned());
        }
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
    let sentinels = SentinelGroup::start().await;
    let cluster = Cluster::of_primaries().await;
    let tls = Tls::new();
    let _tls_server = RedisServer::with(Options::new().args(tls.args("no"))).await;
    let authority = tls.dir().join("cert.pem");
    let authority = [("CA", authority.to_str().expect("UTF-8"))];
    for (url, variables) in [
        (None, &[][..]),
        (Some(redis.url()), &[]),
        (Some(sentinels.url(0)), &[]),
        (Some(cluster.url()), &[]),
        (Some(tls.url()), &authority),
    ] {
        println!("{url:?}");
        let service = Running::start(url, variables).await;
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

        service.stop().await;
    }
}

#[test]
fn the_page_shows_lines_of_the_service() {
    let root = env!("CARGO_MANIFEST_DIR");
    let read = |file: &str| fs::read_to_string(format!("{root}/{file}")).expect("text");
    let without_spaces = |text: &str| text.split_whitespace().collect::<String>();
    let files = ["contracts", "lib", "main", "traces", "web", "work"];
    let files = files.map(|file| read(&format!("src/{file}.rs")));
    let source = files.concat() + &read("tests/images.rs");
    let lines = files.iter().map(|file| file.lines().count());
    let lines = lines.sum::<usize>().next_multiple_of(10);
    let page = read("../../docs/image-service.md");
    assert!(
        page.contains(&format!(" {lines} lines")),
        "it has {lines} lines"
    );
    let source = without_spaces(&source);
    let rows = page.lines().filter_map(|line| line.strip_prefix("| "));
    let rows: Vec<_> = rows
        .filter(|row| row.starts_with(|it: char| it.is_ascii_digit()))
        .collect();
    assert_eq!(rows.len(), 22);
    for row in rows {
        let row = row.replace("\\|", "|");
        let shown = row.split('`').skip(1).step_by(2);
        for shown in shown.filter(|it| it.contains(['(', ':']) && !it.contains("://")) {
            assert!(source.contains(&without_spaces(shown)), "{shown}");
        }
    }
}

#[tokio::test]
async fn the_trace_of_a_client_goes_through_http_and_the_queues() {
    let redis = RedisServer::start().await;
    for url in [None, Some(redis.url())] {
        let mut collector = Collector::start().await;
        let endpoint = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url)];
        let mut service = Running::start(url, &endpoint).await;
        let headers = format!(
            "x-api-key: {KEY}\r\n\
             traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
        );
        let image = json!({ "title": "a cat", "rows": [[0, 255]] }).to_string();
        let (status, answer) = service.http("POST /images", &headers, &image).await;
        assert_eq!(status, 202, "{answer}");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        service
            .reaches(answer["id"].as_str().expect("an id"), "done")
            .await;
        service.announced().await;
        service.stop().await;

        let spans = collector.spans();
        let names = [
            "POST /images",
            "send images.convert",
            "process images.convert",
            "send image.converted",
            "process image.converted",
        ];
        let first = chain(&spans, &names);
        assert_eq!(
            first.parent_span_id,
            0xb7ad_6b71_6920_3331_u64.to_be_bytes()
        );
        let trace = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes();
        let handled = spans.iter().filter(|span| span.name == names[4]);
        assert!(handled.clone().all(|span| span.trace_id == trace));
        assert_eq!(handled.count(), 2, "both services have handled it");
    }
}
