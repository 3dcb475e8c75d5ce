//! Runs each recipe as its comment says, against real servers.

#[path = "../../../tests/examples/collector.rs"]
mod collector;
#[path = "../../../tests/examples/process.rs"]
mod process;
#[path = "../../../tests/support/mod.rs"]
mod support;

use std::{collections::BTreeMap, fs, process::Stdio, time::Duration};

use collector::{Collector, chain};
use process::{SOON, example, output, shows};
use support::{
    Options, RedisServer, Signal, cluster::Cluster, raw::eventually, sentinel::SentinelGroup,
    tls::Tls, within,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
};

/// Runs a recipe to its end. Returns its output.
async fn run(name: &str, url: &str) -> String {
    let mut recipe = example(name);
    recipe.env("REDIS_URL", url);
    output(recipe).await
}

/// A recipe that runs until a signal.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(mut recipe: Command) -> Self {
        let recipe = recipe.env("LISTEN", "127.0.0.1:0").stdout(Stdio::piped());
        let mut child = recipe.spawn().expect("the recipe can be started");
        let output = child.stdout.take().expect("its output is a pipe");
        let lines = BufReader::new(output).lines();
        Self { child, lines }
    }

    async fn line(&mut self) -> String {
        let line = within(SOON, self.lines.next_line()).await;
        line.expect("text").expect("the recipe has not ended")
    }

    /// The address of a recipe that serves HTTP.
    async fn address(&mut self) -> String {
        let line = self.line().await;
        let address = line.strip_prefix("listening on ").expect("an address");
        address.to_owned()
    }

    fn signal(&self, signal: Signal) {
        signal.send(self.child.id().expect("it runs"));
    }

    async fn ended(mut self) -> Vec<String> {
        let mut rest = Vec::new();
        while let Some(line) = within(SOON, self.lines.next_line()).await.expect("text") {
            rest.push(line);
        }
        let status = within(SOON, self.child.wait()).await.expect("a status");
        assert!(status.success(), "{status}: {rest:?}");
        rest
    }
}

/// Sends an HTTP request. Returns the status and the body.
async fn http(address: &str, request: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let length = body.len();
    let request = format!(
        "{request} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut response = String::new();
    let read = stream.read_to_string(&mut response);
    within(SOON, read).await.expect("a response");
    let (head, body) = response.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).expect("a status");
    (status.parse().expect("a number"), body.to_owned())
}

#[tokio::test]
async fn a_follow_up_is_sent_once_although_its_task_fails_after_sending_it() {
    let server = RedisServer::start().await;
    let output = run("follow_up", &server.url()).await;
    shows(&output, &["attempt 1 fails", "order 7: placed"]);
    assert_eq!(output.matches("its invoice is made").count(), 1, "{output}");
}

#[tokio::test]
async fn events_wait_for_each_service() {
    let server = RedisServer::start().await;
    let output = run("durable_events", &server.url()).await;
    shows(&output, &["billing: order 7", "shipping: order 7"]);
}

#[tokio::test]
async fn urgent_messages_overtake_those_that_wait() {
    let server = RedisServer::start().await;
    let output = run("priorities", &server.url()).await;
    assert!(output.starts_with("sent: password reset\n"), "{output}");
    assert_eq!(output.lines().count(), 4, "{output}");
}

#[tokio::test]
async fn the_backlog_of_a_large_tenant_does_not_delay_a_small_one() {
    let server = RedisServer::start().await;
    let output = run("tenants", &server.url()).await;
    let place = output.lines().position(|line| line.contains("small"));
    assert!(place.expect("it is imported") < 6, "{output}");
    assert_eq!(output.lines().count(), 21, "{output}");
}

#[tokio::test]
async fn one_process_answers_http_and_works() {
    let server = RedisServer::start().await;
    let mut recipe = example("web_and_worker");
    recipe.env("REDIS_URL", server.url());
    let mut recipe = Running::start(recipe);
    let address = recipe.address().await;
    assert_eq!(http(&address, "POST /orders", "a book").await.0, 202);
    assert_eq!(recipe.line().await, "placed: a book");
    recipe.signal(Signal::Int);
    assert_eq!(recipe.ended().await, ["stopped"]);
}

#[tokio::test]
async fn a_job_is_started_followed_and_cancelled_over_http() {
    let server = RedisServer::start().await;
    let mut recipe = example("job_api");
    recipe.env("REDIS_URL", server.url());
    let mut recipe = Running::start(recipe);
    let address = recipe.address().await;
    let (_, done) = http(&address, "POST /imports", "").await;
    let (_, dropped) = http(&address, "POST /imports", "").await;
    eventually(
        || async {
            let (_, status) = http(&address, &format!("GET /imports/{dropped}"), "").await;
            status.starts_with("running Some((").then_some(())
        },
        SOON,
    )
    .await;
    let cancelled = http(&address, &format!("DELETE /imports/{dropped}"), "").await;
    assert_eq!(cancelled, (200, "true".into()));
    eventually(
        || async {
            let (_, status) = http(&address, &format!("GET /imports/{done}"), "").await;
            (status == "done Some((50, 50)) Some(\"50 rows\")").then_some(())
        },
        SOON,
    )
    .await;
    let (_, status) = http(&address, &format!("GET /imports/{dropped}"), "").await;
    assert!(status.starts_with("cancelled "), "{status}");
    assert_eq!(http(&address, "GET /imports/none", "").await.0, 404);
    recipe.signal(Signal::Term);
    assert!(recipe.ended().await.is_empty());
}

#[tokio::test]
async fn tls_trusts_a_private_authority_alone() {
    let tls = Tls::new();
    let dir = tls.dir();
    let (certificate, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let certificate = certificate.to_str().expect("UTF-8");
    let key = key.to_str().expect("UTF-8");
    let _server = RedisServer::with(Options::new().args(tls.args("yes"))).await;
    let mut recipe = example("own_ca");
    recipe.env("REDIS_URL", tls.url()).env("CA", certificate);
    recipe.env("CERT", certificate).env("KEY", key);
    shows(&output(recipe).await, &["pong over TLS"]);
    let mut stranger = example("own_ca");
    stranger.env("REDIS_URL", tls.url());
    let refused = within(SOON, stranger.output()).await.expect("it starts");
    assert!(!refused.status.success());
    let text = String::from_utf8_lossy(&refused.stderr).to_lowercase();
    assert!(text.contains("certificate"), "{text}");
}

#[tokio::test]
async fn a_worker_and_its_client_follow_a_failover() {
    let group = SentinelGroup::start().await;
    let mut recipe = example("sentinel");
    recipe.env("REDIS_URL", group.url(0)).env("TASKS", "150");
    let recipe = Running::start(recipe);
    tokio::time::sleep(Duration::from_millis(800)).await;
    group.fail_over().await;
    let output = recipe.ended().await;
    assert_eq!(output.last().expect("a line"), "150 tasks handled");
}

#[tokio::test]
async fn the_changes_of_each_customer_keep_their_order() {
    let cluster = Cluster::of_primaries().await;
    let output = run("partitions", &cluster.url()).await;
    let mut changes = BTreeMap::<_, Vec<_>>::new();
    for line in output.lines() {
        let (customer, change) = line.split_once(": ").expect("a change");
        changes.entry(customer).or_default().push(change);
    }
    assert_eq!(changes.len(), 3, "{output}");
    for (customer, changes) in changes {
        let all = ["opened", "paid in", "paid out", "closed"];
        assert_eq!(changes, all, "{customer}");
    }
}

#[tokio::test]
async fn all_workers_end_together_after_what_runs() {
    let server = RedisServer::start().await;
    let mut recipe = example("shutdown");
    recipe.env("REDIS_URL", server.url());
    let recipe = Running::start(recipe);
    eventually(
        || async {
            let mut pending = 0;
            for stream in ["mail", "images", "reports"] {
                let summary = server.try_command(&["XPENDING", stream, "app_group"]).await;
                let summary: Option<(u64, Option<String>, Option<String>, redis::Value)> =
                    summary.ok().and_then(|it| redis::from_redis_value(it).ok());
                pending += summary.map_or(0, |it| it.0);
            }
            (pending == 3).then_some(())
        },
        SOON,
    )
    .await;
    recipe.signal(Signal::Term);
    let output = recipe.ended().await;
    assert_eq!((&*output[0], &*output[4]), ("stopping", "stopped"));
    assert_eq!(output.len(), 5, "{output:?}");
}

#[tokio::test]
async fn a_large_file_is_deleted_after_its_task() {
    let server = RedisServer::start().await;
    let output = run("large_payloads", &server.url()).await;
    shows(&output, &["20971520 bytes", "deleted the file"]);
}

#[tokio::test]
async fn a_nightly_report_is_planned_and_made() {
    let server = RedisServer::start().await;
    let output = run("nightly", &server.url()).await;
    shows(
        &output,
        &["the next 3 nights are planned", "made the report of all"],
    );
}

#[tokio::test]
async fn the_span_of_a_worker_is_a_child_of_the_one_that_sent_its_task() {
    let server = RedisServer::start().await;
    let mut collector = Collector::start().await;
    let mut recipe = example("traces");
    recipe.env("REDIS_URL", server.url());
    recipe.env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url);
    shows(&output(recipe).await, &["order 7: placed"]);
    let names = [
        "checkout",
        "send orders.place",
        "process orders.place",
        "charge",
    ];
    let spans = collector.spans();
    let first = chain(&spans, &names);
    assert!(first.parent_span_id.is_empty(), "{first:?}");
}

#[tokio::test]
async fn both_releases_send_and_work_during_a_deploy() {
    let server = RedisServer::start().await;
    let output = run("versions", &server.url()).await;
    let lines: Vec<_> = output.lines().collect();
    let paid = [
        "old worker: 8 euros",
        "new worker: 700 cents, EUR",
        "new worker: 900 cents, EUR",
    ];
    assert_eq!(lines, paid);
}

#[test]
fn each_recipe_is_short_and_on_the_page() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let page = fs::read_to_string(format!("{root}/docs/recipes.md")).expect("the page");
    let recipes = format!("{}/examples", env!("CARGO_MANIFEST_DIR"));
    for recipe in fs::read_dir(recipes).expect("the recipes") {
        let path = recipe.expect("a file").path();
        let text = fs::read_to_string(&path).expect("text");
        let lines = text.lines().map(str::trim_start);
        let code = lines.filter(|line| !line.is_empty() && !line.starts_with("//"));
        let lines = code.count();
        assert!(lines <= 60, "{} has {lines} lines", path.display());
        let file = path.file_name().and_then(|name| name.to_str());
        let file = file.expect("a name");
        assert!(
            page.contains(&format!("[`{file}`](")),
            "{file} is not on the page"
        );
    }
}
