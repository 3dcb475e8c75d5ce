//! Tests of AsyncAPI documents, with the official parser.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use campanile::{
    Json, Router,
    contract::{ApiInfo, Event, Rpc, Task},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Installs the parser, and returns its directory. A directory with the same lock file is used again.
fn parser() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("asyncapi-parser");
    let lock = fs::read(source.join("package-lock.json")).unwrap();
    let done = target.join("installed-package-lock.json");
    if fs::read(&done).is_ok_and(|installed| installed == lock) {
        return target;
    }
    fs::create_dir_all(&target).unwrap();
    for file in ["package.json", "package-lock.json"] {
        fs::copy(source.join(file), target.join(file)).unwrap();
    }
    let flags = ["ci", "--ignore-scripts", "--no-audit", "--no-fund"];
    let npm = Command::new("npm")
        .args(flags)
        .current_dir(&target)
        .output();
    let npm = npm.expect("npm is not installed: apt-get install nodejs npm");
    let text = String::from_utf8_lossy(&npm.stderr);
    assert!(npm.status.success(), "npm: {text}");
    fs::write(done, lock).unwrap();
    target
}

/// Returns the lines of the parser about each of these documents.
fn complaints(documents: &[String]) -> Vec<Vec<String>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("parse.cjs");
    let mut node = Command::new("node")
        .arg(script)
        .arg(parser())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node is not installed: apt-get install nodejs npm");
    let input = serde_json::to_vec(documents).unwrap();
    node.stdin.take().unwrap().write_all(&input).unwrap();
    let output = node.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn document(app: &Router) -> String {
    let info = ApiInfo::new("A shop", "1.0.0").description("A test.");
    app.describe().asyncapi(&info).to_string()
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Order {
    id: u64,
    lines: Vec<Line>,
    note: Option<String>,
    payment: Payment,
    place: (f64, f64),
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Line {
    sku: String,
    /// Lines that belong to this one.
    #[serde(default)]
    parts: Vec<Line>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind")]
enum Payment {
    Cash,
    Card { number: String },
}

/// Contains itself, at the root of its schema.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Category {
    name: String,
    categories: Vec<Category>,
}

async fn any() {}

fn application() -> Router {
    let order: Task<Order> = Task::new("orders.create").about("Creates an order.");
    let price: Rpc<Order, Option<u32>> = Rpc::new("orders.price");
    let any_value: Event<serde_json::Value> = Event::new("orders.created");
    Router::new()
        .task(order.with_schema(), async |_: Json<Order>| {})
        .rpc(price.with_schema(), async |_: Json<Order>| Json(Some(1)))
        .event(Event::<Category>::new("categories").with_schema(), any)
        .event(Event::<Order>::new("orders.created").with_schema(), any)
        .event_sharded(any_value.with_schema(), any)
        .event(Event::<()>::new("tick").with_schema(), any)
}

fn odd_routes() -> Router {
    Router::new()
        .task("plain", any)
        .rpc("plain", async || "reply")
        .event("plain", any)
        .event_pattern("orders.*", any)
        .event_pattern("a[bc]?", any)
        .task("a/b~{c}?d=e#f", any)
        .task("grüße, 世界", any)
        .task("x".repeat(1024), any)
}

/// One process reads all documents, since its start takes most of the time.
#[test]
fn the_official_parser_accepts_the_documents() {
    let shop = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/shop/asyncapi.json");
    let broken = r#"{"asyncapi":"3.0.0","info":{"title":"A"},"channels":{}}"#;
    let documents = [
        broken.to_owned(),
        document(&application()),
        document(&odd_routes()),
        document(&Router::new()),
        fs::read_to_string(shop).unwrap(),
    ];
    let complaints = complaints(&documents);
    assert!(
        complaints[0][0].starts_with("error: info"),
        "{:?}",
        complaints[0]
    );
    for (document, complaints) in documents.iter().zip(&complaints).skip(1) {
        // The parser recommends fields such as a licence.
        let is_error = |line: &&String| line.starts_with("error");
        let errors: Vec<_> = complaints.iter().filter(is_error).collect();
        assert!(errors.is_empty(), "{errors:#?}\n{document}");
    }
}
