//! Tasks that replicas confirm.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use campanile::{Client, Error, Json, Receipt, Router, client::Call};
use futures_util::future::{FutureExt, join_all};
use tokio::{sync::mpsc, time::sleep};

use super::{
    Redis, SECOND, handle,
    support::{
        Options, RedisServer, Signal,
        proxy::{Direction, Proxy},
        raw,
        rights::documented,
        worker::Worker,
    },
};

/// The time limit for replicas that answer.
const WITHIN: Duration = Duration::from_secs(10);
/// The time limit for replicas that do not answer.
const BRIEF: Duration = Duration::from_millis(300);

async fn client(server: &RedisServer) -> Client<Redis> {
    Client::new(handle(server).await)
}

/// The number of `WAIT`s that the server has answered.
async fn waits(server: &RedisServer) -> usize {
    let info: String = server.query(&["INFO", "commandstats"]).await;
    let calls = info.split("cmdstat_wait:calls=").nth(1);
    let calls = calls.and_then(|rest| rest.split(',').next());
    calls.map_or(0, |calls| calls.parse().expect("a number"))
}

/// Asserts that a call has failed, and that its task is nevertheless the stream's only entry.
async fn assert_stored(server: &RedisServer, sent: Result<Receipt, Error>) -> Error {
    let error = sent.expect_err("no replica has it");
    assert!(error.is_unreplicated(), "{error:?}");
    let others = [
        error.is_disconnected(),
        error.is_unknown_outcome(),
        error.is_timeout(),
        error.is_refused(),
    ];
    assert_eq!(others, [false; 4], "{error:?}");
    let entries = raw::entries(server, "s").await;
    assert_eq!(entries.len(), 1);
    let id = error.stored_id().expect("the id of the stored task");
    assert_eq!(id.as_str(), entries[0].0);
    error
}

#[tokio::test]
async fn a_confirmed_task_is_on_the_replica() {
    let server = RedisServer::start().await;
    let replica = server.replica().await;
    let client = client(&server).await;
    let task = || client.enqueue("n", "").replicas(1, WITHIN);
    task().await.expect("the task is confirmed");
    assert_eq!(raw::len(&replica, "s").await, 1);
    let keyed = task()
        .idempotency_key("k")
        .await
        .expect("the task is confirmed");
    assert_eq!(raw::len(&replica, "s").await, 2);
    let known: String = replica.query(&["GET", "{s}:idem:k"]).await;
    assert_eq!(keyed.id().expect("an id").as_str(), known);
    let again = task()
        .idempotency_key("k")
        .await
        .expect("the task is confirmed");
    assert_eq!(again.id(), keyed.id());
    assert!(again.is_duplicate() && !keyed.is_duplicate());
    let late = task()
        .delay(3600 * SECOND)
        .await
        .expect("the task is confirmed");
    let id = late.id().expect("an id");
    let is_there: bool = replica.query(&["HEXISTS", "{s}:bodies", id.as_str()]).await;
    assert!(is_there);
    assert_eq!(client.service().counts().sent, 4);
}

#[tokio::test]
async fn a_stopped_replica_fails_the_call_in_time_and_the_task_is_stored() {
    let server = RedisServer::start().await;
    let replica = server.replica().await;
    replica.signal(Signal::Stop);
    let start = Instant::now();
    let sent = client(&server)
        .await
        .enqueue("n", "")
        .replicas(1, BRIEF)
        .await;
    let took = start.elapsed();
    assert!(took >= BRIEF && took < BRIEF + 2 * SECOND, "{took:?}");
    let error = assert_stored(&server, sent).await.to_string();
    assert!(
        error.contains("0 of 1 replicas have confirmed it within 300ms"),
        "{error}"
    );
}

#[tokio::test]
async fn more_replicas_than_there_are_fail_the_call_at_once_with_advice() {
    let server = RedisServer::start().await;
    let _replicas = [server.replica().await, server.replica().await];
    let client = client(&server).await;
    let task = |count, within| client.enqueue("n", "").replicas(count, within);
    for _ in 0..2 {
        let start = Instant::now();
        let error = task(5, 30 * SECOND).await.expect_err("there are two");
        assert!(start.elapsed() < 5 * SECOND, "{:?}", start.elapsed());
        assert!(error.is_refused() && !error.is_unreplicated(), "{error:?}");
        let text = error.to_string();
        for part in [
            "5 replicas must confirm the task, and the primary has 2",
            "nothing was sent",
            "ask for at most 2 replicas, or add replicas",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
    assert_eq!(raw::len(&server, "s").await, 0);
    // The number that the advice leads to works, and so does a number that there is later.
    task(2, WITHIN).await.expect("the task is confirmed");
    let _third = server.replica().await;
    task(3, WITHIN).await.expect("the task is confirmed");
}

/// Sends a task with a key that `keyed` adds, over a new handle, whose connection has written nothing
/// before.
async fn send_anew(
    server: &RedisServer,
    keyed: impl FnOnce(Call<Redis, Receipt>) -> Call<Redis, Receipt>,
) -> Result<Receipt, Error> {
    let task = client(server).await.enqueue("n", "");
    keyed(task).replicas(1, BRIEF).await
}

#[tokio::test]
async fn a_task_that_is_sent_again_with_its_key_is_confirmed_and_stored_once() {
    let server = RedisServer::start().await;
    let replica = server.replica().await;
    replica.signal(Signal::Stop);
    let send = async || send_anew(&server, |task| task.idempotency_key("k")).await;
    let first = assert_stored(&server, send().await).await;
    let second = assert_stored(&server, send().await).await;
    assert_eq!(first.stored_id(), second.stored_id());
    let life: u64 = server.query(&["PTTL", "{s}:idem:k"]).await;
    replica.signal(Signal::Cont);
    let confirmed = || async { send().await.ok() };
    let receipt = raw::eventually(confirmed, 10 * SECOND).await;
    assert_eq!(receipt.id(), first.stored_id());
    assert_eq!(raw::len(&server, "s").await, 1);
    let left: u64 = server.query(&["PTTL", "{s}:idem:k"]).await;
    assert!(left <= life, "the key's time to live has grown");
}

#[tokio::test]
async fn a_unique_task_that_is_sent_again_is_confirmed_only_by_replicas() {
    let server = RedisServer::start().await;
    let replica = server.replica().await;
    replica.signal(Signal::Stop);
    let send = async || send_anew(&server, |task| task.unique("k")).await;
    let first = send().await.expect_err("no replica has it");
    let second = send().await.expect_err("no replica has it");
    assert!(first.is_unreplicated() && second.is_unreplicated());
    assert_eq!(first.stored_id(), second.stored_id());
    replica.signal(Signal::Cont);
    let confirmed = || async { send().await.ok() };
    let receipt = raw::eventually(confirmed, 10 * SECOND).await;
    assert_eq!(receipt.id(), first.stored_id());
    assert!(receipt.is_duplicate());
    assert_eq!(raw::len(&server, "s").await, 1);
}

#[tokio::test]
async fn tasks_that_are_sent_together_share_a_wait() {
    let server = RedisServer::start().await;
    let _replica = server.replica().await;
    let client = client(&server).await;
    let send = |_| client.enqueue("n", "").replicas(1, WITHIN).into_future();
    for sent in join_all((0..100).map(send)).await {
        sent.expect("the task is confirmed");
    }
    assert_eq!(waits(&server).await, 1);
    for sent in join_all((0..100).map(send)).await {
        sent.expect("the task is confirmed");
    }
    assert_eq!(waits(&server).await, 2);
}

#[tokio::test]
async fn each_task_is_judged_by_its_own_number_of_replicas() {
    let server = RedisServer::start().await;
    let (_replica, stopped) = (server.replica().await, server.replica().await);
    stopped.signal(Signal::Stop);
    let client = client(&server).await;
    let within = 2 * SECOND;
    let send = |count| {
        client
            .enqueue("n", "")
            .replicas(count, within)
            .into_future()
    };
    let sent = join_all([1, 2, 1].map(send)).await;
    assert_eq!(waits(&server).await, 1);
    assert!(sent[0].is_ok() && sent[2].is_ok(), "{sent:?}");
    let error = sent[1].as_ref().expect_err("one replica has stopped");
    assert!(error.is_unreplicated(), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("1 of 2 replicas have"), "{text}");
}

#[tokio::test]
async fn other_calls_are_not_held_up_by_tasks_that_wait_for_replicas() {
    let server = RedisServer::start().await;
    let replica = server.replica().await;
    replica.signal(Signal::Stop);
    let client = client(&server).await;
    let waiting = client.enqueue("n", "").replicas(1, 5 * SECOND);
    let waiting = tokio::spawn(waiting.into_future());
    let stored = || async { (raw::len(&server, "s").await == 1).then_some(()) };
    raw::eventually(stored, SECOND).await;
    let start = Instant::now();
    for _ in 0..50 {
        client.enqueue("n", "").await.expect("the message is sent");
    }
    client.publish("e", "").await.expect("the message is sent");
    assert!(start.elapsed() < 2 * SECOND, "{:?}", start.elapsed());
    assert!(!waiting.is_finished(), "it waits");
    replica.signal(Signal::Cont);
    let sent = waiting.await.expect("it does not panic");
    sent.expect("the task is confirmed");
}

#[tokio::test]
async fn a_connection_that_is_lost_during_the_wait_leaves_the_task_stored() {
    let server = RedisServer::start().await;
    let replica = server.replica().await;
    replica.signal(Signal::Stop);
    let client = client(&server).await;
    let waiting = client.enqueue("n", "").replicas(1, WITHIN);
    let waiting = tokio::spawn(waiting.into_future());
    let is_waiting = || async {
        let info: String = server.query(&["INFO", "clients"]).await;
        info.contains("blocked_clients:1").then_some(())
    };
    raw::eventually(is_waiting, 5 * SECOND).await;
    sleep(SECOND / 10).await;
    server.kill_connections().await;
    let error = assert_stored(&server, waiting.await.unwrap()).await;
    assert!(error.to_string().contains("connection was lost"), "{error}");
    replica.signal(Signal::Cont);
    let again = client.enqueue("n", "").replicas(1, WITHIN).await;
    again.expect("the task is confirmed");
}

#[tokio::test]
async fn a_cluster_is_asked_for_its_replicas() {
    let server = RedisServer::with(Options::new().cluster()).await;
    let client = client(&server).await;
    let task = client.enqueue("n", "").replicas(1, BRIEF);
    let error = task.await.expect_err("the node has no replica");
    assert!(error.to_string().contains("the primary has 0"), "{error}");
    assert_eq!(raw::len(&server, "s").await, 0);
}

#[tokio::test]
async fn a_sender_needs_one_more_right() {
    let rights = documented(&["sends tasks", "… with a delay"]);
    let wait = documented(&["… that replicas confirm"]);
    for (rights, may_wait) in [(format!("{rights} {wait}"), true), (rights, false)] {
        let rights = format!("user sender on >pw +info {rights}");
        let server = RedisServer::with(Options::new().acl(&rights)).await;
        // The replica logs in as the default user.
        let _replica = server.replica().await;
        let url = format!("redis://sender:pw@127.0.0.1:{}/", server.port());
        let redis = Redis::connect(&url)
            .await
            .expect("the server is there")
            .stream("s");
        let client = Client::new(redis);
        let task = || client.enqueue("n", "").idempotency_key("k");
        if may_wait {
            task()
                .replicas(1, WITHIN)
                .await
                .expect("the task is confirmed");
            task()
                .replicas(1, WITHIN)
                .await
                .expect("the task is confirmed");
            continue;
        }
        let error = assert_stored(&server, task().replicas(1, WITHIN).await).await;
        let chain = format!("{:#}", anyhow::Error::from(error));
        assert!(chain.contains("has not asked its replicas"), "{chain}");
        assert!(chain.contains("lacks a right"), "{chain}");
    }
}

/// The number of tasks before and after the replica begins to lag.
const TASKS: u32 = 200;

/// The numbers after a failover to a replica that lags.
#[derive(Debug, PartialEq)]
struct Failover {
    /// Sends that returned `Ok`.
    confirmed: usize,
    /// Sends that returned `Ok`, and whose tasks no worker has handled.
    lost: usize,
    /// Tasks that were handled twice.
    repeated: usize,
}

/// Sends half of the tasks, makes the replica lag, and sends the other half. Then kills the primary
/// and promotes the replica. While the replica lags, a worker on the primary handles the first
/// half.
async fn fail_over(replicas: bool) -> Failover {
    let primary = RedisServer::start().await;
    let network = Proxy::start(primary.port()).await;
    let replica = primary.replica_through(network.port()).await;
    let sender = client(&primary).await;
    let send = |n| {
        let task = sender.enqueue("n", Json(n));
        let task = match replicas {
            true => task.replicas(1, 2 * SECOND),
            false => task,
        };
        task.into_future()
            .map(move |sent| sent.is_ok().then_some(n))
    };
    let (handled, mut runs) = mpsc::unbounded_channel::<u32>();
    let work = |server: Redis| {
        let handled = handled.clone();
        let app = Router::new().task("n", async move |Json(n)| {
            handled.send(n).expect("the test listens");
        });
        Worker::start(server.group("g"), app)
    };

    let mut confirmed: BTreeSet<_> = join_all((0..TASKS).map(send))
        .await
        .into_iter()
        .flatten()
        .collect();
    let first = || async { (raw::len(&replica, "s").await == TASKS as usize).then_some(()) };
    raw::eventually(first, 10 * SECOND).await;
    let mut all = Vec::new();
    network.silence(Direction::ToClient);
    let worker = work(handle(&primary).await);
    while all.len() < TASKS as usize {
        all.push(runs.recv().await.expect("a worker runs"));
    }
    worker.stop().await.expect("the worker stops");
    confirmed.extend(
        join_all((TASKS..2 * TASKS).map(send))
            .await
            .into_iter()
            .flatten(),
    );

    primary.signal(Signal::Kill);
    drop(network);
    replica.command(&["REPLICAOF", "NO", "ONE"]).await;
    let worker = work(handle(&replica).await);
    let drained = || async { raw::drained(&replica, "s", "g").await.then_some(()) };
    raw::eventually(drained, 30 * SECOND).await;
    worker.stop().await.expect("the worker stops");
    while let Ok(n) = runs.try_recv() {
        all.push(n);
    }
    let once: BTreeSet<_> = all.iter().copied().collect();
    Failover {
        confirmed: confirmed.len(),
        lost: confirmed.difference(&once).count(),
        repeated: all.len() - once.len(),
    }
}

#[tokio::test]
async fn a_failover_to_a_lagging_replica_loses_no_confirmed_task() {
    let (without, with) = tokio::join!(fail_over(false), fail_over(true));
    for (
        call,
        Failover {
            confirmed,
            lost,
            repeated,
        },
    ) in [("enqueue", &without), ("enqueue, replicas(1, 2 s)", &with)]
    {
        println!(
            "failover to a lagging replica: {call}: sent {} ok {confirmed} lost {lost} run twice {repeated}",
            2 * TASKS
        );
    }
    assert_eq!(with.lost, 0);
    assert_eq!(with.confirmed, TASKS as usize);
    // Without confirmation the same fault loses tasks, so the test shows it.
    assert_eq!(without.lost, TASKS as usize);
    assert_eq!(without.confirmed, 2 * TASKS as usize);
}
