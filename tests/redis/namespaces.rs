//! Two applications with the same names on one database, in two namespaces.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use campanile::{
    Client, Error, Failure, Message, Redis, Router,
    transport::{Interest, Page, Selection, Start, Streams, Transport, redis::TailFrom},
};

use crate::{
    SECOND, logs,
    panics::panic_text,
    support::{
        Options, RedisServer,
        raw::{self, eventually},
        rights::documented,
        worker::Worker,
    },
    within,
};

const NAMESPACES: [&str; 2] = ["blue", "green"];

/// An application in a namespace. It records what its handlers got.
struct App {
    namespace: &'static str,
    redis: Redis,
    client: Client<Redis>,
    got: Arc<Mutex<Vec<String>>>,
}

impl App {
    async fn new(server: &RedisServer, namespace: &'static str) -> Self {
        let redis = Redis::connect(&server.url()).await.expect("a handle");
        let redis = redis.namespace(namespace).stream("s").group("g");
        Self {
            namespace,
            client: Client::new(redis.clone()),
            redis,
            got: Arc::default(),
        }
    }

    /// Starts a worker, which hears events and serves this handle's streams.
    fn serve(&self, redis: Redis) -> Worker {
        let (namespace, got) = (self.namespace, self.got.clone());
        let note = move |what: &str, payload: &[u8]| {
            let payload = String::from_utf8_lossy(payload).into_owned();
            got.lock().unwrap().push(format!("{what} {payload}"));
        };
        let [work, named, matched] = [(); 3].map(|()| note.clone());
        let app = Router::new()
            .task("work", async move |message: Message| {
                let stream = message.parts().stream.as_deref();
                let stream = stream.expect("a task has a stream");
                work(&format!("work on {stream}"), message.payload());
            })
            .task("doomed", async || {
                Err::<(), _>(Failure::dead_letter().because("it is doomed"))
            })
            .rpc("who", async move || namespace)
            .event("news", async move |message: Message| {
                named("news", message.payload())
            })
            .event_pattern("n?ws", async move |message: Message| {
                let name = message.name();
                matched(&format!("{name} by a pattern"), message.payload());
            });
        Worker::start(redis, app)
    }

    /// Waits until this was got, as many times as given.
    async fn got(&self, what: &str, times: usize) {
        let count = || {
            self.got
                .lock()
                .unwrap()
                .iter()
                .filter(|it| *it == what)
                .count()
        };
        eventually(async || (count() >= times).then_some(()), 10 * SECOND).await;
        assert_eq!(count(), times, "{what}");
    }

    /// Asserts that nothing of another namespace was got.
    fn assert_alone(&self) {
        for got in &*self.got.lock().unwrap() {
            assert!(got.ends_with(self.namespace), "{got} in {}", self.namespace);
        }
    }
}

/// All keys and channels that were seen on a server.
#[derive(Default)]
struct Seen {
    keys: BTreeSet<String>,
    channels: BTreeSet<String>,
}

impl Seen {
    async fn look(&mut self, server: &RedisServer) {
        let mut cursor = "0".to_owned();
        loop {
            let page = ["SCAN", &cursor, "COUNT", "1000"];
            let (next, keys): (String, Vec<String>) = server.query(&page).await;
            self.keys.extend(keys);
            if next == "0" {
                break;
            }
            cursor = next;
        }
        let channels: Vec<String> = server.query(&["PUBSUB", "CHANNELS"]).await;
        self.channels.extend(channels);
    }

    /// Asserts that each name is in one of the namespaces, and that each has names of these kinds.
    fn assert_in(&self, namespaces: &[&str], kinds: &[&str]) {
        let is_in = |name: &str, namespace: &str| {
            let name = name.trim_start_matches(|it: char| it.is_ascii_digit() || it == ':');
            name.trim_start_matches('{')
                .starts_with(&format!("{namespace}:"))
        };
        for name in self.keys.iter().chain(&self.channels) {
            assert!(namespaces.iter().any(|it| is_in(name, it)), "{name}");
        }
        for namespace in namespaces {
            for kind in kinds {
                let mut names = self.keys.iter().chain(&self.channels);
                let found = names.any(|name| is_in(name, namespace) && name.contains(kind));
                assert!(found, "no `{kind}` of {namespace} in {:#?}", self.keys);
            }
        }
    }
}

#[tokio::test]
async fn two_applications_with_the_same_names_never_meet_in_two_namespaces() {
    let server = RedisServer::start().await;
    let mut seen = Seen::default();
    let mut apps = Vec::new();
    for namespace in NAMESPACES {
        apps.push(App::new(&server, namespace).await);
    }
    // Each has a worker only after its messages are there, so that a wrong worker would get them.
    for app in &apps {
        let send = |payload| app.client.enqueue("work", payload);
        send(format!("now {}", app.namespace)).await.unwrap();
        let delayed = send(format!("later {}", app.namespace)).delay(SECOND);
        delayed.await.unwrap();
        let keyed = async || {
            send(format!("once {}", app.namespace))
                .idempotency_key("k")
                .await
        };
        let (first, second) = (keyed().await.unwrap(), keyed().await.unwrap());
        assert_eq!(first.id(), second.id(), "the key is known in its namespace");
        let cancelled = send("never".into()).delay(60 * SECOND).await.unwrap();
        assert!(
            app.redis
                .tasks()
                .cancel(cancelled.id().unwrap(), "")
                .await
                .unwrap()
        );
        app.client.enqueue("doomed", "x").await.unwrap();
        seen.look(&server).await;
        let stats = app.redis.stats().await.unwrap();
        assert_eq!(stats.stream, "s");
        assert_eq!((stats.entries, stats.delayed), (3, 1), "{}", app.namespace);
        assert_eq!(app.redis.groups().await.unwrap(), Some(Vec::new()));
    }
    let mut workers = Vec::new();
    for app in &apps {
        workers.push(app.serve(app.redis.clone()));
        app.got(&format!("work on s now {}", app.namespace), 1)
            .await;
        seen.look(&server).await;
    }
    for app in &apps {
        for what in ["later", "once"] {
            app.got(&format!("work on s {what} {}", app.namespace), 1)
                .await;
        }
        let payload = |what: &str| format!("{what} {}", app.namespace);
        app.client.publish("news", payload("event")).await.unwrap();
        app.got(&payload("news event"), 1).await;
        app.got(&payload("news by a pattern event"), 1).await;
        let asked = within(
            10 * SECOND,
            app.client.request::<String>("who", "").into_future(),
        )
        .await;
        assert_eq!(asked.unwrap(), app.namespace);
        let asked = within(
            10 * SECOND,
            app.client.request_fast::<String>("who", "").into_future(),
        )
        .await;
        assert_eq!(asked.unwrap(), app.namespace);
        seen.look(&server).await;

        let letters = app.redis.dead_letters();
        let one = async || (letters.count().await.unwrap() == 1).then_some(());
        eventually(one, 10 * SECOND).await;
        let page = letters.list(Page::default()).await.unwrap();
        let [letter] = &page.letters[..] else {
            panic!("{page:?}");
        };
        assert_eq!(letter.stream.as_deref(), Some("s"));
        assert!(letters.get(&letter.id).await.unwrap().is_some());
        assert_eq!(letters.purge(Selection::All).await.unwrap(), 1);
        let consumers = app.redis.consumers().await.unwrap().expect("a group");
        assert_eq!(consumers.len(), 1, "{consumers:?}");
        let groups = app.redis.groups().await.unwrap();
        assert_eq!(groups, Some(vec!["g".into()]));
        let mut tail = app.redis.tail(TailFrom::Beginning).await.unwrap();
        app.client.enqueue("work", payload("tail")).await.unwrap();
        let entry = within(10 * SECOND, tail.next())
            .await
            .unwrap()
            .content
            .unwrap();
        assert_eq!(entry.parts().stream.as_deref(), Some("s"));
        seen.look(&server).await;
    }
    // No channel outside of the namespaces is heard.
    for channel in ["news", "naws"] {
        let heard: usize = server.query(&["PUBLISH", channel, "x"]).await;
        assert_eq!(heard, 0);
    }
    for (app, worker) in apps.iter().zip(workers) {
        app.assert_alone();
        worker.stop().await.unwrap();
    }
    let kinds = [
        ":s",
        ":due",
        ":bodies",
        ":idem:",
        ":dead:",
        ":retry:",
        ":rpc:",
        ":news",
        ":campanile:reply:",
    ];
    seen.assert_in(&NAMESPACES, &kinds);
}

#[tokio::test]
async fn a_registry_belongs_to_its_namespace_and_lists_names_without_it() {
    let server = RedisServer::start().await;
    let mut seen = Seen::default();
    let (mut apps, mut workers) = (Vec::new(), Vec::new());
    for namespace in NAMESPACES {
        let app = App::new(&server, namespace).await;
        let set = app.redis.clone().streams(Streams::registered("all"));
        workers.push(app.serve(set));
        apps.push(app);
    }
    for app in &apps {
        let sender = Client::new(app.redis.clone().registry("all"));
        for stream in ["one", "{shop}.two"] {
            let payload = format!("now {}", app.namespace);
            sender
                .enqueue("work", payload)
                .stream(stream)
                .await
                .unwrap();
        }
        let registry = format!("{}:campanile:registry:all", app.namespace);
        let names: Vec<String> = server.query(&["ZRANGE", &registry, "0", "-1"]).await;
        assert_eq!(names, ["one", "{shop}.two"]);
    }
    for app in &apps {
        for stream in ["one", "{shop}.two"] {
            app.got(&format!("work on {stream} now {}", app.namespace), 1)
                .await;
        }
        app.assert_alone();
    }
    seen.look(&server).await;
    seen.assert_in(
        &NAMESPACES,
        &[":campanile:registry:all", ":one", "{shop}.two"],
    );
}

#[tokio::test]
async fn a_worker_publishes_replies_in_its_namespace_only() {
    let server = RedisServer::start().await;
    let app = App::new(&server, "blue").await;
    let _worker = app.serve(app.redis.clone());
    let fields = |channel: &'static str| {
        let fields = [("type", "rpc"), ("name", "who"), ("payload", "")];
        let address = [("reply_to", channel), ("correlation_id", "1")];
        [&fields[..], &address[..]].concat()
    };
    let channels = ["campanile:reply:1", "green:campanile:reply:1", "reply:1"];
    for (channel, refused) in channels.into_iter().zip(1..) {
        raw::add(&server, "blue:s", &fields(channel)).await;
        let counted = async || (app.redis.counts().unanswerable == refused).then_some(());
        eventually(counted, 10 * SECOND).await;
    }
    raw::add(&server, "blue:s", &fields("blue:reply:1")).await;
    let done = async || (app.redis.counts().done == 4).then_some(());
    eventually(done, 10 * SECOND).await;
    assert_eq!(app.redis.counts().unanswerable, 3);
}

#[tokio::test]
async fn errors_and_logs_show_names_without_the_namespace() {
    let server = RedisServer::start().await;
    let app = App::new(&server, "blue").await;
    let other = ["XGROUP", "CREATE", "blue:s", "other", "0", "MKSTREAM"];
    server.command(&other).await;
    let open = async |redis: &Redis| -> Error {
        let opened = redis.clone().open(Interest::stream()).await;
        opened.expect_err("it has to choose")
    };
    for redis in [&app.redis, &app.redis.clone().start(Start::End)] {
        let text = open(redis).await.to_string();
        assert!(
            text.contains("stream `s`") && !text.contains("blue"),
            "{text}"
        );
    }
    let sent = app.client.enqueue("work", "x").stream("a}").await;
    let text = sent.unwrap_err().to_string();
    assert!(text.contains("`a}`") && !text.contains("blue"), "{text}");
    let logs = logs::Logs::start();
    let worker = app.serve(app.redis.clone().stream("t"));
    app.client.enqueue("doomed", "x").stream("t").await.unwrap();
    let letters = app.redis.clone().stream("t").dead_letters();
    let died = async || (letters.count().await.unwrap() == 1).then_some(());
    eventually(died, 10 * SECOND).await;
    worker.stop().await.unwrap();
    assert!(
        !logs.lines(&["streams=\"t\""]).is_empty(),
        "{}",
        logs.text()
    );
    assert!(!logs.text().contains("blue:"), "{}", logs.text());
}

#[tokio::test]
async fn the_namespace_of_a_url_is_that_of_the_handle_until_it_is_replaced() {
    let server = RedisServer::start().await;
    let url = format!("{}?namespace=blue", server.url());
    let of_url = Redis::connect(&url).await.expect("a handle");
    let waited = Redis::connect_when_ready(&url).await.expect("a handle");
    let replaced = of_url.clone().namespace("green");
    for redis in [of_url, waited, replaced] {
        let sent = Client::new(redis.stream("s")).enqueue("work", "x").await;
        sent.unwrap();
    }
    assert_eq!(raw::len(&server, "blue:s").await, 2);
    assert_eq!(raw::len(&server, "green:s").await, 1);
}

#[tokio::test]
async fn a_namespace_that_cannot_be_used_panics_where_it_is_set() {
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url()).await.expect("a handle");
    let text = panic_text(|| redis.namespace("a:b"));
    assert!(
        text.contains("`a:b`") && text.contains("begins with a letter"),
        "{text}"
    );
}

#[tokio::test]
async fn the_documented_rights_of_a_namespace_are_enough_for_it_and_for_no_other() {
    let commands = documented(&[
        "serves tasks",
        "listens",
        "requests",
        "publishes",
        "… with a delay",
    ]);
    let commands: Vec<_> = commands
        .split([' ', '(', ')'])
        .filter(|it| it.starts_with('+'))
        .collect();
    let keys = documented(&["anything in the namespace"]);
    // A user needs the right to each pattern of events as it is written.
    let acl = format!(
        "user blue on >pw resetchannels {keys} &staging:n?ws {}",
        commands.join(" ")
    );
    let server = RedisServer::with(Options::new().acl(&acl)).await;
    let url = format!(
        "redis://blue:pw@127.0.0.1:{}/?namespace=staging",
        server.port()
    );
    let redis = Redis::connect(&url)
        .await
        .expect("a handle")
        .stream("s")
        .group("g");
    let app = App {
        namespace: "blue",
        client: Client::new(redis.clone()),
        redis: redis.clone(),
        got: Arc::default(),
    };
    let _workers = ["s", "{shop}.s"].map(|stream| app.serve(redis.clone().stream(stream)));
    for stream in ["s", "{shop}.s"] {
        let asked = app
            .client
            .request::<String>("who", "")
            .stream(stream)
            .into_future();
        assert_eq!(within(10 * SECOND, asked).await.unwrap(), "blue");
        let asked = app
            .client
            .request_fast::<String>("who", "")
            .stream(stream)
            .into_future();
        assert_eq!(within(10 * SECOND, asked).await.unwrap(), "blue");
        let sent = app.client.enqueue("work", "blue").stream(stream);
        sent.delay(SECOND / 10).idempotency_key("k").await.unwrap();
        app.got(&format!("work on {stream} blue"), 1).await;
    }
    app.client.publish("news", "blue").await.unwrap();
    app.got("news blue", 2).await;
    let outside = Redis::connect(&url).await.unwrap().namespace("green");
    let sent = Client::new(outside).enqueue("work", "x").await;
    assert!(sent.unwrap_err().is_refused());
}
