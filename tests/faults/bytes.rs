//! Large responses and commands. A slow network needs more time for them than a connection may be
//! silent, or the server refuses them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use campanile::{Client, Error, Redis, Router, State};
use futures_util::future::join_all;
use tokio::{
    runtime,
    time::{sleep, timeout},
};

use crate::{
    SECOND,
    support::{RedisServer, proxy::Proxy, raw, worker::Worker},
};

const KIB: usize = 1 << 10;

/// The message of an error and of its causes.
fn chain(error: &Error) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |it| it.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

/// The number of times that a handler has run.
type Runs = Arc<AtomicUsize>;

/// A handle on the stream `s` and the group `g`, with the default settings.
async fn handle(url: &str) -> Redis {
    let redis = Redis::connect(url).await.expect("the server is there");
    redis.stream("s").group("g")
}

/// Counts a task, and drops its payload.
async fn count(State(runs): State<Runs>, _: Bytes) {
    runs.fetch_add(1, Ordering::SeqCst);
}

/// Waits until the handlers have run `count` times and all deliveries are settled. Returns how long
/// that took.
async fn settled(server: &RedisServer, runs: &Runs, count: usize, limit: Duration) -> Duration {
    let started = Instant::now();
    let settled = || async {
        let ran = runs.load(Ordering::SeqCst) >= count;
        (ran && raw::drained(server, "s", "g").await).then_some(())
    };
    raw::eventually(settled, limit).await;
    started.elapsed()
}

/// Enqueues tasks of 512 KiB, and lets workers behind a slow network handle them.
async fn handles_large_tasks_over_a_slow_network(workers: usize) {
    // The first read of one worker requests 32 tasks. They take 8 s, longer than the 5 s that a
    // server may be silent.
    const TASKS: usize = 40;
    const TASK: usize = 512 * KIB;
    const BANDWIDTH: u32 = 2_000_000;
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    let sender = Client::new(handle(&server.url()).await);
    let tasks = (0..TASKS).map(|_| Bytes::from(vec![b'x'; TASK]));
    for sent in sender.enqueue_all("count", tasks).await {
        sent.expect("the server takes it");
    }

    let runs = Runs::default();
    let app = || Router::new().task("count", count).with_state(runs.clone());
    let redis = handle(&proxy.url()).await;
    proxy.limit_bandwidth(Some(BANDWIDTH));
    let workers: Vec<_> = (0..workers)
        .map(|_| Worker::start(redis.clone(), app()))
        .collect();
    let on_the_wire = Duration::from_secs_f64((TASKS * TASK) as f64 / f64::from(BANDWIDTH));
    let limit = on_the_wire.mul_f64(1.2) + SECOND;
    let took = settled(&server, &runs, TASKS, limit).await;
    println!("{TASKS} tasks of 512 KiB: {took:.2?}, on the wire {on_the_wire:.2?}");
    assert_eq!(runs.load(Ordering::SeqCst), TASKS, "each task runs once");
    proxy.limit_bandwidth(None);
    for worker in workers {
        worker.stop().await.expect("the worker stops");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_take_longer_to_arrive_than_a_server_may_be_silent_run_once() {
    handles_large_tasks_over_a_slow_network(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_that_share_a_slow_network_run_all_large_tasks_once() {
    handles_large_tasks_over_a_slow_network(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_task_that_takes_longer_to_arrive_than_a_lease_stays_with_its_worker() {
    // The task takes 6 s to arrive, and a lease is 2 s.
    const TASK: usize = 12 << 20;
    const BANDWIDTH: u32 = 2_000_000;
    let server = RedisServer::start().await;
    let sender = Client::new(handle(&server.url()).await);
    let task = Bytes::from(vec![b'x'; TASK]);
    sender
        .enqueue("count", task)
        .await
        .expect("the server takes it");

    let runs = Runs::default();
    let app = || Router::new().task("count", count).with_state(runs.clone());
    let proxy = Proxy::start(server.port()).await;
    let slow = handle(&proxy.url()).await.lease(2 * SECOND);
    proxy.limit_bandwidth(Some(BANDWIDTH));
    let slow = Worker::start(slow, app());
    let taken = || async { (raw::pending(&server, "s", "g").await == 1).then_some(()) };
    raw::eventually(taken, 10 * SECOND).await;
    // This worker would claim the task if the lease of the slow worker were not renewed.
    let quick = Worker::start(handle(&server.url()).await.lease(2 * SECOND), app());
    let took = settled(&server, &runs, 1, 15 * SECOND).await;
    println!("one task of 12 MiB: {took:.2?}");
    assert!(
        took > 4 * SECOND,
        "the quick worker ran the task: {took:.2?}"
    );
    assert_eq!(runs.load(Ordering::SeqCst), 1, "the task runs once");
    proxy.limit_bandwidth(None);
    for worker in [slow, quick] {
        worker.stop().await.expect("the worker stops");
    }
}

/// Replies with as many bytes as the payload says.
async fn answer(payload: Bytes) -> Result<Bytes, campanile::BoxError> {
    let size: usize = std::str::from_utf8(&payload)?.parse()?;
    Ok(Bytes::from(vec![b'x'; size]))
}

fn size_of(size: usize) -> Bytes {
    Bytes::from(size.to_string())
}

/// Sends requests concurrently, each for a reply of the given size.
async fn request_all(client: &Client<Redis>, sizes: &[usize]) -> Vec<Result<usize, Error>> {
    join_all(sizes.iter().map(async |size| {
        let reply: Bytes = client.request("answer", size_of(*size)).await?;
        Ok(reply.len())
    }))
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_that_take_longer_to_arrive_than_a_server_may_be_silent_are_all_received() {
    // One read brings all replies but the first few. They take 14 s, longer than the 7 s of a
    // blocked read.
    const REPLY: usize = 512 * KIB;
    const BANDWIDTH: u32 = 1_500_000;
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    let app = Router::new().rpc("answer", answer);
    let worker = Worker::start(handle(&server.url()).await, app);
    let client = Client::new(handle(&proxy.url()).await);
    let first: Bytes = client.request("answer", size_of(1)).await.expect("a reply");
    assert_eq!(first.len(), 1);

    proxy.limit_bandwidth(Some(BANDWIDTH));
    let mut sizes = [REPLY; 31];
    sizes[30] = 1;
    let started = Instant::now();
    let replies = request_all(&client, &sizes).await;
    let took = started.elapsed();
    // A reply is encoded as base64.
    let bytes = 30 * REPLY / 3 * 4;
    let on_the_wire = Duration::from_secs_f64(bytes as f64 / f64::from(BANDWIDTH));
    println!("30 replies of 512 KiB: {took:.2?}, on the wire {on_the_wire:.2?}");
    for (reply, size) in replies.into_iter().zip(sizes) {
        assert_eq!(reply.expect("an answer"), size);
    }
    assert!(took < on_the_wire.mul_f64(1.2) + SECOND, "{took:?}");
    worker.stop().await.expect("the worker stops");
}

/// A server that accepts no argument of more than 1 MiB, the lowest limit that can be set.
async fn server_of_small_arguments() -> RedisServer {
    let server = RedisServer::start().await;
    let limit = ["CONFIG", "SET", "proto-max-bulk-len", "1mb"];
    server.command(&limit).await;
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_the_server_does_not_take_fails_alone_and_clearly() {
    let server = server_of_small_arguments().await;
    let large = async |State(runs): State<Runs>| {
        runs.fetch_add(1, Ordering::SeqCst);
        Bytes::from(vec![b'x'; 2048 * KIB])
    };
    let large_runs = Runs::default();
    let app = Router::new()
        .task("pass", async |_: Bytes| {})
        .rpc("large", large)
        .rpc("answer", answer)
        .with_state(large_runs.clone());
    let redis = handle(&server.url()).await.lease(SECOND);
    let worker = Worker::start(redis.clone(), app);
    let client = Client::new(redis);
    let refused = client.request::<Bytes>("large", ()).timeout(10 * SECOND);
    let others = async {
        let started = Instant::now();
        let mut last = Instant::now();
        let mut longest = Duration::ZERO;
        while started.elapsed() < 4 * SECOND {
            client
                .enqueue("pass", "x")
                .await
                .expect("the message is sent");
            let reply: Bytes = client.request("answer", size_of(1)).await.expect("a reply");
            assert_eq!(reply.len(), 1);
            longest = longest.max(last.elapsed());
            last = Instant::now();
            sleep(SECOND / 20).await;
        }
        longest
    };
    let (refused, longest) = tokio::join!(refused.into_future(), others);
    let error = refused.expect_err("the server takes no reply of 2 MiB");
    println!(
        "the others waited {longest:.2?} at most; the large one: {}",
        chain(&error)
    );
    assert!(chain(&error).contains("large"), "{}", chain(&error));
    assert!(!error.is_timeout(), "{}", chain(&error));
    assert!(longest < 2 * SECOND, "the others waited {longest:?}");
    let drained = || async { raw::drained(&server, "s", "g").await.then_some(()) };
    raw::eventually(drained, 10 * SECOND).await;
    assert_eq!(
        large_runs.load(Ordering::SeqCst),
        1,
        "the handler runs once"
    );
    worker.stop().await.expect("the worker stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_that_are_too_large_together_for_the_server_are_all_received() {
    let server = server_of_small_arguments().await;
    let redis = handle(&server.url()).await.lease(SECOND);
    // The handlers end at the same time, so that their replies are stored by one call.
    let barrier = Arc::new(tokio::sync::Barrier::new(20));
    let together = async |State(barrier): State<Arc<tokio::sync::Barrier>>| {
        barrier.wait().await;
        Bytes::from(vec![b'x'; 100 * KIB])
    };
    let app = Router::new().rpc("together", together).with_state(barrier);
    let worker = Worker::start(redis.clone(), app);
    let client = Client::new(redis);
    let requests = (0..20).map(|_| {
        let request = client.request::<Bytes>("together", ());
        request.timeout(10 * SECOND).into_future()
    });
    let replies = join_all(requests).await;
    let failed: Vec<_> = replies.iter().filter_map(|it| it.as_ref().err()).collect();
    assert!(
        failed.is_empty(),
        "{} of 20 failed: {failed:?}",
        failed.len()
    );
    worker.stop().await.expect("the worker stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_the_server_does_not_take_fails_alone_and_clearly() {
    let server = server_of_small_arguments().await;
    let client = Client::new(handle(&server.url()).await);
    let payloads = (0..21).map(|n| match n {
        10 => Bytes::from(vec![b'x'; 2048 * KIB]),
        _ => Bytes::from_static(b"small"),
    });
    let mut sent = client.enqueue_all("count", payloads).await;
    let large = sent
        .remove(10)
        .expect_err("the server takes no task of 2 MiB");
    println!("the large one: {}", chain(&large));
    let failed: Vec<_> = sent.iter().filter_map(|it| it.as_ref().err()).collect();
    assert!(
        failed.is_empty(),
        "{} of 20 failed: {failed:?}",
        failed.len()
    );
    assert!(large.is_refused(), "{}", chain(&large));
    assert!(
        chain(&large).contains("proto-max-bulk-len"),
        "{}",
        chain(&large)
    );
    assert_eq!(raw::len(&server, "s").await, 20, "each is sent once");
}

/// Runs on one thread, so that its memory can be measured.
fn on_one_thread<T>(work: impl Future<Output = T>) -> T {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

#[test]
fn a_small_payload_that_is_kept_does_not_keep_the_large_answer_it_came_with() {
    const KEPT: usize = 200;
    let mut kept = Vec::new();
    // The memory of the worker and of the server's handle is freed before the measurement ends.
    let measured = allocation_counter::measure(|| {
        on_one_thread(async {
            let server = RedisServer::start().await;
            let (small, received) = tokio::sync::mpsc::unbounded_channel();
            let keep = async |State(small): State<tokio::sync::mpsc::UnboundedSender<Bytes>>,
                              payload: Bytes| {
                // The handler keeps its payloads, as one that fills a map does.
                small.send(payload).expect("the test is there");
            };
            let app = Router::new()
                .task("keep", keep)
                .task("pass", async |_: Bytes| {})
                .with_state(small);
            let redis = handle(&server.url()).await;
            let client = Client::new(redis.clone());
            for n in 0..KEPT {
                let large = client.enqueue("pass", vec![b'x'; 60_000]);
                large.await.expect("the message is sent");
                let small = client.enqueue("keep", format!("{n:020}"));
                small.await.expect("the message is sent");
            }
            let worker = Worker::start(redis, app);
            let mut received = received;
            while kept.len() < KEPT {
                let next = timeout(20 * SECOND, received.recv()).await;
                kept.push(
                    next.expect("the payload arrives in time")
                        .expect("the app is there"),
                );
            }
            worker.stop().await.expect("the worker stops");
        });
    });
    let each = measured.bytes_current / KEPT as i64;
    println!("each payload of 20 bytes keeps {each} bytes");
    assert_eq!(kept.len(), KEPT);
    assert!(each < 1_000, "each payload of 20 bytes keeps {each} bytes");
}

#[test]
fn sends_that_wait_for_a_slow_network_hold_a_bounded_number_of_bytes() {
    const SENDS: usize = 100;
    let payload = Bytes::from(vec![b'x'; 5 << 20]);
    let mut refused = 0;
    let measured = allocation_counter::measure(|| {
        on_one_thread(async {
            let server = RedisServer::start().await;
            let proxy = Proxy::start(server.port()).await;
            let client = Client::new(handle(&proxy.url()).await);
            proxy.limit_bandwidth(Some(2_000_000));
            let sends = (0..SENDS).map(|_| {
                // The payload is shared, so only the transport's memory is measured.
                let send = client.enqueue("count", payload.clone());
                timeout(4 * SECOND, send.into_future())
            });
            for sent in join_all(sends).await {
                refused += usize::from(matches!(sent, Ok(Err(_))));
            }
        });
    });
    let mib = measured.bytes_max >> 20;
    println!("{SENDS} sends of 5 MiB hold {mib} MiB");
    assert_eq!(refused, 0, "a slow network is no error");
    assert!(mib < 64, "{SENDS} sends of 5 MiB hold {mib} MiB");
}
