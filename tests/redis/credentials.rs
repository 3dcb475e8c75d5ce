//! Credentials that change while they are in use, and credentials that are wrong.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use campanile::{
    BoxError, Client, Error, Redis, Router,
    transport::{
        ConnectionState,
        redis::{Credentials, CredentialsFuture, CredentialsProvider},
    },
};
use tokio::time::{Instant, sleep};

use crate::{
    SECOND, logs,
    support::{Options, RedisServer, raw, worker::Worker},
    within,
};

/// A provider of credentials whose answer the test sets.
#[derive(Clone)]
struct Vault(Arc<Content>);

struct Content {
    /// The user, the password and their lifetime, or the text of an error.
    answer: Mutex<Result<Credentials, String>>,
    asked: AtomicUsize,
}

impl Vault {
    fn with(credentials: Credentials) -> Self {
        Self(Arc::new(Content {
            answer: Mutex::new(Ok(credentials)),
            asked: AtomicUsize::new(0),
        }))
    }

    fn set(&self, answer: Result<Credentials, &str>) {
        *self.0.answer.lock().unwrap() = answer.map_err(str::to_owned);
    }

    fn asked(&self) -> usize {
        self.0.asked.load(Ordering::SeqCst)
    }
}

impl CredentialsProvider for Vault {
    fn credentials(&self) -> CredentialsFuture<'_> {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        let answer = self.0.answer.lock().unwrap().clone();
        Box::pin(async { answer.map_err(BoxError::from) })
    }
}

async fn server(users: &str) -> RedisServer {
    RedisServer::with(Options::new().acl(users)).await
}

async fn handle(server: &RedisServer, vault: &Vault) -> Redis {
    let redis = Redis::builder(server.url()).credentials(vault.clone());
    let redis = redis.connect().await.expect("the server is there");
    redis.stream("s").group("g")
}

/// An application with all kinds of messages, which counts its tasks and events.
fn app() -> (Router, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (tasks, events) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (task, event) = (tasks.clone(), events.clone());
    let router = Router::new()
        .task("n", async move || {
            task.fetch_add(1, Ordering::SeqCst);
        })
        .event("e", async move || {
            event.fetch_add(1, Ordering::SeqCst);
        })
        .rpc("r", async || "yes");
    (router, tasks, events)
}

async fn reaches(count: &AtomicUsize, expected: usize) {
    let reached = || async { (count.load(Ordering::SeqCst) >= expected).then_some(()) };
    raw::eventually(reached, 20 * SECOND).await;
}

/// The id and the user of each connection that is not the test's, by id.
async fn logins(server: &RedisServer) -> Vec<(u64, String)> {
    let list: String = server.query(&["CLIENT", "LIST"]).await;
    let part = |line: &str, key: &str| {
        let part = line.split(' ').find_map(|it| it.strip_prefix(key));
        part.expect("each line has this part").to_owned()
    };
    let logins = list
        .lines()
        .map(|line| (part(line, "id=").parse().unwrap(), part(line, "user=")));
    let mut logins: Vec<_> = logins.filter(|(_, user)| user != "default").collect();
    logins.sort_unstable();
    logins
}

async fn kill(server: &RedisServer, user: &str) -> usize {
    server.query(&["CLIENT", "KILL", "USER", user]).await
}

/// Makes one call over each of the client's connections.
async fn use_all(client: &Client<Redis>) -> Result<(), Error> {
    client.enqueue("n", ()).await?;
    client.publish("e", ()).await?;
    client.request::<String>("r", ()).await?;
    client.request_fast::<String>("r", ()).await?;
    Ok(())
}

#[tokio::test]
async fn a_password_that_is_rotated_under_load_loses_no_task() {
    let server = server("user me on >one ~* &* +@all").await;
    let vault = Vault::with(Credentials::new("me", "one"));
    let redis = handle(&server, &vault).await;
    let (app, tasks, _) = app();
    let worker = Worker::start(redis.clone(), app);
    let client = Client::new(redis);
    let started = Instant::now();
    let load = async {
        let (mut sent, mut unknown) = (0, 0);
        while started.elapsed() < 4 * SECOND {
            match client.enqueue("n", ()).await {
                Ok(_) => sent += 1,
                Err(error) if error.is_unknown_outcome() => unknown += 1,
                Err(error) => panic!("{error:?}"),
            }
            sleep(Duration::from_millis(2)).await;
        }
        (sent, unknown)
    };
    let rotation = async {
        sleep(SECOND).await;
        server.command(&["ACL", "SETUSER", "me", ">two"]).await;
        vault.set(Ok(Credentials::new("me", "two")));
        server.command(&["ACL", "SETUSER", "me", "<one"]).await;
        let asked = vault.asked();
        assert!(kill(&server, "me").await >= 4);
        asked
    };
    let ((sent, unknown), asked) = tokio::join!(load, rotation);
    assert!(vault.asked() >= asked + 4, "{} of {asked}", vault.asked());
    reaches(&tasks, sent).await;
    within(10 * SECOND, worker.stop()).await.unwrap();
    let handled = tasks.load(Ordering::SeqCst);
    let possible = sent..=sent + unknown;
    assert!(possible.contains(&handled), "{handled} of {possible:?}");
    assert!(sent > 300, "{sent}");
    assert!(raw::drained(&server, "s", "g").await);
}

#[tokio::test]
async fn every_connection_renews_its_credentials_before_they_expire() {
    let users = ["a", "b"].map(|user| format!("user {user} on >pw ~* &* +@all"));
    let server = server(&users.join("\n")).await;
    let of = |user: &str| Credentials::new(user, "pw").expires_in(4 * SECOND);
    let vault = Vault::with(of("a"));
    let redis = handle(&server, &vault).await;
    let (app, tasks, events) = app();
    let worker = Worker::start(redis.clone(), app);
    let client = Client::new(redis.clone());
    let subscribed = || async {
        let listeners: (String, usize) = server.query(&["PUBSUB", "NUMSUB", "e"]).await;
        (listeners.1 == 1).then_some(())
    };
    raw::eventually(subscribed, 10 * SECOND).await;
    use_all(&client).await.unwrap();
    // The worker has four connections: for commands, reads, the upkeep and events. The client has
    // three: for commands, fast replies and reliable replies.
    let all = || async { Some(logins(&server).await).filter(|all| all.len() == 7) };
    let before = raw::eventually(all, 10 * SECOND).await;
    assert!(before.iter().all(|(_, user)| user == "a"), "{before:?}");

    vault.set(Ok(of("b")));
    let mut used = 1;
    let renewed = async {
        let renewed = || async {
            let all = logins(&server).await;
            all.iter().all(|(_, user)| user == "b").then_some(all)
        };
        raw::eventually(renewed, 8 * SECOND).await
    };
    let load = async {
        loop {
            use_all(&client).await.unwrap();
            used += 1;
            sleep(Duration::from_millis(5)).await;
        }
    };
    let after = tokio::select! {
        after = renewed => after,
        never = load => never,
    };
    let ids = |logins: &[(u64, String)]| logins.iter().map(|it| it.0).collect::<Vec<_>>();
    assert_eq!(ids(&before), ids(&after));
    // The connections renew their credentials without any call, too.
    vault.set(Ok(of("a")));
    let again = || async {
        let all = logins(&server).await;
        all.iter().all(|(_, user)| user == "a").then_some(all)
    };
    let idle = raw::eventually(again, 8 * SECOND).await;
    assert_eq!(ids(&before), ids(&idle));
    server.command(&["ACL", "DELUSER", "b"]).await;
    use_all(&client).await.unwrap();
    reaches(&tasks, used + 1).await;
    reaches(&events, used + 1).await;
    assert_eq!(redis.counts().reconnects, 0);
    within(10 * SECOND, worker.stop()).await.unwrap();
}

#[tokio::test]
async fn a_provider_that_fails_is_in_the_error_and_asked_again() {
    let server = server("user me on >hunter2 ~* &* +@all").await;
    let right = || Ok(Credentials::new("me", "hunter2"));
    let vault = Vault::with(right().unwrap());
    vault.set(Err("the vault is sealed"));
    let connecting = Redis::builder(server.url()).credentials(vault.clone());
    let error = connecting.connect().await.unwrap_err();
    assert!(error.is_disconnected(), "{error:?}");
    assert!(chain(&error).contains("the vault is sealed"), "{error:?}");
    let waiting = connecting_when_ready(&server, &vault);
    let opening = async {
        sleep(SECOND / 5).await;
        vault.set(right());
    };
    let (redis, ()) = tokio::join!(waiting, opening);

    let logs = logs::Logs::start();
    vault.set(Err("the vault is sealed"));
    kill(&server, "me").await;
    let lost = || async { (redis.state() != ConnectionState::Connected).then_some(()) };
    raw::eventually(lost, 5 * SECOND).await;
    let asked = vault.asked();
    let client = Client::new(redis);
    let error = within(8 * SECOND, client.enqueue("n", ()).into_future()).await;
    let text = chain(&error.unwrap_err());
    assert!(text.contains("the vault is sealed"), "{text}");
    // The back-off between two tries is at most two seconds.
    let tries = vault.asked() - asked;
    assert!((2..=14).contains(&tries), "{tries}");
    let said = logs.lines(&["WARN", "cannot connect to Redis", "the vault is sealed"]);
    assert!((1..=2).contains(&said.len()), "{said:?}");
    vault.set(right());
    within(8 * SECOND, client.enqueue("n", ()).into_future())
        .await
        .unwrap();
    assert!(!logs.text().contains("hunter2"));
}

async fn connecting_when_ready(server: &RedisServer, vault: &Vault) -> Redis {
    let connecting = Redis::builder(server.url()).credentials(vault.clone());
    let connecting = connecting.connect_when_ready();
    let redis = within(10 * SECOND, connecting).await;
    redis.unwrap().stream("s").group("g")
}

fn chain(error: &Error) -> String {
    let first: &dyn std::error::Error = error;
    let all = std::iter::successors(Some(first), |error| error.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[tokio::test]
async fn a_renewal_that_is_refused_leaves_the_connection_in_use_and_is_logged_once() {
    let server = server("user me on >hunter2 ~* &* +@all").await;
    let with = |password| Credentials::new("me", password).expires_in(2 * SECOND);
    let vault = Vault::with(with("hunter2"));
    let logs = logs::Logs::start();
    let redis = handle(&server, &vault).await;
    let client = Client::new(redis.clone());
    vault.set(Ok(with("hunter3")));
    let asked = || async { (vault.asked() >= 4).then_some(()) };
    raw::eventually(asked, 10 * SECOND).await;
    client.enqueue("n", ()).await.unwrap();
    let said = logs.lines(&["WARN", "cannot renew the credentials", "WRONGPASS"]);
    assert_eq!(said.len(), 1, "{said:?}");
    vault.set(Ok(with("hunter2")));
    let asked = vault.asked();
    let again = || async { (vault.asked() > asked).then_some(()) };
    raw::eventually(again, 10 * SECOND).await;
    client.enqueue("n", ()).await.unwrap();
    assert_eq!(redis.counts().reconnects, 0);
    assert!(!logs.text().contains("hunter"), "{}", logs.text());
}

#[tokio::test]
async fn each_part_of_a_worker_names_a_password_that_has_become_wrong() {
    logs::keep();
    let server = RedisServer::with(Options::new().password("hunter2")).await;
    let redis = Redis::connect(&server.url()).await.unwrap();
    let redis = redis.stream("s").group("g").lease(2 * SECOND);
    let (app, tasks, _) = app();
    let worker = Worker::start(redis.clone(), app);
    let client = Client::new(redis);
    client.enqueue("n", ()).await.unwrap();
    client.request::<String>("r", ()).await.unwrap();
    reaches(&tasks, 1).await;
    let mut control = server.connection().await;
    let logs = logs::Logs::start();
    for command in [
        &["CONFIG", "SET", "requirepass", "new"][..],
        &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"],
        &["CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes"],
    ] {
        let mut cmd = redis::cmd(command[0]);
        let cmd = cmd.arg(&command[1..]);
        let _: redis::Value = cmd.query_async(&mut control).await.unwrap();
    }
    let address = format!("127.0.0.1:{}", server.port());
    for text in [
        "cannot connect to Redis",
        "cannot read from the stream",
        "cannot subscribe to the events",
        "cannot subscribe for replies",
        "cannot read replies",
    ] {
        let named = || async {
            let said = logs.lines(&["WARN", text, &address, "WRONGPASS"]);
            (!said.is_empty()).then_some(said)
        };
        raw::eventually(named, 10 * SECOND).await;
    }
    // The upkeep logs from another thread.
    let upkeep = ["cannot renew the leases", &address, "WRONGPASS"];
    let named = || async { (!logs::warnings(&upkeep).is_empty()).then_some(()) };
    raw::eventually(named, 10 * SECOND).await;
    for text in [
        "cannot subscribe to the events",
        "cannot read from the stream",
    ] {
        let said = logs.lines(&["WARN", text]);
        assert!((1..=3).contains(&said.len()), "{said:?}");
    }
    assert!(!logs.text().contains("hunter2"));
    assert!(logs::warnings(&["hunter2"]).is_empty());
    // The worker and the client go on when the password is valid again.
    let mut cmd = redis::cmd("CONFIG");
    let cmd = cmd.arg(&["SET", "requirepass", "hunter2"][..]);
    let _: redis::Value = cmd.query_async(&mut control).await.unwrap();
    within(10 * SECOND, client.enqueue("n", ()).into_future())
        .await
        .unwrap();
    reaches(&tasks, 2).await;
    within(10 * SECOND, worker.stop()).await.unwrap();
}

/// A Sentinel with the password `hunter2` that watches the primary `main`.
struct Sentinel {
    process: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Sentinel {
    async fn start(server: &RedisServer) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
        let port = free.expect("a free port").port();
        let path = dir.path().join("sentinel.conf");
        let watched = server.port();
        let lines = format!(
            "port {port}\nbind 127.0.0.1\nrequirepass hunter2\n\
             sentinel monitor main 127.0.0.1 {watched} 1\n"
        );
        fs::write(&path, lines).expect("the directory is writable");
        let program = std::env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into());
        let process = Command::new(program)
            .arg(&path)
            .arg("--sentinel")
            .current_dir(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("the program can be started");
        let listens = || async { TcpStream::connect(("127.0.0.1", port)).ok() };
        raw::eventually(listens, 20 * SECOND).await;
        Self {
            process,
            port,
            _dir: dir,
        }
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn sentinels_have_their_own_credentials() {
    let server = server("user me on >one ~* &* +@all").await;
    let sentinel = Sentinel::start(&server).await;
    let vault = Vault::with(Credentials::new("me", "one"));
    let url = format!("redis+sentinel://127.0.0.1:{}/main", sentinel.port);
    let builder = || Redis::builder(&url).credentials(vault.clone());
    for user in ["", "default"] {
        let redis = builder().sentinel_credentials(user, "hunter2");
        let client = Client::new(redis.connect().await.unwrap());
        client.enqueue("n", ()).await.unwrap();
    }
    let wrong = builder().sentinel_credentials("", "hunter3").connect();
    let error = wrong.await.unwrap_err();
    assert!(error.is_config(), "{error:?}");
    let text = chain(&error);
    assert!(text.contains("WRONGPASS"), "{text}");
    assert!(!text.contains("hunter"), "{text}");
    assert!(builder().connect().await.is_err());
}
