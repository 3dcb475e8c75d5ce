//! Every feature on all nodes of a cluster, over one handle.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Instant,
};

use campanile::{
    Attempt, BoxError, Client, Failure, Json, Message, Redis, Router,
    transport::{Backoff, Page, PauseTarget, Selection, Streams, WorkerOrder, redis::TailFrom},
};
use futures_util::future::join_all;

use crate::{
    FOUND, SECOND,
    calls::Calls,
    connect,
    support::{
        cluster::Cluster,
        raw::{self, eventually},
        worker::Worker,
    },
};

const GROUP: &str = "workers";

/// A cluster, a handle of it, and a stream on each of its nodes.
struct Scene {
    cluster: Cluster,
    redis: Redis,
    streams: [String; 3],
}

impl Scene {
    async fn start() -> Self {
        let cluster = Cluster::of_primaries().await;
        Self {
            redis: connect(&cluster.url()).await,
            streams: cluster.a_name_on_each("jobs").await,
            cluster,
        }
    }

    /// A clone of the handle for each stream.
    fn handles(&self) -> [Redis; 3] {
        self.streams.each_ref().map(|stream| {
            let redis = self.redis.clone().stream(stream.as_str()).group(GROUP);
            redis.backoff(Backoff::exponential(SECOND / 10, SECOND))
        })
    }

    /// Starts a worker for each stream.
    fn workers(&self, app: &Router) -> [Worker; 3] {
        self.handles()
            .map(|redis| Worker::start(redis, app.clone()))
    }
}

/// The runs of each task.
#[derive(Debug, Clone, Default)]
struct Runs(Arc<Mutex<BTreeMap<u64, Vec<u32>>>>);

impl Runs {
    fn add(&self, n: u64, attempt: Attempt) {
        self.0.lock().unwrap().entry(n).or_default().push(attempt.0);
    }

    /// Waits until this number of tasks has run, and returns the attempts of each.
    async fn all(&self, tasks: usize) -> BTreeMap<u64, Vec<u32>> {
        let ran = async || (self.0.lock().unwrap().len() >= tasks).then_some(());
        eventually(ran, FOUND).await;
        self.0.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn tasks_on_all_nodes_are_sent_and_run_over_one_handle() {
    let scene = Scene::start().await;
    let runs = Runs::default();
    let count = runs.clone();
    let app = Router::new().task("work", async move |attempt: Attempt, Json(n): Json<u64>| {
        count.add(n, attempt);
    });
    let client = Client::new(scene.redis.clone());
    // Each call chooses its stream. The calls are made one after the other, then many in one batch.
    for n in 0..30 {
        let stream = &scene.streams[n as usize % 3];
        client
            .enqueue("work", Json(n))
            .stream(stream.as_str())
            .await
            .unwrap();
    }
    for (node, stream) in scene.streams.iter().enumerate() {
        assert_eq!(raw::len(scene.cluster.node(node), stream).await, 10);
    }
    for (redis, first) in scene.handles().into_iter().zip([100, 200, 300]) {
        let payloads = (first..first + 100).map(Json);
        let sent = Client::new(redis).enqueue_all("work", payloads).await;
        assert!(sent.iter().all(Result::is_ok), "{sent:?}");
    }
    let workers = scene.workers(&app);
    let runs = runs.all(330).await;
    assert!(runs.values().all(|attempts| *attempts == [1]), "{runs:?}");
    for (node, stream) in scene.streams.iter().enumerate() {
        let server = scene.cluster.node(node);
        let drained = async || raw::drained(server, stream, GROUP).await.then_some(());
        eventually(drained, 10 * SECOND).await;
    }
    for worker in workers {
        worker.stop().await.unwrap();
    }
}

#[tokio::test]
async fn delayed_tasks_keys_and_retries_work_on_every_node() {
    let scene = Scene::start().await;
    let runs = Runs::default();
    let count = runs.clone();
    let app = Router::new().task(
        "flaky",
        async move |attempt: Attempt, Json(n): Json<u64>| {
            count.add(n, attempt);
            match attempt.0 {
                1 => Err(BoxError::from("the first attempt always fails")),
                _ => Ok(()),
            }
        },
    );
    let sent = Instant::now();
    for (redis, n) in scene.handles().into_iter().zip(0..) {
        let client = Client::new(redis.clone());
        let delayed = || {
            client
                .enqueue("flaky", Json(n))
                .delay(SECOND)
                .idempotency_key(format!("{n}"))
        };
        let id = delayed().await.unwrap();
        assert_eq!(delayed().await.unwrap().id(), id.id());
        let cancelled = client
            .enqueue("flaky", Json(n + 10))
            .delay(SECOND)
            .await
            .unwrap();
        assert!(
            redis
                .tasks()
                .cancel(cancelled.id().unwrap(), "")
                .await
                .unwrap()
        );
    }
    let _workers = scene.workers(&app);
    runs.all(3).await;
    assert!(sent.elapsed() >= SECOND, "{:?}", sent.elapsed());
    let twice = async || {
        let runs = runs.0.lock().unwrap();
        runs.values()
            .all(|attempts| *attempts == [1, 2])
            .then(|| runs.len())
    };
    assert_eq!(eventually(twice, FOUND).await, 3);
}

#[tokio::test]
async fn dead_letters_of_every_node_are_listed_replayed_and_purged() {
    let scene = Scene::start().await;
    let runs = Runs::default();
    let count = runs.clone();
    let app = Router::new().task(
        "doomed",
        async move |attempt: Attempt, Json(n): Json<u64>| {
            count.add(n, attempt);
            Err::<(), _>(Failure::dead_letter().because("it is doomed"))
        },
    );
    let _workers = scene.workers(&app);
    for (redis, n) in scene.handles().into_iter().zip(0..) {
        let letters = redis.dead_letters();
        let count = async |count| {
            let is = async || (letters.count().await.unwrap() == count).then_some(());
            eventually(is, FOUND).await;
        };
        let client = Client::new(redis);
        client.enqueue("doomed", Json(2 * n)).await.unwrap();
        client.enqueue("doomed", Json(2 * n + 1)).await.unwrap();
        count(2).await;
        let page = letters.list(Page::default()).await.unwrap();
        assert_eq!(page.letters.len(), 2);
        let first = page.letters[0].id.clone();
        assert!(letters.get(&first).await.unwrap().is_some());
        assert_eq!(letters.replay(Selection::ids([first])).await.unwrap(), 1);
        count(2).await;
        let replayed = async || (runs.0.lock().unwrap()[&(2 * n)] == [1, 1]).then_some(());
        eventually(replayed, FOUND).await;
        count(2).await;
        assert_eq!(letters.purge(Selection::All).await.unwrap(), 2);
        count(0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_and_events_work_on_every_node() {
    let scene = Scene::start().await;
    let calls = scene
        .streams
        .iter()
        .enumerate()
        .map(async |(node, stream)| {
            let calls = Calls::start(&scene.redis, stream).await;
            // Events reach every node, so any node will do.
            calls.work(scene.cluster.node((node + 1) % 3)).await;
        });
    join_all(calls).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_keep_applications_apart_on_every_node() {
    let cluster = Cluster::of_primaries().await;
    let streams = [0, 1, 2].map(|n| format!("{{tag-{n}}}.s"));
    let (mut apps, mut workers) = (Vec::new(), Vec::new());
    for namespace in ["blue", "green"] {
        let redis = connect(&format!("{}?namespace={namespace}", cluster.url())).await;
        let redis = redis.group(GROUP);
        let runs = Arc::<Mutex<Vec<String>>>::default();
        let (count, heard) = (runs.clone(), runs.clone());
        let app = Router::new()
            .task("work", async move |payload: String| {
                count.lock().unwrap().push(payload);
            })
            .rpc("who", async move || namespace)
            .event_pattern("n?ws", async move |payload: String| {
                heard.lock().unwrap().push(payload);
            });
        let set = Streams::in_turn(streams.iter().map(String::as_str));
        workers.push(Worker::start(redis.clone().streams(set), app));
        apps.push((namespace, redis, runs));
    }
    for (namespace, redis, runs) in &apps {
        let client = Client::new(redis.clone());
        for stream in &streams {
            // A stream with a hash tag stays in its slot.
            let owner = cluster.owner(stream).await;
            let key = format!("{namespace}:{stream}");
            assert_eq!(cluster.owner(&key).await, owner);
            let task = client.enqueue("work", *namespace).stream(stream.as_str());
            task.idempotency_key("k").delay(SECOND / 10).await.unwrap();
            let asked = client.request::<String>("who", "").stream(stream.as_str());
            assert_eq!(asked.await.unwrap(), *namespace);
            let asked = client
                .request_fast::<String>("who", "")
                .stream(stream.as_str());
            assert_eq!(asked.await.unwrap(), *namespace);
        }
        client.publish("news", *namespace).await.unwrap();
        let all = async || (runs.lock().unwrap().len() == 4).then_some(());
        eventually(all, FOUND).await;
    }
    for (namespace, _, runs) in &apps {
        let runs = runs.lock().unwrap();
        assert!(
            runs.len() == 4 && runs.iter().all(|it| it == namespace),
            "{runs:?}"
        );
    }
    for node in 0..3 {
        let keys: Vec<String> = cluster.node(node).query(&["KEYS", "*"]).await;
        let is_in = |key: &str| key.contains("blue:{tag-") || key.contains("green:{tag-");
        assert!(keys.iter().all(|key| is_in(key)), "{keys:?}");
        let channels: Vec<String> = cluster.node(node).query(&["PUBSUB", "CHANNELS"]).await;
        let is_in = |it: &str| it.starts_with("blue:") || it.starts_with("green:");
        assert!(
            channels.iter().all(|channel| is_in(channel)),
            "{channels:?}"
        );
    }
}

#[tokio::test]
async fn statistics_and_tail_work_on_every_node() {
    let scene = Scene::start().await;
    for redis in scene.handles() {
        let client = Client::new(redis.clone());
        client.enqueue("a", "1").await.unwrap();
        client
            .enqueue("a", "later")
            .delay(60 * SECOND)
            .await
            .unwrap();
        let stats = redis.stats().await.unwrap();
        assert_eq!((stats.entries, stats.delayed), (1, 1));
        let mut tail = redis.tail(TailFrom::Beginning).await.unwrap();
        let message = tail.next().await.unwrap().content.unwrap();
        assert_eq!(message.payload(), "1");
        assert!(tail.next_present().await.unwrap().is_none());
        let next = tokio::spawn(async move { tail.next().await.unwrap().content.unwrap() });
        client.enqueue("a", "2").await.unwrap();
        assert_eq!(next.await.unwrap().payload(), "2");
    }
}

#[cfg(feature = "cli")]
#[tokio::test]
async fn the_program_works_with_the_url_of_a_cluster() {
    use crate::{
        program::{campanile_at, run},
        support::version,
    };

    let scene = Scene::start().await;
    let app = Router::new()
        .task("doomed", async || Err::<(), _>(Failure::dead_letter()))
        .rpc("answer", async || Json(42));
    let _workers = scene.workers(&app);
    let url = scene.cluster.url();
    for (node, stream) in scene.streams.iter().enumerate() {
        let ran = async |line: &str| {
            let line = format!("--stream {stream} --group {GROUP} {line}");
            run(campanile_at(&url, &line)).await.ended_with(0)
        };
        assert_eq!(ran("send rpc answer").await.text().trim(), "42");
        ran("send task doomed").await;
        let dead = format!("{{{stream}}}:dead:{GROUP}");
        let server = scene.cluster.node(node);
        let died = async || (raw::len(server, &dead).await == 1).then_some(());
        eventually(died, FOUND).await;
        let stats = ran("stats --json").await.json();
        assert_eq!(stats["groups"][0]["dead"], 1, "{stats}");
        let list = ran("dead list --json").await.json();
        assert_eq!(list["letters"][0]["name"], "doomed", "{list}");
        ran("dead replay --all --yes").await;
        eventually(died, FOUND).await;
        ran("dead purge --all --yes").await;
        assert_eq!(raw::len(server, &dead).await, 0);
        ran("tail stream --from beginning --no-follow").await;
    }
    let hears = async |event: &str, option: &str| {
        let ran = async |line: String| run(campanile_at(&url, &line)).await.ended_with(0);
        let sends = async {
            loop {
                ran(format!("send event {event} good {option}")).await;
                tokio::time::sleep(SECOND / 10).await;
            }
        };
        let heard = tokio::select! {
            heard = ran(format!("tail events {event} --count 1 {option}")) => heard,
            () = sends => unreachable!(),
        };
        assert!(heard.text().contains("good"), "{}", heard.text());
    };
    hears("news", "").await;
    if version() >= (7, 0) {
        for name in &scene.streams {
            hears(name, "--sharded").await;
        }
    }
}

#[cfg(feature = "schedule")]
#[tokio::test]
async fn schedules_of_streams_on_every_node_send_each_tick_once() {
    use campanile::schedule::{Missed, Schedule, ScheduledTask};

    let scene = Scene::start().await;
    let every = Schedule::every(SECOND / 10)
        .missed(Missed::All)
        .jitter(SECOND / 20);
    let task = ScheduledTask::new("often", every.clone(), "often", "").tracked(SECOND);
    for redis in scene.handles() {
        let schedules = redis.schedules();
        assert!(schedules.put(&task).await.unwrap());
        let began = schedules.list().await.unwrap()[0].last_tick;
        let last = async || schedules.list().await.unwrap()[0].last_tick;
        let ran = async || {
            let ran = eventually(
                async || (last().await > began + SECOND).then_some(()),
                FOUND,
            );
            ran.await;
        };
        // Two processes.
        tokio::select! {
            ended = schedules.run([task.clone()]) => panic!("{ended:?}"),
            ended = schedules.run([]) => panic!("{ended:?}"),
            () = ran() => {}
        }
        // The handle sends its commands in order, so a tick on its way is before this.
        assert!(schedules.pause(task.name()).await.unwrap());
        let last = last().await;
        let ticks = every.next_ticks(began, 10_000).unwrap().into_iter();
        let ticks = ticks.take_while(|tick| *tick <= last).count();
        let stats = redis.stats().await.unwrap();
        assert_eq!((stats.entries + stats.delayed) as usize, ticks);
    }
}

#[tokio::test]
async fn limits_pauses_and_purges_work_on_every_node() {
    let scene = Scene::start().await;
    for redis in scene.handles() {
        let (runs, limit) = (Runs::default(), redis.limit("jobs").unwrap());
        // The number of tasks that run now, and the most that ran at once.
        let running = Arc::new(Mutex::new((0, 0)));
        let (ran, now) = (runs.clone(), running.clone());
        let handler = async move |message: Message| {
            let parts = message.parts();
            let _permit = match limit.acquire(parts, "all", 2).await? {
                Ok(permit) => permit,
                Err(request) => return Err(Failure::park(request).into()),
            };
            {
                let mut now = now.lock().unwrap();
                now.0 += 1;
                now.1 = now.0.max(now.1);
            }
            tokio::time::sleep(SECOND / 50).await;
            now.lock().unwrap().0 -= 1;
            let n = std::str::from_utf8(message.payload())?.parse()?;
            ran.add(n, parts.attempt);
            Ok::<_, BoxError>(())
        };
        let worker = Worker::start(redis.clone(), Router::new().task("job", handler));
        let client = Client::new(redis.clone());
        for n in 0..20 {
            client.enqueue("job", n.to_string()).await.unwrap();
        }
        let attempts = runs.all(20).await;
        assert!(
            attempts.values().all(|attempts| *attempts == [1]),
            "{attempts:?}"
        );
        assert_eq!(running.lock().unwrap().1, 2);
        assert!(redis.counts().parked > 0);

        let control = redis.control();
        assert!(control.pause(PauseTarget::Group, "").await.unwrap());
        tokio::time::sleep(SECOND * 3 / 2).await;
        for n in 20..30 {
            client.enqueue("job", n.to_string()).await.unwrap();
        }
        assert_eq!(control.purge_waiting().await.unwrap(), 10);
        assert!(control.resume(PauseTarget::Group).await.unwrap());
        client.enqueue("job", "30").await.unwrap();
        assert_eq!(runs.all(21).await.len(), 21);
        worker.stop().await.unwrap();
    }
}

#[tokio::test]
async fn workers_on_all_nodes_are_listed_asked_and_given_orders() {
    let scene = Scene::start().await;
    let app = Router::new().task("job", async || {});
    let started = scene.workers(&app);
    for redis in scene.handles() {
        let client = Client::new(redis.clone());
        client.enqueue("job", ()).await.unwrap();
        let workers = redis.workers();
        let announced = async || {
            let found = workers.list().await.unwrap();
            let found = found.into_iter().find(|worker| worker.fault.is_none())?;
            Some(found)
        };
        let info = eventually(announced, FOUND).await;
        assert_eq!(info.transport, "redis cluster");
        let done = async || {
            let found = workers.stats().await.unwrap();
            assert_eq!(found.silent, [""; 0]);
            let history = redis.history().await.unwrap();
            let minutes = history.iter().map(|minute| minute.done);
            (found.answers[0].done == 1 && minutes.sum::<u64>() == 1).then_some(())
        };
        eventually(done, FOUND).await;
        let order = workers.order(&info.worker, WorkerOrder::Limit(Some(3)), "ada");
        assert!(order.await.unwrap());
        let is_followed = async || {
            let found = workers.list().await.unwrap();
            (found[0].limit == Some(3)).then_some(())
        };
        eventually(is_followed, FOUND).await;
    }
    for worker in started {
        worker.stop().await.unwrap();
    }
    for redis in scene.handles() {
        assert_eq!(redis.workers().list().await.unwrap(), []);
        assert_eq!(redis.drop_group(false).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_worker_of_partitions_that_it_owns_is_listed_once() {
    let scene = Scene::start().await;
    let stream = scene.streams[0].as_str();
    let redis = scene.redis.clone().group(GROUP);
    let redis = redis.streams(Streams::partitioned(stream, 3).owned());
    let worker = Worker::start(redis.clone(), Router::new().task("job", async || {}));
    let workers = redis.workers();
    let announced = async || {
        let found = workers.list().await.unwrap();
        (found.len() == 1 && found[0].fault.is_none()).then_some(found)
    };
    let found = eventually(announced, FOUND).await;
    assert_eq!(found[0].streams, [stream]);
    let client = Client::new(redis.clone());
    for n in 0..9 {
        client
            .enqueue("job", ())
            .partition_key(n.to_string())
            .await
            .unwrap();
    }
    let done = async || {
        let found = workers.stats().await.unwrap();
        let history = redis.history().await.unwrap();
        let minutes = history.iter().map(|minute| minute.done);
        let all = found.answers.len() == 1 && found.answers[0].done == 9;
        (all && minutes.sum::<u64>() == 9).then_some(())
    };
    eventually(done, FOUND).await;
    worker.stop().await.unwrap();
    assert_eq!(workers.list().await.unwrap(), []);
}
