//! More streams and more calls in one process than usual.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use campanile::{Client, Redis, Reply, Router, serve, transport::Streams};
use futures_util::future::join_all;
use tokio::time::sleep;

use crate::{
    SECOND,
    support::{RedisServer, Signal, raw},
};

/// The environment variable that turns this binary into a process of many idle streams.
const IDLE: &str = "CAMPANILE_FAULTS_IDLE";
const STREAMS: usize = 200;

/// The number of connections to the server, without the one that asks.
async fn connections(server: &RedisServer) -> usize {
    let clients: String = server.query(&["CLIENT", "LIST"]).await;
    clients.lines().count() - 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_on_many_streams_share_a_bounded_number_of_connections() {
    const TENANTS: usize = 500;
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url()).await;
    let redis = redis.expect("the server is there");
    let clients: Vec<_> = (0..TENANTS)
        .map(|n| Client::new(redis.clone().stream(format!("tenant-{n}"))))
        .collect();
    let requests = clients.iter().map(|client| {
        // No worker replies. By the time-out, each client has made its connections for replies.
        let request = client.request::<Reply>("anything", ()).timeout(2 * SECOND);
        request.into_future()
    });
    let answered = join_all(requests).await;
    assert!(answered.iter().all(Result::is_err), "there is no worker");
    let found = connections(&server).await;
    println!("{found} connections for requests on {TENANTS} streams");
    assert!(found <= 8, "{found} connections");
    drop(clients);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_without_a_connection_fail_five_seconds_after_they_were_made() {
    const CALLS: usize = 6_000;
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url()).await;
    let client = Client::new(redis.expect("the server is there").stream("s"));
    client.enqueue("n", ()).await.expect("the message is sent");
    server.signal(Signal::Kill);
    // The loss is noticed before the calls start.
    let lost = || async {
        let sent = tokio::time::timeout(SECOND / 10, client.enqueue("n", ()).into_future()).await;
        sent.is_err().then_some(())
    };
    raw::eventually(lost, 10 * SECOND).await;
    let calls = (0..CALLS).map(async |_| {
        let started = Instant::now();
        let error = client.enqueue("n", "x").await.expect_err("nobody is there");
        assert!(error.is_disconnected(), "{error:?}");
        started.elapsed()
    });
    let waits = join_all(calls).await;
    let (shortest, longest) = (waits.iter().min(), waits.iter().max());
    println!("{CALLS} calls waited {shortest:.2?} to {longest:.2?}");
    let longest = longest.expect("at least one call");
    assert!(*longest < 7 * SECOND, "a call has waited {longest:?}");
}

/// A process with a worker of many idle streams.
#[test]
#[ignore = "a process of idle streams, which another test starts"]
fn idle_process() {
    let Ok(url) = std::env::var(IDLE) else {
        return;
    };
    // This process ends with the process that started it, also if that is killed.
    thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let redis = Redis::connect(&url).await.expect("the server is there");
        let streams = (0..STREAMS).map(|n| format!("stream-{n}"));
        let redis = redis.streams(Streams::in_turn(streams)).group("g");
        let app = Router::new().task("n", async || {}).event("e", async || {});
        let served = serve(redis, app).await;
        served.expect("the worker runs until it is killed");
    });
}

/// The number of commands that clients have sent. `XREADGROUP` is left out: scripts call it too,
/// and a worker sends one a second, since its read blocks for a second.
async fn sent(server: &RedisServer) -> u64 {
    let stats: String = server.query(&["INFO", "commandstats"]).await;
    let calls = stats.lines().filter_map(|line| {
        let (name, figures) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        let by_clients = [
            "evalsha",
            "eval",
            "ping",
            "client|unblock",
            "publish",
            "xack",
        ];
        let calls = figures.split(',').next()?.parse::<u64>().ok()?;
        by_clients.contains(&name).then_some(calls)
    });
    calls.sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_idle_streams_of_one_worker_need_a_handful_of_everything() {
    let server = RedisServer::start().await;
    let this = std::env::current_exe().expect("this binary");
    let child = Command::new(this)
        .args(["many::idle_process", "--exact", "--ignored"])
        .env(IDLE, server.url())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn();
    let mut child = child.expect("this binary starts");
    let joined = || async {
        let groups = (0..STREAMS).map(|n| format!("stream-{n}"));
        for stream in groups {
            let command = ["XINFO", "CONSUMERS", &stream, "g"];
            let info = server.try_command(&command);
            let consumers: Vec<HashMap<String, redis::Value>> =
                redis::from_redis_value(info.await.ok()?).ok()?;
            (!consumers.is_empty()).then_some(())?;
        }
        Some(())
    };
    raw::eventually(joined, 30 * SECOND).await;
    let tasks = fs::read_dir(format!("/proc/{}/task", child.id()));
    let threads = tasks.expect("the process runs").count();
    let (before, period) = (sent(&server).await, Duration::from_secs(10));
    sleep(period).await;
    // The connections of the test's own questions, which the server closes a moment later, are gone
    // by now.
    let connections = connections(&server).await;
    let commands = sent(&server).await - before;
    let each_second = commands as f64 / period.as_secs_f64();
    // A task must start as soon as on a worker of one stream.
    let mut longest = Duration::ZERO;
    for n in 0..20 {
        let stream = format!("stream-{}", n * 9);
        let began = Instant::now();
        raw::add(&server, &stream, &[("type", &b"task"[..]), ("name", b"n")]).await;
        let done = || async { raw::drained(&server, &stream, "g").await.then_some(()) };
        raw::eventually(done, 5 * SECOND).await;
        longest = longest.max(began.elapsed());
    }
    println!(
        "{STREAMS} idle streams: {threads} threads, {connections} connections, {each_second:.1} commands sent a second beside the read; a task took at most {longest:.0?}"
    );
    child.kill().expect("the process runs");
    child.wait().expect("the process ends");
    // Three threads of the test program (the main thread, the test's, the one that watches stdin),
    // two of the runtime, and one that renews leases. The rest is slack.
    assert!(threads <= 3 + 3 + 2, "{threads} threads");
    // One connection to read, one to settle, one for the upkeep and one for events.
    assert!(connections <= 4, "{connections} connections");
    assert!(each_second <= 1.2, "{each_second} commands a second");
    assert!(longest < SECOND / 2, "a task took {longest:?}");
}
