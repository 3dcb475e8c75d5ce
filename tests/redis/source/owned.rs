//! Owned partitions: order by key over several workers, while they come, go, crash and stall.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Instant,
};

use campanile::{
    Attempt, BoxError, Client, Extension, Failure, Router,
    transport::{Backoff, PartitionTerm, Selection, Start, Streams, UnknownNames},
};

use super::{
    support::{
        Options,
        proxy::{Direction, Proxy},
        rights::documented,
        worker::Worker,
    },
    *,
};

/// A handle of the stream `orders` with owned partitions.
async fn owning(url: &str, partitions: usize) -> Redis {
    let redis = Redis::connect(url).await.expect("the server is there");
    redis
        .streams(Streams::partitioned("orders", partitions).owned())
        .group("g")
        .lease(SECOND)
        .backoff(Backoff::exponential(SECOND / 100, SECOND / 50))
}

/// The runs of handlers, in the order in which they begin and end.
#[derive(Debug, Clone, Default)]
struct Runs(Arc<Mutex<Vec<Run>>>);

#[derive(Debug, Clone)]
struct Run {
    key: String,
    number: u32,
    worker: usize,
    partition: PartitionTerm,
    begun: Instant,
    /// The end of the handler, and `true` if it succeeded. `None` while it runs, and for ever if its
    /// worker crashed.
    ended: Option<(Instant, bool)>,
}

impl Runs {
    /// An application whose handler takes a few milliseconds, and fails at each attempt below the
    /// `fails`th of each seventh message.
    fn app(&self, worker: usize, fails: u32) -> Router {
        let runs = self.clone();
        Router::new().task(
            "n",
            async move |Extension(term): Extension<PartitionTerm>, message: Message| {
                let Attempt(attempt) = message.parts().attempt;
                let key = message.parts().partition_key.clone();
                let key = key.expect("a key is sent").to_string();
                let number = std::str::from_utf8(message.payload()).ok();
                let number = number.and_then(|number| number.parse::<u32>().ok());
                let number = number.expect("a number is sent");
                let run = runs.begin(key, number, worker, term);
                tokio::time::sleep(SECOND / 200).await;
                let fails = number % 7 == 3 && attempt < fails;
                runs.end(run, !fails);
                match fails {
                    true => Err(BoxError::from(Failure::redeliver_after(SECOND / 100))),
                    false => Ok(()),
                }
            },
        )
    }

    fn begin(&self, key: String, number: u32, worker: usize, partition: PartitionTerm) -> usize {
        let mut runs = self.0.lock().unwrap();
        runs.push(Run {
            key,
            number,
            worker,
            partition,
            begun: Instant::now(),
            ended: None,
        });
        runs.len() - 1
    }

    fn end(&self, run: usize, succeeded: bool) {
        self.0.lock().unwrap()[run].ended = Some((Instant::now(), succeeded));
    }

    fn all(&self) -> Vec<Run> {
        self.0.lock().unwrap().clone()
    }

    fn succeeded(&self) -> usize {
        let runs = self.0.lock().unwrap();
        runs.iter()
            .filter(|run| matches!(run.ended, Some((_, true))))
            .count()
    }

    async fn until_succeeded(&self, count: usize) {
        let done = async || (self.succeeded() >= count).then_some(());
        raw::eventually(done, 30 * SECOND).await;
    }

    /// Asserts that each key's messages were done in order, one at a time, none twice.
    fn assert_in_order(&self, keys: usize, messages: u32) {
        let mut of_keys = BTreeMap::<String, Vec<Run>>::new();
        for run in self.all() {
            of_keys.entry(run.key.clone()).or_default().push(run);
        }
        assert_eq!(of_keys.len(), keys);
        for (key, runs) in of_keys {
            let done = runs
                .iter()
                .filter(|run| matches!(run.ended, Some((_, true))));
            let done: Vec<_> = done.map(|run| run.number).collect();
            assert_eq!(done, (0..messages).collect::<Vec<_>>(), "{key}");
            for pair in runs.windows(2) {
                // The handler of a crashed worker never ends, and ended with it.
                if let Some((ended, _)) = pair[0].ended {
                    assert!(
                        ended <= pair[1].begun,
                        "two runs of {key} at once: {pair:?}"
                    );
                }
                assert!(pair[0].number <= pair[1].number, "{pair:?}");
                assert!(pair[0].partition <= pair[1].partition, "{pair:?}");
            }
        }
    }
}

async fn send(redis: &Redis, keys: usize, numbers: std::ops::Range<u32>) {
    let client = Client::new(redis.clone());
    for number in numbers {
        for key in 0..keys {
            let call = client.enqueue("n", number.to_string());
            call.partition_key(format!("key-{key}"))
                .await
                .expect("it is sent");
        }
    }
}

/// The number of partitions of each worker, by its latest runs.
fn shares(runs: &[Run]) -> BTreeMap<usize, usize> {
    let mut owners = BTreeMap::new();
    for run in runs {
        owners.insert(run.partition.partition, run.worker);
    }
    let mut shares = BTreeMap::new();
    for owner in owners.into_values() {
        *shares.entry(owner).or_default() += 1;
    }
    shares
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_a_key_are_handled_in_order_while_workers_come_go_and_crash() {
    let server = RedisServer::start().await;
    let redis = owning(&server.url(), 8).await;
    let runs = Runs::default();
    let start = async |worker| {
        let redis = owning(&server.url(), 8).await;
        Worker::start(redis, runs.app(worker, 3))
    };
    send(&redis, 20, 0..10).await;
    let first = start(1).await;
    runs.until_succeeded(50).await;
    let second = start(2).await;
    send(&redis, 20, 10..20).await;
    runs.until_succeeded(300).await;
    let third = start(3).await;
    send(&redis, 20, 20..30).await;
    runs.until_succeeded(450).await;
    drop(second);
    send(&redis, 20, 30..40).await;
    runs.until_succeeded(700).await;
    first.stop().await.expect("it stops");
    send(&redis, 20, 40..50).await;
    runs.until_succeeded(1000).await;
    runs.assert_in_order(20, 50);
    let workers: std::collections::BTreeSet<_> = runs.all().iter().map(|run| run.worker).collect();
    assert_eq!(workers.len(), 3, "each worker has worked");
    third.stop().await.expect("it stops");
    for partition in 0..8 {
        let stream = format!("orders:{partition}");
        assert_eq!(raw::pending(&server, &stream, "g").await, 0);
    }
    let members: Vec<String> = server.query(&["HKEYS", "{orders}:members:g"]).await;
    assert_eq!(members.len(), 0, "{members:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_worker_owns_its_share_within_seconds_and_the_share_of_a_dead_one_after_a_lease() {
    let server = RedisServer::start().await;
    let redis = owning(&server.url(), 8).await;
    let runs = Runs::default();
    let start = async |worker| {
        let redis = owning(&server.url(), 8).await;
        Worker::start(redis, runs.app(worker, 0))
    };
    let first = start(1).await;
    send(&redis, 60, 0..1).await;
    runs.until_succeeded(60).await;
    assert_eq!(shares(&runs.all()), BTreeMap::from([(1, 8)]));
    let second = start(2).await;
    let began = Instant::now();
    let mut round = 1;
    // Sends rounds until the partitions are divided.
    let mut divided = async |expected: BTreeMap<usize, usize>| {
        loop {
            send(&redis, 60, round..round + 1).await;
            round += 1;
            runs.until_succeeded(60 * round as usize).await;
            let all = runs.all();
            if shares(&all[all.len() - 60..]) == expected {
                return;
            }
            assert!(
                began.elapsed() < 20 * SECOND,
                "{:?}",
                shares(&all[all.len() - 60..])
            );
            tokio::time::sleep(SECOND / 10).await;
        }
    };
    divided(BTreeMap::from([(1, 4), (2, 4)])).await;
    println!(
        "divided {:.2?} after the second worker started",
        began.elapsed()
    );
    assert!(began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
    let died = Instant::now();
    drop(first);
    divided(BTreeMap::from([(2, 8)])).await;
    println!("owned {:.2?} after the first worker died", died.elapsed());
    assert!(died.elapsed() < 5 * SECOND, "{:?}", died.elapsed());
    second.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_verdict_of_a_former_owner_takes_effect() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port()).await;
    let redis = owning(&server.url(), 1).await;
    let cut_off = owning(&format!("redis://127.0.0.1:{}/", proxy.port()), 1).await;
    let mut former = open(&cut_off).await;
    send(&redis, 1, 0..3).await;
    let delivery = next(&mut former).await;
    let lease = message(&delivery)
        .parts()
        .lease
        .clone()
        .expect("it has a lease");
    proxy.silence(Direction::ToServer);
    let mut owner = open(&redis).await;
    let inherited = within(10 * SECOND, owner.next(5))
        .await
        .expect("deliveries");
    assert_eq!(inherited.len(), 1, "what was left is handled one at a time");
    assert_eq!(message(&inherited[0]).payload(), "0");
    assert_eq!(message(&inherited[0]).parts().attempt, Attempt(2));
    assert!(lease.is_lost(), "the former owner has noticed it");
    proxy.heal();
    let settled = within(20 * SECOND, delivery.settle(done())).await;
    settled.expect("it changes nothing");
    assert_eq!(
        raw::pending(&server, "orders:0", "g").await,
        1,
        "it is pending for the owner"
    );
    let mut payloads = Vec::new();
    for delivery in inherited {
        settle(delivery, done()).await;
    }
    for _ in 1..3 {
        let delivery = next(&mut owner).await;
        payloads.push(message(&delivery).payload().clone());
        settle(delivery, done()).await;
    }
    assert_eq!(payloads, ["1", "2"]);
    assert_eq!(cut_off.counts().lost_leases, 1);
    drop(former);
    within(5 * SECOND, owner.close()).await.expect("it closes");
}

#[tokio::test]
async fn the_rights_that_the_docs_name_are_enough_for_owned_partitions() {
    let worker = documented(&["serves tasks", "… on partitions", "… that workers own"]);
    let worker = worker.replace("~s ~{s}:*", "~s:* ~{s:*");
    let sender = documented(&["sends tasks", "… to partitions"]).replace("~s ", "~s:* ");
    let users = format!(
        "user worker on >pw resetchannels {worker}\n\
         user sender on >pw resetchannels {sender}\n\
         user default on nopass ~* &* +@all"
    );
    let server = RedisServer::with(Options::new().acl(&users)).await;
    let redis = async |user| {
        let url = format!("redis://{user}:pw@127.0.0.1:{}/", server.port());
        let redis = owning(&url, 3).await;
        redis.streams(Streams::partitioned("s", 3).owned())
    };
    let mut source = open(&redis("worker").await).await;
    let client = Client::new(redis("sender").await);
    for attempt in ["1", "2"] {
        let call = client.enqueue("n", attempt).partition_key("k");
        call.await.expect("it is sent");
    }
    let delivery = next(&mut source).await;
    let again = Verdict::Redeliver {
        after: None,
        counted: true,
        reason: "it failed".into(),
    };
    settle(delivery, again).await;
    for payload in ["1", "2"] {
        let delivery = next(&mut source).await;
        assert_eq!(message(&delivery).payload(), payload);
        settle(delivery, done()).await;
    }
    within(5 * SECOND, source.close()).await.expect("it closes");
}

#[tokio::test]
async fn a_worker_that_would_read_owned_partitions_is_refused() {
    let server = RedisServer::start().await;
    let owner = open(&owning(&server.url(), 2).await).await;
    let redis = owning(&server.url(), 2).await;
    let in_turn = redis.streams(Streams::partitioned("orders", 2));
    let refused = in_turn.clone().open(Interest::stream()).await;
    let refused = refused.map(drop).expect_err("it would break the order");
    assert!(
        refused.is_config() && refused.to_string().contains(".owned()"),
        "{refused}"
    );
    let other_group = in_turn.clone().group("h").start(Start::Beginning);
    let other_group = open(&other_group.unknown_names(UnknownNames::Fail)).await;
    within(5 * SECOND, other_group.close())
        .await
        .expect("it closes");
    within(5 * SECOND, owner.close()).await.expect("it closes");
    let in_turn = open(&in_turn.unknown_names(UnknownNames::Fail)).await;
    within(5 * SECOND, in_turn.close())
        .await
        .expect("it closes");
}

#[tokio::test]
async fn failures_dead_letters_replays_requests_and_delays_work_in_owned_partitions() {
    let server = RedisServer::start().await;
    let redis = owning(&server.url(), 2).await.max_deliveries(2);
    let mut source = open(&redis).await;
    let client = Client::new(redis.clone());
    let call = client.enqueue("n", "bad").partition_key("k");
    call.await.expect("it is sent");
    let call = client.enqueue("n", "good").partition_key("k");
    call.await.expect("it is sent");
    for attempt in 1..=2 {
        let delivery = next(&mut source).await;
        assert_eq!(message(&delivery).payload(), "bad", "it holds its key");
        assert_eq!(message(&delivery).parts().attempt, Attempt(attempt));
        let again = Verdict::Redeliver {
            after: None,
            counted: true,
            reason: "it failed".into(),
        };
        settle(delivery, again).await;
    }
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).payload(), "good");
    settle(delivery, done()).await;
    let dead = redis.dead_letters();
    assert_eq!(dead.count().await.expect("a number"), 1);
    assert_eq!(dead.replay(Selection::All).await.expect("a number"), 1);
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).payload(), "bad");
    assert_eq!(message(&delivery).parts().attempt, Attempt(1));
    settle(delivery, done()).await;

    let asked = tokio::spawn(async move { client.request::<String>("ask", "7").await });
    let delivery = next(&mut source).await;
    settle(delivery, Verdict::Done(Ok(Reply::new("8")))).await;
    assert_eq!(asked.await.unwrap().expect("a reply"), "8");

    let client = Client::new(redis.clone());
    let call = client.enqueue("n", "later").delay(SECOND / 2);
    call.await.expect("it is sent");
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).payload(), "later");
    settle(delivery, Verdict::Release).await;
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).payload(), "later");
    settle(delivery, done()).await;
    within(5 * SECOND, source.close()).await.expect("it closes");
    let counts = redis.counts();
    assert_eq!((counts.done, counts.dead), (4, 1), "{counts:?}");
}

#[tokio::test]
async fn a_unique_task_that_ends_its_owners_frees_its_key_as_a_dead_letter() {
    let server = RedisServer::start().await;
    let redis = owning(&server.url(), 1).await.max_deliveries(2);
    let call = Client::new(redis.clone()).enqueue("n", "1").unique("k");
    let receipt = call.partition_key("a").tracked(60 * SECOND).await;
    let receipt = receipt.expect("it is sent");
    for attempt in 1..=2 {
        let mut source = open(&redis).await;
        let delivery = next(&mut source).await;
        assert_eq!(message(&delivery).parts().attempt, Attempt(attempt));
        // The worker ends without settling it.
        drop((source, delivery));
    }
    let source = open(&redis).await;
    let dead = || async { (redis.counts().dead == 1).then_some(()) };
    let mut source = source;
    tokio::select! {
        found = source.next(1) => panic!("it is delivered again: {found:?}"),
        () = raw::eventually(dead, 20 * SECOND) => {}
    }
    let tasks = redis.tasks();
    let key = "k".into();
    assert_eq!(tasks.holder(&key).await.expect("the server answers"), None);
    let status = tasks.status(receipt.id().expect("it is stored")).await;
    let status = status.expect("the server answers").expect("it is kept");
    assert_eq!(status.state, campanile::transport::TaskState::Dead);
    source.close().await.expect("the source closes");
}

#[tokio::test]
async fn a_former_owners_read_that_runs_late_on_the_server_leaves_the_order_as_it_is() {
    let server = RedisServer::start().await;
    let redis = owning(&server.url(), 1).await;
    let mut owner = open(&redis).await;
    send(&redis, 1, 0..1).await;
    let first = next(&mut owner).await;
    assert_eq!(message(&first).payload(), "0");
    settle(first, done()).await;
    // The owner reads nothing now, since it is asked for nothing.
    send(&redis, 1, 1..4).await;
    for expected in ["1", "2", "3"] {
        // The read of a former owner takes the next message, and nobody handles it.
        let late = [
            "GROUP", "g", "former", "COUNT", "1", "STREAMS", "orders:0", ">",
        ];
        let _: redis::Value = server.query(&[&["XREADGROUP"], &late[..]].concat()).await;
        let delivery = next(&mut owner).await;
        assert_eq!(message(&delivery).payload(), expected);
        settle(delivery, done()).await;
    }
    within(5 * SECOND, owner.close()).await.expect("it closes");
}
