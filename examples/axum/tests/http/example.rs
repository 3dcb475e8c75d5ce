//! Tests of the example over HTTP and a real Redis.

use std::{
    collections::HashMap,
    net::SocketAddr,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::support::{RedisServer, Signal, raw::eventually};

const SOON: Duration = Duration::from_secs(60);

/// A running process of the example.
struct Process {
    child: Child,
    address: SocketAddr,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    async fn start(server: &RedisServer) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_example-axum"))
            .env("REDIS_URL", server.url())
            .env("LISTEN", "127.0.0.1:0")
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the program can be started");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(SOON, lines.next_line())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let address = line.strip_prefix("listening on ").unwrap().parse().unwrap();
        Self {
            child,
            address,
            lines,
        }
    }

    fn terminate(&self) {
        Signal::Term.send(self.child.id().expect("the program runs"));
    }

    /// Waits until the process has ended successfully. Returns its output.
    async fn ended(mut self) -> Vec<String> {
        let mut printed = Vec::new();
        let all = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                printed.push(line);
            }
            self.child.wait().await.unwrap()
        };
        let status = timeout(SOON, all)
            .await
            .expect("the program did not end in time");
        assert!(status.success(), "{status}: {printed:#?}");
        printed
    }
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{}", self.body))
    }
}

/// Sends one request over a new connection. Fails if the connection does.
async fn ask(
    address: SocketAddr,
    request: http::request::Builder,
    body: impl Into<bytes::Bytes>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = request
        .header("host", "example")
        .header("connection", "close");
    let response = sender
        .send_request(request.body(Full::new(body.into()))?)
        .await?;
    let (head, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    connection.abort();
    Ok(Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: String::from_utf8(body.into())?,
    })
}

async fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, Request::get(path), "").await.unwrap()
}

async fn post(address: SocketAddr, path: &str, body: &'static str) -> Answer {
    let request = Request::post(path).header("content-type", "application/json");
    ask(address, request, body).await.unwrap()
}

#[tokio::test]
async fn requests_become_messages_and_messages_requests() {
    let server = RedisServer::start().await;
    let process = Process::start(&server).await;
    let address = process.address;
    eventually(
        || async { (get(address, "/readyz").await.status == 200).then_some(()) },
        SOON,
    )
    .await;
    assert_eq!(get(address, "/healthz").await.status, 200);

    // The handlers of the application answer.
    let answer = post(address, "/orders", r#"{"id":1,"title":"Emma"}"#).await;
    assert_eq!(answer.status, 202);
    assert!(answer.json()["id"].as_str().unwrap().contains('-'));
    assert_eq!(answer.headers["x-request-id"].len(), 36);
    let answer = get(address, "/users/42").await;
    assert_eq!(
        (answer.status, answer.json()),
        (200, json!({ "id": 42, "name": "Alice" }))
    );
    let answer = get(address, "/users/7").await;
    assert_eq!(answer.status, 404);
    assert_eq!(answer.json()["detail"], "no user 7");
    // Requests at the gateway become messages, some of them for an axum router behind the worker.
    let request = || Request::post("/messages/orders/create").header("idempotency-key", "2");
    let body = r#"{"id":2,"title":"Persuasion"}"#;
    let first = ask(address, request(), body).await.unwrap();
    let second = ask(address, request(), body).await.unwrap();
    assert_eq!((first.status, second.status), (202, 202));
    assert_eq!(
        first.headers["campanile-id"],
        second.headers["campanile-id"]
    );
    let answer = post(address, "/messages/price/quote", r#"{"books":3}"#).await;
    assert_eq!(
        (answer.status, answer.json()),
        (200, json!({ "cents": 2700 }))
    );
    assert_eq!(answer.headers["content-type"], "application/json");
    let answer = post(address, "/messages/price/quote", "no JSON").await;
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (400, &json!("invalid"))
    );
    assert_eq!(
        post(address, "/messages/users/delete", "").await.status,
        404
    );
    assert_eq!(get(address, "/messages/price/quote").await.status, 405);
    let long = bytes::Bytes::from(vec![b'x'; 3 * 1024 * 1024]);
    let long = ask(address, Request::post("/messages/news"), long).await;
    // The server may close the connection before it has read the whole body, but must not accept
    // it.
    assert!(long.map_or(true, |answer| answer.status == 413));

    // The worker has answered, so its subscription to events is confirmed.
    assert_eq!(post(address, "/news", "a new book").await.status, 202);
    let metrics = eventually(
        || async {
            let metrics = get(address, "/metrics").await.body;
            let all = [
                "campanile_orders_handled_total 2",
                "campanile_events_total 1",
            ];
            all.iter()
                .all(|line| metrics.contains(line))
                .then_some(metrics)
        },
        SOON,
    )
    .await;
    for line in [
        "# TYPE campanile_messages_sent_total counter",
        "campanile_group_lag{group=\"app_group\"} 0",
        "campanile_group_consumers{group=\"app_group\"} 1",
    ] {
        assert!(metrics.contains(line), "{line:?} is not in\n{metrics}");
    }

    process.terminate();
    let printed = process.ended().await;
    for line in [
        "task   orders.create: 1 \"Emma\"",
        "task   orders.create: 2 \"Persuasion\"",
        "event  news: a new book",
    ] {
        let times = printed.iter().filter(|printed| *printed == line).count();
        assert_eq!(times, 1, "{line:?} in {printed:#?}");
    }
}

#[tokio::test]
async fn without_redis_it_is_alive_and_not_ready() {
    let server = RedisServer::start().await;
    let process = Process::start(&server).await;
    let address = process.address;
    // The worker must run before the server ends, or it would end with an error.
    assert_eq!(get(address, "/users/42").await.status, 200);
    server.signal(Signal::Kill);
    eventually(
        || async { (get(address, "/readyz").await.status == 503).then_some(()) },
        SOON,
    )
    .await;
    assert_eq!(get(address, "/healthz").await.status, 200);
    assert_eq!(get(address, "/metrics").await.status, 200);
    let order = r#"{"id":1,"title":"Emma"}"#;
    let (own, gateway, request) = tokio::join!(
        post(address, "/orders", order),
        post(address, "/messages/orders/create", order),
        get(address, "/users/42"),
    );
    for answer in [own, gateway, request] {
        assert_eq!(answer.status, 503, "{}", answer.body);
        assert_eq!(answer.headers["retry-after"], "1");
        assert_eq!(answer.json()["code"], "disconnected");
        assert!(!answer.body.contains("127.0.0.1"), "{}", answer.body);
    }
}

/// The answers that callers received.
#[derive(Default)]
struct Ledger {
    answers: AtomicU64,
    accepted: Mutex<Vec<u64>>,
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_a_signal_loses_no_request_and_no_task() {
    let server = RedisServer::start().await;
    let process = Process::start(&server).await;
    let address = process.address;
    let ledger = Arc::new(Ledger::default());
    let signalled = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..8u64)
        .map(|caller| {
            let (ledger, signalled) = (ledger.clone(), signalled.clone());
            tokio::spawn(async move {
                for n in 0.. {
                    let id = caller * 1_000_000 + n;
                    // One call in four is a request, which waits for a worker.
                    let (request, body, expected) = match n % 4 {
                        0 => (Request::get("/users/42"), String::new(), 200),
                        _ => {
                            let body = json!({ "id": id, "title": "Emma" }).to_string();
                            let request = Request::post("/orders");
                            (
                                request.header("content-type", "application/json"),
                                body,
                                202,
                            )
                        }
                    };
                    let answer = match timeout(SOON, ask(address, request, body)).await {
                        Ok(Ok(answer)) => answer,
                        // The process may have ended, but not before the signal.
                        Ok(Err(_)) if signalled.load(Ordering::SeqCst) => return,
                        Ok(Err(error)) => panic!("{error}"),
                        Err(_) => panic!("a request is not answered"),
                    };
                    ledger.answers.fetch_add(1, Ordering::SeqCst);
                    assert_eq!(answer.status, expected, "{}", answer.body);
                    if expected == 202 {
                        ledger.accepted.lock().unwrap().push(id);
                    }
                }
            })
        })
        .collect();
    eventually(
        || async { (ledger.answers.load(Ordering::SeqCst) >= 400).then_some(()) },
        SOON,
    )
    .await;
    signalled.store(true, Ordering::SeqCst);
    process.terminate();
    for caller in callers {
        caller.await.unwrap();
    }
    let mut printed = process.ended().await;

    // Every started request got a response.
    let answers = ledger.answers.load(Ordering::SeqCst);
    let last = printed.last().unwrap();
    assert_eq!(last, &format!("ended after {answers} requests"));

    // The next process handles the rest of the stream.
    let next = Process::start(&server).await;
    eventually(
        || async {
            let metrics = get(next.address, "/metrics").await.body;
            let idle = ["lag", "pending", "delayed", "dead"];
            let idle =
                idle.map(|name| format!("campanile_group_{name}{{group=\"app_group\"}} 0\n"));
            idle.iter().all(|line| metrics.contains(line)).then_some(())
        },
        SOON,
    )
    .await;
    next.terminate();
    printed.extend(next.ended().await);

    let mut handled = HashMap::<u64, usize>::new();
    for line in &printed {
        if let Some(order) = line.strip_prefix("task   orders.create: ") {
            let (id, _) = order.split_once(' ').unwrap();
            *handled.entry(id.parse().unwrap()).or_default() += 1;
        }
    }
    let accepted = ledger.accepted.lock().unwrap();
    let lost: Vec<_> = accepted
        .iter()
        .filter(|id| !handled.contains_key(id))
        .collect();
    assert!(
        lost.is_empty(),
        "{} of {} were lost: {lost:?}",
        lost.len(),
        accepted.len()
    );
    let twice: Vec<_> = handled.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "handled more than once: {twice:?}");
    assert_eq!(
        handled.len(),
        accepted.len(),
        "a task was handled that no caller has an answer for"
    );
}
