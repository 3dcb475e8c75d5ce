//! Orders of operators to workers, and what workers say about themselves.

use std::{
    future::IntoFuture,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use campanile::{
    Client, Error, Failure, Router, serve,
    transport::{WorkerInfo, WorkerOrder, WorkerState, memory::Memory},
};
use tokio::{
    sync::Semaphore,
    task::JoinHandle,
    time::{sleep, timeout},
};

const LONG: Duration = Duration::from_secs(60);
const MOMENT: Duration = Duration::from_millis(200);

/// A worker whose task `work` lasts until it gets a permit.
struct Scene {
    memory: Memory,
    client: Client<Memory>,
    running: Arc<AtomicUsize>,
    permits: Arc<Semaphore>,
}

impl Scene {
    fn new() -> Self {
        let memory = Memory::new().max_in_flight(8);
        Self {
            client: Client::new(memory.clone()),
            memory,
            running: Arc::default(),
            permits: Arc::new(Semaphore::new(0)),
        }
    }

    async fn serve(&self) -> JoinHandle<Result<(), Error>> {
        let (running, permits) = (self.running.clone(), self.permits.clone());
        let app: Router = Router::new()
            .task("work", async move || {
                running.fetch_add(1, Ordering::SeqCst);
                permits.acquire().await.expect("it is open").forget();
                running.fetch_sub(1, Ordering::SeqCst);
            })
            .task("quick", async || {})
            .task("fail", async || {
                Err::<(), _>(Failure::dead_letter().because("no"))
            });
        let known = self.list().await.len();
        let worker = serve(self.memory.clone(), app).service("shop", "1.2.3");
        let worker = tokio::spawn(worker.into_future());
        while self.list().await.len() == known {
            sleep(Duration::from_millis(1)).await;
        }
        worker
    }

    async fn list(&self) -> Vec<WorkerInfo> {
        self.memory.workers().list().await.expect("it is in memory")
    }

    async fn send(&self, name: &str, count: usize) {
        for _ in 0..count {
            self.client.enqueue(name, ()).await.expect("it is sent");
        }
    }

    async fn order(&self, worker: &str, order: WorkerOrder) {
        let workers = self.memory.workers();
        let given = workers.order(worker, order, "ada").await;
        assert!(given.expect("the order is valid"));
    }

    fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_an_operator_lowers_what_runs_and_ends_with_another_order() {
    let scene = Scene::new();
    let _worker = scene.serve().await;
    let worker = scene.list().await[0].worker.clone();
    scene.order(&worker, WorkerOrder::Limit(Some(3))).await;
    scene.send("work", 20).await;
    sleep(MOMENT).await;
    assert_eq!(scene.running(), 3);
    scene.order(&worker, WorkerOrder::Limit(Some(100))).await;
    sleep(MOMENT).await;
    assert_eq!(scene.running(), 8, "the configured maximum");
    scene.order(&worker, WorkerOrder::Limit(Some(2))).await;
    scene.permits.add_permits(8);
    sleep(MOMENT).await;
    assert_eq!(scene.running(), 2);
    scene.order(&worker, WorkerOrder::Limit(None)).await;
    sleep(MOMENT).await;
    assert_eq!(scene.running(), 8);
}

#[tokio::test(start_paused = true)]
async fn a_paused_worker_leaves_messages_to_others_and_ends_what_runs() {
    let scene = Scene::new();
    let _first = scene.serve().await;
    let first = scene.list().await[0].worker.clone();
    scene.send("work", 2).await;
    sleep(MOMENT).await;
    scene.order(&first, WorkerOrder::Pause).await;
    scene.send("work", 1).await;
    scene.permits.add_permits(2);
    sleep(MOMENT).await;
    assert_eq!(scene.running(), 0);
    assert_eq!(scene.list().await[0].state, WorkerState::Paused);
    let _second = scene.serve().await;
    sleep(MOMENT).await;
    assert_eq!(scene.running(), 1, "the other worker runs it");
    scene.send("work", 20).await;
    sleep(MOMENT).await;
    assert_eq!(scene.running(), 8);
    scene.order(&first, WorkerOrder::Resume).await;
    sleep(MOMENT).await;
    assert_eq!(scene.running(), 16);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_paused_on_one_worker_runs_on_another() {
    let scene = Scene::new();
    let _first = scene.serve().await;
    let first = scene.list().await[0].worker.clone();
    scene
        .order(&first, WorkerOrder::PauseName("work".into()))
        .await;
    scene.send("work", 4).await;
    scene.send("quick", 4).await;
    sleep(MOMENT).await;
    assert_eq!(scene.running(), 0);
    let stats = scene
        .memory
        .workers()
        .stats()
        .await
        .expect("it is in memory");
    assert_eq!((stats.answers[0].done, stats.answers[0].failed), (4, 0));
    let second = scene.serve().await;
    sleep(LONG).await;
    assert_eq!(scene.running(), 4);
    assert_eq!(scene.list().await[0].paused, ["work"]);
    second.abort();
    scene
        .order(&first, WorkerOrder::ResumeName("work".into()))
        .await;
    sleep(LONG).await;
    assert_eq!(scene.list().await[0].paused, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_drained_worker_ends_after_what_runs() {
    let scene = Scene::new();
    let worker = scene.serve().await;
    let name = scene.list().await[0].worker.clone();
    scene.send("work", 1).await;
    sleep(MOMENT).await;
    scene.order(&name, WorkerOrder::Drain).await;
    sleep(MOMENT).await;
    let info = scene.list().await.remove(0);
    assert_eq!(info.state, WorkerState::Draining);
    assert_eq!(
        (&*info.orders[0].order, &*info.orders[0].by),
        ("drain", "ada")
    );
    assert!(!worker.is_finished());
    scene.permits.add_permits(1);
    let ended = timeout(LONG, worker).await.expect("it ends");
    ended.expect("no panic").expect("it was drained");
    assert_eq!(scene.list().await, []);
}

#[tokio::test(start_paused = true)]
async fn a_worker_announces_its_service_and_counts_by_route() {
    let scene = Scene::new();
    let _worker = scene.serve().await;
    let info = scene.list().await.remove(0);
    assert_eq!((&*info.service, &*info.version), ("shop", "1.2.3"));
    assert_eq!(info.routes, ["task work", "task quick", "task fail"]);
    scene.send("quick", 3).await;
    scene.send("fail", 1).await;
    scene.send("nothing-for-this", 2).await;
    scene.send("nor-for-this", 1).await;
    sleep(MOMENT).await;
    let stats = scene
        .memory
        .workers()
        .stats()
        .await
        .expect("it is in memory");
    let stats = &stats.answers[0];
    let route = |name: &str| stats.routes.iter().find(|route| route.name == name);
    assert_eq!(route("quick").expect("it has run").done, 3);
    let failed = route("fail").expect("it has run");
    assert_eq!(failed.dead, 1);
    assert!(
        failed
            .last_error
            .as_ref()
            .expect("it has failed")
            .reason
            .contains("no")
    );
    // Senders choose these names, so they are counted together.
    assert_eq!(route("(other)").expect("they have failed").failed, 3);
    assert_eq!(stats.routes.len(), 3);
    let history = scene.memory.history().await.expect("it is in memory");
    let last = history.last().expect("the current minute");
    assert_eq!((last.done, last.failed, last.dead), (3, 3, 1));
}

#[tokio::test(start_paused = true)]
async fn the_history_has_each_minute_and_forgets_after_an_hour() {
    let scene = Scene::new();
    let _worker = scene.serve().await;
    scene.send("quick", 2).await;
    sleep(MOMENT).await;
    sleep(Duration::from_secs(180)).await;
    scene.send("quick", 1).await;
    sleep(MOMENT).await;
    let done = async || {
        let history = scene.memory.history().await.expect("it is in memory");
        let done = history.iter().map(|minute| minute.done);
        done.filter(|done| *done > 0).collect::<Vec<_>>()
    };
    assert_eq!(done().await, [2, 1]);
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(done().await, [0; 0]);
}
