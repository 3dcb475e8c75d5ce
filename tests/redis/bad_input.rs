//! Hostile and malformed input, on both transports: a clear error, nothing lost, no hang.

use std::{future::pending, time::Duration};

use bytes::Bytes;
use campanile::{
    BoxError, Client, Error, Failure, Json, Name, Redis, Router, RpcCode, RpcError,
    transport::{Broker, Counts, DeadLetter, Page, memory::Memory},
};
use http::HeaderValue;
use tokio::{sync::mpsc, time::timeout};

use crate::{
    logs::Logs,
    support::{RedisServer, raw, worker::Worker},
};

const SOON: Duration = Duration::from_secs(30);
const MIB: usize = 1 << 20;

/// A transport, with access to the state that the tests inspect.
trait Fixture: Sized {
    type Handle: Broker;

    async fn new() -> Self;
    fn handle(&self) -> Self::Handle;
    fn counts(&self) -> Counts;
    async fn add_raw(&self, fields: &[(&str, &[u8])]);
    async fn dead_letters(&self) -> Vec<DeadLetter>;

    /// A handle whose workers run at most this many handlers.
    fn with_slots(&self, slots: usize) -> Self::Handle;

    fn client(&self) -> Client<Self::Handle> {
        Client::new(self.handle())
    }

    async fn dead_letter(&self) -> DeadLetter {
        raw::eventually(|| async { self.dead_letters().await.pop() }, SOON).await
    }

    async fn counted(&self, what: impl Fn(&Counts) -> u64, n: u64) {
        raw::eventually(|| async { (what(&self.counts()) >= n).then_some(()) }, SOON).await;
    }
}

struct OnMemory(Memory);

impl Fixture for OnMemory {
    type Handle = Memory;

    async fn new() -> Self {
        Self(
            Memory::new().backoff(campanile::transport::Backoff::exponential(
                Duration::from_millis(1),
                Duration::from_millis(1),
            )),
        )
    }

    fn handle(&self) -> Memory {
        self.0.clone()
    }

    fn with_slots(&self, slots: usize) -> Memory {
        self.0.clone().max_in_flight(slots)
    }

    fn counts(&self) -> Counts {
        self.0.counts()
    }

    async fn add_raw(&self, fields: &[(&str, &[u8])]) {
        let fields = fields
            .iter()
            .map(|(field, value)| (field.as_bytes().to_vec(), value.to_vec()));
        self.0.add_raw(fields);
    }

    async fn dead_letters(&self) -> Vec<DeadLetter> {
        let page = self.0.dead_letters().list(Page::first(1_000)).await;
        page.unwrap().letters
    }
}

struct OnRedis {
    server: RedisServer,
    redis: Redis,
}

impl Fixture for OnRedis {
    type Handle = Redis;

    async fn new() -> Self {
        let server = RedisServer::start().await;
        let redis = Redis::connect(&server.url()).await.unwrap().backoff(
            campanile::transport::Backoff::exponential(
                Duration::from_millis(1),
                Duration::from_millis(1),
            ),
        );
        Self { server, redis }
    }

    fn handle(&self) -> Redis {
        self.redis.clone()
    }

    fn with_slots(&self, slots: usize) -> Redis {
        self.redis.clone().max_in_flight(slots)
    }

    fn counts(&self) -> Counts {
        self.redis.counts()
    }

    async fn add_raw(&self, fields: &[(&str, &[u8])]) {
        raw::add(&self.server, "app_stream", fields).await;
    }

    async fn dead_letters(&self) -> Vec<DeadLetter> {
        let page = self.redis.dead_letters().list(Page::first(1_000)).await;
        page.unwrap().letters
    }
}

/// Runs each case on both transports.
macro_rules! on_both {
    ($($case:ident),* $(,)?) => {
        mod memory {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    super::$case(<super::OnMemory as super::Fixture>::new().await).await.unwrap();
                }
            )*
        }

        mod redis {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    super::$case(<super::OnRedis as super::Fixture>::new().await).await.unwrap();
                }
            )*
        }
    };
}

on_both!(
    a_payload_that_is_not_json_is_a_dead_letter_or_an_invalid_request,
    payloads_of_any_size_and_content_survive,
    an_entry_that_is_no_message_is_a_dead_letter_with_its_fields_and_does_not_block_the_next,
    an_entry_of_10_000_fields_is_handled,
    an_entry_whose_name_is_no_name_is_a_dead_letter_at_once,
    a_request_that_nobody_can_be_answered_for_is_a_dead_letter,
    a_reply_address_that_is_not_allowed_is_counted_and_not_written_to,
    names_of_any_text_are_routed_and_those_that_cannot_be_names_are_refused,
    headers_that_http_does_not_allow_are_refused_before_they_are_sent,
    a_handler_that_panics_or_fails_does_not_take_the_worker_along,
    a_handler_that_never_returns_holds_one_slot_and_its_caller_times_out,
    an_error_whose_text_is_empty_does_not_read_as_success,
    a_reply_that_is_not_what_was_asked_for_is_a_decode_error,
    an_unknown_name_is_answered_at_once_and_a_task_of_one_becomes_a_dead_letter,
);

/// Runs each case on both transports, on one thread, so that [`Logs`] captures its worker.
macro_rules! logged_on_both {
    ($($case:ident),* $(,)?) => {
        mod logged_on_memory {
            $(
                #[tokio::test]
                async fn $case() {
                    super::$case(<super::OnMemory as super::Fixture>::new().await).await.unwrap();
                }
            )*
        }

        mod logged_on_redis {
            $(
                #[tokio::test]
                async fn $case() {
                    super::$case(<super::OnRedis as super::Fixture>::new().await).await.unwrap();
                }
            )*
        }
    };
}

logged_on_both!(
    an_entry_that_cannot_be_read_is_logged_with_its_id_and_its_stream,
    text_from_senders_and_handlers_is_logged_on_one_bounded_line,
    a_worker_whose_handlers_wait_for_its_own_replies_says_so,
);

/// Names that other programs may add to a stream: a forged log line, and a megabyte.
fn forged_names() -> [Vec<u8>; 3] {
    [
        b"n\n2026-01-01T00:00:00Z ERROR forged".to_vec(),
        b"n\x1b[2J\x1b]0;forged\x07".to_vec(),
        vec![b'n'; MIB],
    ]
}

async fn an_entry_whose_name_is_no_name_is_a_dead_letter_at_once(
    fixture: impl Fixture,
) -> Result<(), BoxError> {
    let alive = Alive::start(fixture.handle(), Router::new());
    for name in forged_names() {
        let before = fixture.dead_letters().await.len();
        let fields: [(&str, &[u8]); 3] = [("type", b"task"), ("name", &name), ("payload", b"")];
        fixture.add_raw(&fields).await;
        let dead = async || fixture.dead_letters().await.into_iter().nth(before);
        let letter = raw::eventually(dead, SOON).await;
        let reason = &letter.reason;
        assert_eq!(letter.attempts, 1, "no retry can help: {reason}");
        assert!(reason.contains("name"), "{reason}");
        assert!(
            reason.len() < 256 && !reason.chars().any(char::is_control),
            "{} bytes: {reason:?}",
            reason.len()
        );
        let kept = letter.fields.iter().find(|(field, _)| field == "name");
        assert_eq!(kept.expect("the fields are kept").1, name);
    }
    alive.check().await
}

async fn an_entry_that_cannot_be_read_is_logged_with_its_id_and_its_stream(
    fixture: impl Fixture,
) -> Result<(), BoxError> {
    let logs = Logs::start();
    let alive = Alive::start(fixture.handle(), Router::new());
    fixture.add_raw(&[("a", b"b")]).await;
    let id = fixture.dead_letter().await.message_id;
    let words = ["WARN", "an entry cannot be read", "stream=\"app_stream\""];
    let lines = logs.lines(&words);
    assert_eq!(lines.len(), 1, "{}", logs.text());
    let id = format!("id=\"{id}\"");
    assert!(lines[0].contains(&id), "no {id} in {}", lines[0]);
    alive.check().await
}

async fn text_from_senders_and_handlers_is_logged_on_one_bounded_line(
    fixture: impl Fixture,
) -> Result<(), BoxError> {
    const FORGED: &str = "x\n2026-01-01T00:00:00Z ERROR forged \x1b[2J";
    let logs = Logs::start();
    let app = Router::new()
        .task("quotes", async |payload: String| {
            Err::<(), BoxError>(payload.into())
        })
        .task("panics", async |payload: String| {
            if !payload.is_empty() {
                panic!("{payload}");
            }
        })
        .task("gives_up", async |payload: String| {
            Err::<(), Failure>(Failure::dead_letter().because(payload))
        });
    let alive = Alive::start(fixture.handle(), app);
    for name in forged_names() {
        let fields: [(&str, &[u8]); 3] = [("type", b"task"), ("name", &name), ("payload", b"")];
        fixture.add_raw(&fields).await;
    }
    let long = format!("{FORGED}{}", "x".repeat(MIB));
    for name in ["quotes", "panics", "gives_up"] {
        fixture.client().enqueue(name, long.clone()).await?;
    }
    let all = async || (fixture.dead_letters().await.len() == 6).then_some(());
    raw::eventually(all, SOON).await;
    for letter in fixture.dead_letters().await {
        let length = letter.reason.len();
        assert!(length <= 4 * 1024 + 128, "a reason of {length} bytes");
    }
    let text = logs.text();
    assert!(text.contains("ERROR forged"), "nothing was logged: {text}");
    for line in text.lines() {
        assert!(line.len() < 8 * 1024, "a line of {} bytes", line.len());
        assert!(!line.chars().any(|c| c.is_control()), "{line:?}");
        assert!(!line.starts_with("2026-01-01"), "a forged line: {line}");
    }
    alive.check().await
}

async fn a_worker_whose_handlers_wait_for_its_own_replies_says_so(
    fixture: impl Fixture,
) -> Result<(), BoxError> {
    let logs = Logs::start();
    let client = fixture.client();
    let slots = 2;
    let app = Router::new()
        .task("outer", async move || {
            let inner = client.request::<String>("inner", ());
            inner.timeout(Duration::from_secs(8)).await.map(drop)
        })
        .rpc("inner", async || "done");
    let worker = Worker::start(fixture.with_slots(slots), app);
    for _ in 0..slots {
        fixture.client().enqueue("outer", ()).await?;
    }
    let warned = async || logs.text().contains("all 2 slots").then_some(());
    raw::eventually(warned, SOON).await;
    let text = logs.text();
    let line = text.lines().find(|line| line.contains("all 2 slots"));
    let line = line.expect("the warning was logged");
    for part in ["WARN", "2 requests", "max_in_flight", "app_stream"] {
        assert!(line.contains(part), "{part:?} is not in {line}");
    }
    drop(worker);
    Ok(())
}

fn rpc(error: &Error) -> &RpcError {
    error
        .rpc()
        .unwrap_or_else(|| panic!("no answer: {error:?}"))
}

/// A worker whose task `next` shows that earlier entries do not block the stream.
struct Alive<H: Broker> {
    worker: Worker,
    next: mpsc::UnboundedReceiver<()>,
    client: Client<H>,
}

impl<H: Broker> Alive<H> {
    fn start(handle: H, app: Router) -> Self {
        let (done, next) = mpsc::unbounded_channel();
        let app = app.task("next", async move || {
            let _ = done.send(());
        });
        Self {
            client: Client::new(handle.clone()),
            worker: Worker::start(handle, app),
            next,
        }
    }

    /// Checks that the worker still works, and stops on request.
    async fn check(mut self) -> Result<(), BoxError> {
        self.client.enqueue("next", ()).await?;
        timeout(SOON, self.next.recv()).await?;
        self.worker.stop().await?;
        Ok(())
    }
}

async fn a_payload_that_is_not_json_is_a_dead_letter_or_an_invalid_request(
    fixture: impl Fixture,
) -> Result<(), BoxError> {
    async fn double(Json(n): Json<u32>) -> Json<u32> {
        Json(2 * n)
    }
    let app = Router::new().task("double", double).rpc("double", double);
    let alive = Alive::start(fixture.handle(), app);
    let client = fixture.client();

    client.enqueue("double", r#"{"n": "#).await?;
    let dead = fixture.dead_letter().await;
    assert_eq!(dead.attempts, 1, "no retry can help");
    assert!(
        dead.reason.to_lowercase().contains("json"),
        "{}",
        dead.reason
    );
    let payload = dead.fields.iter().find(|(field, _)| field == "payload");
    assert_eq!(
        payload.map(|(_, value)| &value[..]),
        Some(&br#"{"n": "#[..])
    );

    for error in [
        client
            .request::<Json<u32>>("double", "no")
            .await
            .unwrap_err(),
        client
            .request_fast::<Json<u32>>("double", "no")
            .await
            .unwrap_err(),
    ] {
        assert_eq!(rpc(&error).code(), &RpcCode::Invalid);
        assert!(!rpc(&error).message().is_empty());
    }
    alive.check().await
}

async fn payloads_of_any_size_and_content_survive(fixture: impl Fixture) -> Result<(), BoxError> {
    let app = Router::new().rpc("echo", async |payload: Bytes| payload);
    let alive = Alive::start(fixture.handle(), app);
    let client = fixture.client();
    let large: Vec<u8> = (0..16 * MIB).map(|i| (i * 31 % 251) as u8).collect();
    for payload in [&b""[..], b"\0", b"\xff\xfe\r\n$-1\r\n", &large] {
        let reply: Bytes = client.request("echo", payload).await?;
        assert!(
            reply == payload,
            "{} bytes came back as {}",
            payload.len(),
            reply.len()
        );
        let reply: Bytes = client.request_fast("echo", payload).await?;
        assert!(
            reply == payload,
            "{} bytes came back as {}",
            payload.len(),
            reply.len()
        );
    }
    alive.check().await
}

async fn an_entry_that_is_no_message_is_a_dead_letter_with_its_fields_and_does_not_block_the_next(
    fixture: impl Fixture,
) -> Result<(), BoxError> {
    type Fields = &'static [(&'static str, &'static [u8])];
    let entries: [(&str, Fields); 12] = [
        ("`type` is missing", &[("name", b"next"), ("payload", b"")]),
        ("`name` is missing", &[("type", b"task"), ("payload", b"")]),
        (
            "`payload` is missing",
            &[("type", b"task"), ("name", b"next")],
        ),
        (
            "`type` occurs twice",
            &[
                ("type", b"task"),
                ("name", b"next"),
                ("payload", b""),
                ("type", b"rpc"),
            ],
        ),
        (
            "`name` occurs twice",
            &[
                ("type", b"task"),
                ("name", b"next"),
                ("payload", b""),
                ("name", b"next"),
            ],
        ),
        (
            "`payload` occurs twice",
            &[
                ("type", b"task"),
                ("name", b"next"),
                ("payload", b""),
                ("payload", b""),
            ],
        ),
        (
            "unknown `type`",
            &[("type", b"\xff"), ("name", b"next"), ("payload", b"")],
        ),
        (
            "unknown `type`",
            &[("type", b"job"), ("name", b"next"), ("payload", b"")],
        ),
        (
            "not UTF-8",
            &[("type", b"task"), ("name", b"\xff"), ("payload", b"")],
        ),
        (
            "the `name` is empty",
            &[("type", b"task"), ("name", b""), ("payload", b"")],
        ),
        (
            "header name",
            &[
                ("type", b"task"),
                ("name", b"next"),
                ("payload", b""),
                ("h:a b", b"x"),
            ],
        ),
        ("is missing", &[("", b"\x00\xff")]),
    ];
    for (_, fields) in entries {
        fixture.add_raw(fields).await;
    }
    let alive = Alive::start(fixture.handle(), Router::new());
    alive.check().await?;
    let dead = fixture.dead_letters().await;
    assert_eq!(dead.len(), entries.len());
    for (reason, fields) in entries {
        let is_it = |dead: &&DeadLetter| {
            let raw = dead
                .fields
                .iter()
                .map(|(field, value)| (&field[..], &value[..]));
            raw.eq(fields
                .iter()
                .map(|(field, value)| (field.as_bytes(), *value)))
        };
        let dead = dead.iter().find(is_it).expect(reason);
        assert!(
            dead.reason.contains(reason),
            "{} is not about {reason}",
            dead.reason
        );
    }
    assert_eq!(fixture.counts().undecodable, entries.len() as u64);
    Ok(())
}

async fn an_entry_of_10_000_fields_is_handled(fixture: impl Fixture) -> Result<(), BoxError> {
    let names: Vec<String> = (0..10_000).map(|i| format!("field-{i}")).collect();
    let mut fields: Vec<(&str, &[u8])> = names
        .iter()
        .map(|name| (name.as_str(), &b"value"[..]))
        .collect();
    fixture.add_raw(&fields).await; // no message: a dead letter with all its fields
    fields.extend([("type", &b"task"[..]), ("name", b"fail"), ("payload", b"")]);
    fixture.add_raw(&fields).await; // a message: redelivered, then a dead letter
    let attempts = mpsc::unbounded_channel();
    let app = Router::new().task("fail", async move |attempt: campanile::Attempt| {
        let _ = attempts.0.send(());
        match attempt.0 {
            1 => Err::<(), _>(Failure::redeliver_after(Duration::ZERO)),
            _ => Err(Failure::dead_letter()),
        }
    });
    let alive = Alive::start(fixture.handle(), app);
    fixture.counted(|counts| counts.dead, 2).await;
    let mut dead = fixture.dead_letters().await;
    dead.sort_by_key(|dead| dead.fields.len());
    let facts = dead.iter().map(|dead| (dead.fields.len(), dead.attempts));
    assert_eq!(facts.collect::<Vec<_>>(), [(10_000, 1), (10_003, 2)]);
    alive.check().await
}

async fn a_request_that_nobody_can_be_answered_for_is_a_dead_letter(
    fixture: impl Fixture,
) -> Result<(), BoxError> {
    let base: [(&str, &[u8]); 3] = [("type", b"rpc"), ("name", b"next"), ("payload", b"")];
    for missing in ["reply_to", "correlation_id"] {
        let mut fields = base.to_vec();
        let address: [(&str, &[u8]); 2] = [("reply_to", b"reply:1"), ("correlation_id", b"1")];
        fields.extend(address.iter().filter(|(field, _)| *field != missing));
        fixture.add_raw(&fields).await;
    }
    Alive::start(fixture.handle(), Router::new())
        .check()
        .await?;
    let letters = fixture.dead_letters().await;
    let mut reasons: Vec<_> = letters.into_iter().map(|letter| letter.reason).collect();
    // The dead letters are made concurrently, so their order varies.
    reasons.sort_unstable();
    assert!(
        reasons[0].contains("correlation_id") && reasons[1].contains("reply_to"),
        "{reasons:?}"
    );
    Ok(())
}

async fn a_reply_address_that_is_not_allowed_is_counted_and_not_written_to(
    fixture: impl Fixture,
) -> Result<(), BoxError> {
    let (heard, mut hears) = mpsc::unbounded_channel::<String>();
    let app = Router::new()
        .rpc("echo", async |payload: Bytes| payload)
        .event("orders.events", async move |event: String| {
            let _ = heard.send(event);
        });
    let alive = Alive::start(fixture.handle(), app);
    fixture
        .add_raw(&[
            ("type", b"rpc"),
            ("name", b"echo"),
            ("payload", b"forged"),
            ("reply_to", b"orders.events"),
            ("correlation_id", b"1"),
        ])
        .await;
    fixture.counted(|counts| counts.unanswerable, 1).await;
    fixture.client().publish("orders.events", "true").await?;
    assert_eq!(timeout(SOON, hears.recv()).await?.as_deref(), Some("true"));
    alive.check().await
}

async fn names_of_any_text_are_routed_and_those_that_cannot_be_names_are_refused(
    fixture: impl Fixture,
) -> Result<(), BoxError> {
    let longest = "n".repeat(Name::MAX_LEN);
    let names = [
        "with space",
        "*",
        "a?[b]\\",
        "{curly}",
        "ünï.cödé",
        &longest,
    ];
    let (heard, mut hears) = mpsc::unbounded_channel();
    let mut app = Router::new();
    for name in names {
        let heard = heard.clone();
        app = app
            .task(name, async |_: Name| {})
            .rpc(name, async |name: Name| name.to_string())
            .event(name, async move |name: Name| {
                let _ = heard.send(name);
            });
    }
    let alive = Alive::start(fixture.handle(), app);
    let client = fixture.client();
    for name in names {
        assert_eq!(client.request::<String>(name, ()).await?, name);
        client.publish(name, "").await?;
        assert_eq!(timeout(SOON, hears.recv()).await?.as_deref(), Some(name));
    }
    assert!(hears.try_recv().is_err(), "a name is no pattern");
    for name in [
        "",
        &"n".repeat(Name::MAX_LEN + 1),
        "line\nbreak",
        "\x1b[2J",
        "\u{9b}2J",
    ] {
        assert!(client.enqueue(name, ()).await.unwrap_err().is_invalid());
        assert!(client.publish(name, ()).await.unwrap_err().is_invalid());
        assert!(
            client
                .request::<()>(name, ())
                .await
                .unwrap_err()
                .is_invalid()
        );
        let nested = client.nest("orders");
        assert!(nested.enqueue(name, ()).await.unwrap_err().is_invalid());
        let message = campanile::Message::task(name, "");
        assert!(client.send(message).await.unwrap_err().is_invalid());
    }
    alive.check().await
}

async fn headers_that_http_does_not_allow_are_refused_before_they_are_sent(
    fixture: impl Fixture,
) -> Result<(), BoxError> {
    let client = fixture.client();
    for (name, value) in [("bad name", "x"), ("", "x"), ("x", "a\r\nb"), ("x", "\0")] {
        let error = client
            .enqueue("next", ())
            .header(name, value)
            .await
            .unwrap_err();
        assert!(error.is_invalid(), "{name:?}: {value:?}: {error:?}");
    }
    let mut many = client.enqueue("next", ());
    for i in 0..40_000 {
        many = many.header(format!("x-{i}"), "x");
    }
    assert!(
        many.await.unwrap_err().is_invalid(),
        "more headers than a header map can hold"
    );
    let error = client
        .publish("events", ())
        .header("x", "y")
        .await
        .unwrap_err();
    assert!(error.is_invalid(), "plain Pub/Sub carries none: {error:?}");
    assert_eq!(fixture.counts().sent, 0);

    let app = Router::new().rpc("count", async |headers: http::HeaderMap| {
        headers.len().to_string()
    });
    let alive = Alive::start(fixture.handle(), app);
    let mut call = client.request::<String>("count", ());
    for i in 0..1_000 {
        call = call.header(
            "x-many",
            HeaderValue::from_bytes(&[0x80, b'0' + (i % 10) as u8])?,
        );
    }
    assert_eq!(call.await?, "1000");
    alive.check().await
}

async fn a_handler_that_panics_or_fails_does_not_take_the_worker_along(
    fixture: impl Fixture,
) -> Result<(), BoxError> {
    async fn panics() {
        panic!("a secret");
    }
    async fn fails() -> Result<(), BoxError> {
        Err("a secret".into())
    }
    let app = Router::new()
        .task("panics", panics)
        .rpc("panics", panics)
        .task("fails", fails)
        .rpc("fails", fails)
        .event("fails", fails)
        .event("panics", panics);
    let alive = Alive::start(fixture.handle(), app);
    let client = fixture.client();
    for name in ["panics", "fails"] {
        let error = client.request::<()>(name, ()).await.unwrap_err();
        assert_eq!(
            rpc(&error),
            &RpcError::internal("internal error"),
            "the reply does not show the error's text"
        );
        client.publish(name, ()).await?;
        client.enqueue(name, ()).await?;
    }
    fixture.counted(|counts| counts.dead, 2).await;
    for dead in fixture.dead_letters().await {
        assert_eq!(dead.attempts, 10);
        assert!(
            dead.reason.contains("a secret"),
            "for operators: {}",
            dead.reason
        );
    }
    alive.check().await
}

async fn a_handler_that_never_returns_holds_one_slot_and_its_caller_times_out(
    fixture: impl Fixture,
) -> Result<(), BoxError> {
    let app = Router::new().rpc("never", pending::<()>);
    let (done, mut next) = mpsc::unbounded_channel();
    let app = app.task("next", async move || {
        let _ = done.send(());
    });
    let worker = Worker::start(fixture.handle(), app);
    let client = fixture.client();
    let call = client.request::<()>("never", ());
    let error = call.timeout(Duration::from_millis(200)).await.unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    let call = client.request_fast::<()>("never", ());
    let error = call.timeout(Duration::from_millis(200)).await.unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    client.enqueue("next", ()).await?;
    timeout(SOON, next.recv()).await?;
    drop(worker);
    Ok(())
}

async fn an_error_whose_text_is_empty_does_not_read_as_success(
    fixture: impl Fixture,
) -> Result<(), BoxError> {
    let app = Router::new()
        .rpc("silent", async || {
            Err::<(), _>(RpcError::new(RpcCode::Unavailable, ""))
        })
        .rpc("silent.box", async || Err::<(), BoxError>("".into()));
    let alive = Alive::start(fixture.handle(), app);
    for (name, code) in [
        ("silent", RpcCode::Unavailable),
        ("silent.box", RpcCode::Internal),
    ] {
        for error in [
            fixture.client().request::<()>(name, ()).await.unwrap_err(),
            fixture
                .client()
                .request_fast::<()>(name, ())
                .await
                .unwrap_err(),
        ] {
            assert_eq!(rpc(&error).code(), &code);
            assert!(!rpc(&error).message().is_empty());
        }
    }
    alive.check().await
}

async fn a_reply_that_is_not_what_was_asked_for_is_a_decode_error(
    fixture: impl Fixture,
) -> Result<(), BoxError> {
    let app = Router::new().rpc("bytes", async || vec![0xff_u8]);
    let alive = Alive::start(fixture.handle(), app);
    let client = fixture.client();
    assert!(
        client
            .request::<Json<u32>>("bytes", ())
            .await
            .unwrap_err()
            .is_decode()
    );
    assert!(
        client
            .request::<String>("bytes", ())
            .await
            .unwrap_err()
            .is_decode()
    );
    assert_eq!(client.request::<Bytes>("bytes", ()).await?, &b"\xff"[..]);
    alive.check().await
}

async fn an_unknown_name_is_answered_at_once_and_a_task_of_one_becomes_a_dead_letter(
    fixture: impl Fixture,
) -> Result<(), BoxError> {
    let alive = Alive::start(fixture.handle(), Router::new());
    let client = fixture.client();
    for error in [
        client.request::<()>("nobody", ()).await.unwrap_err(),
        client.request_fast::<()>("nobody", ()).await.unwrap_err(),
    ] {
        assert_eq!(rpc(&error).code(), &RpcCode::NotFound);
        assert!(rpc(&error).message().contains("nobody"));
    }
    client.enqueue("nobody", ()).await?;
    let dead = fixture.dead_letter().await;
    assert_eq!(dead.attempts, 10, "a newer worker might have known it");
    assert!(
        dead.reason.contains("no route for task `nobody`"),
        "{}",
        dead.reason
    );
    alive.check().await
}
