//! The backlogs of streams over HTTP, and the board that shows them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use campanile::{
    Client, Error,
    http_bridge::{Backlogs, Body},
    transport::{Interest, Transport, memory::Memory},
};
use http::{Method, Request, Response};
use serde_json::Value;
use tower::ServiceExt;

use super::text;

async fn request(service: &Backlogs, method: Method, uri: &str) -> Response<Body> {
    let request = Request::builder().method(method).uri(uri).body(()).unwrap();
    service.clone().oneshot(request).await.unwrap()
}

async fn json(service: &Backlogs, uri: &str) -> (u16, Value) {
    let response = request(service, Method::GET, uri).await;
    let status = response.status().as_u16();
    (
        status,
        serde_json::from_str(&text(response.into_body()).await).unwrap(),
    )
}

/// Makes the service for the backlogs of two streams: one with three tasks and a worker, and an
/// empty one whose name needs escaping.
async fn service() -> (Backlogs, impl Sized) {
    let memory = Memory::new().stream("orders");
    let worker = memory.clone().open(Interest::stream()).await.unwrap();
    let client = Client::new(memory.clone());
    for _ in 0..2 {
        client.enqueue("n", "").await.unwrap();
    }
    let soon = client.enqueue("n", "").delay(Duration::from_secs(10));
    soon.await.unwrap();
    let other = memory.clone().stream("other");
    let service = Backlogs::new()
        .stream("orders", move || memory.backlog())
        .stream("a \"b\"\\ c&d\n", move || other.backlog());
    (service, worker)
}

fn with_broken(service: Backlogs) -> Backlogs {
    service.stream("broken", async || {
        Err(Error::disconnected("10.0.0.7 is away"))
    })
}

#[tokio::test(start_paused = true)]
async fn a_backlog_is_json_with_known_fields() {
    let (service, _worker) = service().await;
    let (status, found) = json(&service, "/backlog?stream=orders").await;
    assert_eq!((status, &found["total"]), (200, &3.into()));
    assert_eq!(
        (&found["waiting"], &found["workers"]),
        (&2.into(), &1.into())
    );
    assert_eq!(
        (&found["delayed"], &found["due_soon"]),
        (&1.into(), &1.into())
    );
    let (status, found) = json(&service, "/?x=1&stream=a+%22b%22%5C%20c%26d%0A").await;
    assert_eq!((status, &found["total"]), (200, &0.into()));
    let (status, all) = json(&service, "/").await;
    let names = all["backlogs"].as_array().unwrap().iter();
    let names: Vec<_> = names.map(|it| it["stream"].as_str().unwrap()).collect();
    assert_eq!((status, &*names), (200, &["a \"b\"\\ c&d\n", "orders"][..]));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_stream_is_404_and_one_that_cannot_be_read_is_503() {
    let (service, _worker) = service().await;
    let service = with_broken(service).stream("slow", std::future::pending);
    for unknown in ["?stream=order", "?stream=", "?stream=%ff"] {
        let (status, found) = json(&service, &format!("/{unknown}")).await;
        assert_eq!((status, &found["code"]), (404, &"not_found".into()));
    }
    for broken in ["?stream=broken", "?stream=slow", ""] {
        let (status, found) = json(&service, &format!("/{broken}")).await;
        assert_eq!((status, &found["code"]), (503, &"unread".into()));
        assert!(!found.to_string().contains("10.0.0.7"), "{found}");
    }
    let head = request(&service, Method::HEAD, "/?stream=orders").await;
    assert_eq!(head.status(), 200);
    assert_eq!(text(head.into_body()).await, "");
    let post = request(&service, Method::POST, "/").await;
    assert_eq!(
        (post.status().as_u16(), &post.headers()["allow"]),
        (405, &"GET, HEAD".parse().unwrap())
    );
}

/// The samples of a text for Prometheus by their names and labels. Panics unless the text is valid
/// in version 0.0.4: each metric has a `HELP` line, a `TYPE` line, and then all its samples; names,
/// labels and values are well formed; the text ends with a line feed.
fn parsed(text: &str) -> BTreeMap<(String, Vec<(String, String)>), f64> {
    let is_name = |name: &str| {
        let mut bytes = name.bytes();
        let first = |it: u8| it.is_ascii_alphabetic() || b"_:".contains(&it);
        bytes.next().is_some_and(first) && bytes.all(|it| first(it) || it.is_ascii_digit())
    };
    assert!(text.ends_with('\n'), "no line feed at the end");
    let (mut samples, mut seen, mut current) = (BTreeMap::new(), BTreeSet::new(), "");
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, _) = help.split_once(' ').expect("a help has a text");
            assert!(is_name(name) && seen.insert(name), "{name} is there twice");
            assert_eq!(lines.next(), Some(&*format!("# TYPE {name} gauge")));
            current = name;
            continue;
        }
        let (name, rest) = line.split_once('{').expect("labels");
        assert_eq!(name, current, "a sample without its type");
        let (mut labels, mut rest) = (Vec::new(), rest);
        loop {
            let (label, value) = rest.split_once("=\"").expect("a label has a value");
            assert!(is_name(label) && !label.contains(':'), "{label}");
            let (mut text, mut chars) = (String::new(), value.char_indices());
            let end = loop {
                match chars.next().expect("a value ends") {
                    (at, '"') => break at,
                    (_, '\\') => text.push(match chars.next().expect("an escape ends").1 {
                        'n' => '\n',
                        it @ ('\\' | '"') => it,
                        it => panic!("\\{it} is no escape"),
                    }),
                    (_, it) => text.push(it),
                }
            };
            labels.push((label.to_owned(), text));
            let after = &value[end + 1..];
            match after.strip_prefix(',') {
                Some(more) => rest = more,
                None => break rest = after,
            }
        }
        let value = rest.strip_prefix("} ").expect("a value behind the labels");
        let known = samples.insert((name.to_owned(), labels), value.parse().expect("a number"));
        assert_eq!(known, None, "{line} is there twice");
    }
    samples
}

#[tokio::test(start_paused = true)]
async fn prometheus_reads_all_backlogs_and_which_cannot_be_read() {
    let (service, _worker) = service().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let service = with_broken(service).prometheus();
    let response = request(&service, Method::GET, "/metrics").await;
    let content_type = &response.headers()["content-type"];
    assert_eq!(content_type, "text/plain; version=0.0.4");
    let samples = parsed(&text(response.into_body()).await);
    let of = |name: &str, labels: &[(&str, &str)]| {
        let labels = labels
            .iter()
            .map(|(label, value)| ((*label).into(), (*value).into()));
        samples
            .get(&(format!("campanile_backlog_{name}"), labels.collect()))
            .copied()
    };
    let orders = ("stream", "orders");
    assert_eq!(of("messages", &[orders, ("state", "waiting")]), Some(2.0));
    assert_eq!(of("messages", &[orders, ("state", "delayed")]), Some(1.0));
    assert_eq!(of("total", &[orders]), Some(3.0));
    assert_eq!(of("oldest_waiting_seconds", &[orders]), Some(1.5));
    assert_eq!(of("workers", &[("stream", "a \"b\"\\ c&d\n")]), Some(0.0));
    assert_eq!(of("up", &[orders]), Some(1.0));
    assert_eq!(of("up", &[("stream", "broken")]), Some(0.0));
    assert_eq!(of("total", &[("stream", "broken")]), None);
    let empty = request(&Backlogs::new().prometheus(), Method::GET, "/").await;
    assert_eq!(text(empty.into_body()).await, "");
}

#[tokio::test(start_paused = true)]
async fn the_board_for_grafana_shows_only_metrics_that_exist() {
    let board = include_str!("../../../docs/grafana/campanile.json");
    let board: Value = serde_json::from_str(board).expect("the board is JSON");
    assert!(board["schemaVersion"].as_u64().is_some() && board["uid"] == "campanile");
    let (service, _worker) = service().await;
    let response = request(&service.prometheus(), Method::GET, "/").await;
    let samples = parsed(&text(response.into_body()).await);
    let mut exist: BTreeSet<String> = samples.into_keys().map(|(name, _)| name).collect();
    // The names of the layer's metrics, as an exporter for Prometheus writes them.
    let layer = include_str!("../../../middleware/src/metrics/mod.rs");
    let consts = layer
        .lines()
        .filter_map(|line| line.strip_prefix("pub const "));
    for name in consts.filter_map(|line| line.split_once(": &str = \"")?.1.strip_suffix("\";")) {
        exist.insert(name.replace('.', "_"));
        exist.insert(format!("{}_bucket", name.replace('.', "_")));
    }
    let (mut used, mut places) = (BTreeSet::new(), BTreeSet::new());
    let panels = board["panels"].as_array().expect("panels");
    for panel in panels {
        assert!(panel["title"].is_string() && panel["type"].is_string());
        let place = &panel["gridPos"];
        assert!(places.insert(place.to_string()), "two panels at {place}");
        for target in panel["targets"].as_array().expect("targets") {
            let query = target["expr"].as_str().expect("a query");
            let brackets =
                |open, close| query.matches(open).count() == query.matches(close).count();
            assert!(
                brackets('(', ')') && brackets('{', '}') && brackets('[', ']'),
                "{query}"
            );
            let is_part = |it: char| it.is_ascii_alphanumeric() || it == '_';
            let words = query.split(|it| !is_part(it));
            let names =
                words.filter(|it| it.starts_with("campanile_") || it.starts_with("messaging_"));
            let before = used.len();
            used.extend(names.map(str::to_owned));
            assert!(
                used.len() > before || used.iter().any(|it| query.contains(it)),
                "{query}"
            );
        }
    }
    let unknown: Vec<_> = used.difference(&exist).collect();
    assert!(unknown.is_empty(), "{unknown:?} of {exist:?}");
    for name in exist
        .iter()
        .filter(|it| it.starts_with("campanile_backlog"))
    {
        assert!(used.contains(name), "{name} is not on the board");
    }
}
