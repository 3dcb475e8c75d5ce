//! Checks of partitions that workers own.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::{
    Factory,
    partitions::keyed_task,
    scene::{
        LEASE, OpenSource, QUIET, Scene, attempt, done, in_time, message, must, redeliver_after,
        send, settle,
    },
};
use crate::{
    error::Error,
    message::Message,
    reply::Reply,
    sync::lock,
    transport::{Delivery, PartitionTerm, SettleDelivery, Source, Streams, Verdict},
};

/// The number of partitions in checks that divide them.
const PARTITIONS: usize = 4;

/// Returns a scene whose workers own this number of partitions.
fn scene_of<F: Factory>(factory: &F, partitions: usize) -> Scene<'_, F> {
    let scene = Scene::new(factory);
    let stream = scene.name("owned");
    scene.with(|settings| {
        settings.streams = Some(Streams::partitioned(&stream, partitions).owned());
        settings.stream = stream;
        settings.lease = LEASE;
    })
}

fn term<H>(delivery: &Delivery<H>) -> PartitionTerm {
    let term = message(delivery).extensions().get::<PartitionTerm>();
    *term.expect("a delivery of an owned partition has a `PartitionTerm`")
}

/// Sends messages without a key: `rounds` to each partition.
async fn send_to_all<S>(handle: &S, rounds: usize)
where
    S: Service<Message, Response = Reply, Error = Error> + Clone,
{
    for number in 0..rounds * PARTITIONS {
        send(handle, Message::task("task", number.to_string())).await;
    }
}

/// Checks that a worker that is alone owns all partitions, even if other workers have owned them
/// before, and that each new owner of a partition has a higher term than the last.
pub async fn a_worker_that_is_alone_owns_all_partitions<F: Factory>(factory: &F) {
    if !factory.capabilities().owned_partitions {
        return;
    }
    let scene = scene_of(factory, PARTITIONS);
    let handle = scene.handle().await;
    let mut terms = BTreeMap::new();
    for round in 0..3 {
        send_to_all(&handle, 1).await;
        let mut worker = scene.worker().await;
        let held = worker.exactly(PARTITIONS).await;
        let owned_terms: BTreeMap<_, _> = held
            .iter()
            .map(|delivery| (term(delivery).partition, term(delivery).term))
            .collect();
        assert_eq!(owned_terms.len(), PARTITIONS, "round {round}");
        for (partition, term) in owned_terms {
            let before = terms.insert(partition, term);
            assert!(before.is_none_or(|before| before < term), "{terms:?}");
        }
        for delivery in held {
            done(delivery).await;
        }
        worker.close().await;
    }
}

/// Checks that two workers divide the partitions into equal shares, and that no two workers have
/// deliveries of one partition at the same time.
pub async fn each_partition_has_one_owner_at_a_time<F: Factory>(factory: &F) {
    if !factory.capabilities().owned_partitions {
        return;
    }
    let scene = scene_of(factory, PARTITIONS);
    let handle = scene.handle().await;
    let mut first = scene.worker().await;
    send_to_all(&handle, 1).await;
    for delivery in first.exactly(PARTITIONS).await {
        done(delivery).await;
    }
    let mut second = scene.worker().await;
    // Each partition with its last term and the worker that had it.
    let mut terms = HashMap::<usize, (u64, usize)>::new();
    let divide = async {
        loop {
            send_to_all(&handle, 2).await;
            let mut held = Vec::new();
            while let Some((worker, delivery)) = next_of_either(&mut first, &mut second).await {
                held.push((worker, delivery));
            }
            let mut owners = BTreeMap::<usize, usize>::new();
            for (worker, delivery) in &held {
                let PartitionTerm {
                    partition, term, ..
                } = term(delivery);
                let owner = *owners.entry(partition).or_insert(*worker);
                assert_eq!(owner, *worker, "two workers have partition {partition}");
                let (last, last_owner) = *terms.entry(partition).or_insert((term, *worker));
                let is_in_order = term > last || term == last && last_owner == *worker;
                assert!(is_in_order, "partition {partition}: {term} after {last}");
                terms.insert(partition, (term, *worker));
            }
            for (_, delivery) in held {
                done(delivery).await;
            }
            let of_first = owners.values().filter(|owner| **owner == 0).count();
            if owners.len() == PARTITIONS && 2 * of_first == PARTITIONS {
                return;
            }
        }
    };
    in_time("dividing the partitions", divide).await;
    second.close().await;
    first.close().await;
}

/// Returns the next delivery of either worker, and the worker's number. `None` if neither gets a
/// delivery within a short time.
async fn next_of_either<S: Source>(
    first: &mut OpenSource<S>,
    second: &mut OpenSource<S>,
) -> Option<(usize, Delivery<S::Settle>)> {
    let next = async {
        tokio::select! {
            delivery = first.one() => (0, delivery),
            delivery = second.one() => (1, delivery),
        }
    };
    timeout(QUIET, next).await.ok()
}

/// Checks that a message that fails or is released is repeated before later messages with its key,
/// and that messages with other keys do not wait for it.
pub async fn a_failed_message_holds_up_its_key_and_no_other<F: Factory>(factory: &F) {
    if !factory.capabilities().owned_partitions {
        return;
    }
    let scene = scene_of(factory, 1);
    let handle = scene.handle().await;
    for (key, payload) in [("a", "a0"), ("a", "a1"), ("b", "b0"), ("a", "a2")] {
        send(&handle, keyed_task(key, payload)).await;
    }
    let mut worker = scene.worker().await;
    let mut both = worker.exactly(2).await;
    both.sort_by_key(|delivery| message(delivery).payload().clone());
    let (failing, other) = (both.remove(0), both.remove(0));
    assert_eq!(message(&failing).payload(), "a0");
    assert_eq!(message(&other).payload(), "b0");
    worker
        .nothing_for(QUIET, "a message passed another one with its key")
        .await;
    settle(failing, redeliver_after(Duration::from_millis(50))).await;
    let repeated = worker.one().await;
    assert_eq!(message(&repeated).payload(), "a0");
    assert_eq!(attempt(&repeated), 2);
    settle(repeated, Verdict::Release).await;
    let released = worker.one().await;
    assert_eq!(message(&released).payload(), "a0");
    assert_eq!(attempt(&released), 2, "a release is no attempt");
    let dead = Verdict::DeadLetter {
        reason: "bad".into(),
        answer: None,
    };
    settle(released, dead).await;
    for payload in ["a1", "a2"] {
        let delivery = worker.one().await;
        assert_eq!(message(&delivery).payload(), payload);
        done(delivery).await;
    }
    done(other).await;
    worker
        .nothing_for(QUIET, "a handled message came back")
        .await;
    worker.close().await;
}

/// Checks that a worker that stops settles its running deliveries, and that the next owner handles
/// the remaining messages afterwards.
pub async fn a_worker_that_stops_hands_its_partitions_over<F: Factory>(factory: &F) {
    if !factory.capabilities().owned_partitions {
        return;
    }
    let scene = scene_of(factory, 1);
    let handle = scene.handle().await;
    for number in 0..3 {
        send(&handle, keyed_task("k", number)).await;
    }
    let mut first = scene.worker().await;
    let delivery = first.one().await;
    assert_eq!(message(&delivery).payload(), "0");
    let term_of_first = term(&delivery);
    let mut second = scene.worker().await;
    first.stop().await;
    second
        .nothing_for(QUIET, "a message passed another one with its key")
        .await;
    done(delivery).await;
    first.close().await;
    for number in 1..3 {
        let delivery = second.one().await;
        assert_eq!(message(&delivery).payload(), &number.to_string());
        assert!(term_of_first < term(&delivery));
        done(delivery).await;
    }
    second
        .nothing_for(QUIET, "a handled message came back")
        .await;
    second.close().await;
}

/// Checks that the partitions of a dead worker have another owner after its lease, and that this
/// owner handles the remaining messages one at a time, in order.
pub async fn the_partitions_of_a_dead_worker_are_owned_after_its_lease<F: Factory>(factory: &F) {
    if !factory.capabilities().owned_partitions {
        return;
    }
    let scene = scene_of(factory, 1);
    let handle = scene.handle().await;
    for (key, number) in ["a", "b", "a"].into_iter().zip(0..) {
        send(&handle, keyed_task(key, number)).await;
    }
    let mut first = scene.worker().await;
    let held = first.exactly(2).await;
    let term_of_first = term(&held[0]);
    first.vanish();
    let mut second = scene.worker().await;
    second
        .nothing_for(QUIET, "the partition was taken from a live worker")
        .await;
    for number in 0..2 {
        let delivery = second.one().await;
        assert_eq!(message(&delivery).payload(), &number.to_string());
        assert_eq!(attempt(&delivery), 2);
        assert!(term_of_first < term(&delivery));
        second
            .nothing_for(QUIET, "two messages of a dead worker run at once")
            .await;
        done(delivery).await;
    }
    let delivery = second.one().await;
    assert_eq!(message(&delivery).payload(), "2");
    done(delivery).await;
    drop(held);
    second
        .nothing_for(LEASE, "a handled message came back")
        .await;
    second.close().await;
}

/// Checks that a verdict has no effect if its worker has counted as dead, and the message was
/// delivered again in a later term.
pub async fn a_verdict_of_a_former_owner_has_no_effect<F: Factory>(factory: &F) {
    let capabilities = factory.capabilities();
    if !capabilities.owned_partitions || !capabilities.end_leases {
        return;
    }
    let scene = scene_of(factory, 1);
    let handle = scene.handle().await;
    for number in 0..2 {
        send(&handle, keyed_task("k", number)).await;
    }
    let mut worker = scene.worker().await;
    let former = worker.one().await;
    let lease = message(&former).parts().lease.clone();
    let token = lease.expect("a delivery has a lease").token();
    must("ending the leases", factory.end_leases(&scene.settings)).await;
    let current = worker.one().await;
    assert_eq!(message(&current).payload(), "0");
    assert_eq!(attempt(&current), 2);
    assert!(term(&former) < term(&current));
    in_time("noticing the loss of the lease", token.cancelled()).await;
    let late = Verdict::DeadLetter {
        reason: "too late".into(),
        answer: None,
    };
    settle(former, late).await;
    worker
        .nothing_for(QUIET, "the late verdict freed the key")
        .await;
    let dead = scene.list_dead_letters().await;
    assert!(
        dead.is_none_or(|dead| dead.is_empty()),
        "the late verdict was carried out"
    );
    done(current).await;
    let next = worker.one().await;
    assert_eq!(message(&next).payload(), "1");
    done(next).await;
    worker
        .nothing_for(LEASE, "a handled message came back")
        .await;
    worker.close().await;
}

/// Checks that a worker that owns nothing is refused while other workers of its group own
/// partitions, and that it is accepted when they have left.
pub async fn a_worker_that_would_read_owned_partitions_is_refused<F: Factory>(factory: &F) {
    if !factory.capabilities().owned_partitions {
        return;
    }
    let scene = scene_of(factory, 2);
    let owner = scene.worker().await;
    let stream = &scene.settings.stream;
    let unowned_scene = Scene::new(factory).with(|settings| {
        settings.streams = Some(Streams::partitioned(stream, 2));
    });
    let refused = unowned_scene.refused_worker().await;
    assert!(refused.is_config(), "{refused:?}");
    assert!(refused.to_string().contains(".owned()"), "{refused}");
    owner.close().await;
    let mut worker = unowned_scene.worker().await;
    let handle = unowned_scene.handle().await;
    send(&handle, keyed_task("k", "0")).await;
    let delivery = worker.one().await;
    let extensions = message(&delivery).extensions();
    assert_eq!(extensions.get::<PartitionTerm>(), None, "it owns nothing");
    done(delivery).await;
    worker.close().await;
}

/// The handlers of several workers, which assert the order of each key.
#[derive(Clone)]
struct KeyOrderCheck {
    keys: Arc<Mutex<HashMap<String, KeyProgress>>>,
    /// The number of messages that have succeeded.
    succeeded: Arc<watch::Sender<usize>>,
}

#[derive(Default)]
struct KeyProgress {
    next: usize,
    is_running: bool,
}

/// Marks a key as running until it is dropped. If a worker is dropped, its handlers are dropped,
/// too, with their keys.
struct RunningKey<'a>(&'a KeyOrderCheck, String);

impl Drop for RunningKey<'_> {
    fn drop(&mut self) {
        let mut keys = lock(&self.0.keys);
        keys.entry(self.1.clone()).or_default().is_running = false;
    }
}

impl KeyOrderCheck {
    fn new() -> Self {
        Self {
            keys: Arc::default(),
            succeeded: Arc::new(watch::Sender::new(0)),
        }
    }

    async fn handle<H: SettleDelivery>(self, delivery: Delivery<H>) {
        let content = message(&delivery);
        let key = content.parts().partition_key.clone();
        let key = key.expect("the key is sent").to_string();
        let number = std::str::from_utf8(content.payload()).expect("a number is sent");
        let number: usize = number.parse().expect("a number is sent");
        let running = self.begin(key, number);
        sleep(Duration::from_millis(3)).await;
        // Some messages fail at their first attempt.
        if number % 5 == 3 && attempt(&delivery) == 1 {
            drop(running);
            return settle(delivery, redeliver_after(Duration::from_millis(10))).await;
        }
        self.succeed(&running.1, number);
        drop(running);
        done(delivery).await;
    }

    /// Asserts that the message is the next of its key, and marks the key as running.
    fn begin(&self, key: String, number: usize) -> RunningKey<'_> {
        let mut keys = lock(&self.keys);
        let progress = keys.entry(key.clone()).or_default();
        assert!(!progress.is_running, "two messages of `{key}` at once");
        // A message runs again if its worker was dropped before its success was settled.
        let in_order = [progress.next, progress.next.saturating_sub(1)];
        let next = progress.next;
        assert!(in_order.contains(&number), "`{key}`: {number} after {next}");
        progress.is_running = true;
        RunningKey(self, key)
    }

    /// Counts the success of a message. A message that has succeeded before is not counted again.
    fn succeed(&self, key: &str, number: usize) {
        let mut keys = lock(&self.keys);
        let progress = keys.entry(key.to_owned()).or_default();
        if progress.next == number {
            progress.next += 1;
            self.succeeded.send_modify(|succeeded| *succeeded += 1);
        }
    }

    /// Waits until this number of messages has succeeded.
    async fn until_succeeded(&self, count: usize) {
        let mut succeeded = self.succeeded.subscribe();
        let enough = succeeded.wait_for(|succeeded| *succeeded >= count);
        in_time("handling the messages", enough)
            .await
            .expect("the sender lives");
    }

    /// Starts a worker that runs several handlers at the same time.
    async fn start<F: Factory>(&self, scene: &Scene<'_, F>) -> OrderlyWorker {
        let worker = scene.worker().await;
        let stop = CancellationToken::new();
        let running = self.clone().run(worker, stop.clone());
        let mut task = JoinSet::new();
        task.spawn(running);
        OrderlyWorker { task, stop }
    }

    async fn run<S: Source>(self, mut worker: OpenSource<S>, stop: CancellationToken) {
        let mut handlers = JoinSet::new();
        loop {
            while let Some(ended) = handlers.try_join_next() {
                ended.expect("a handler does not panic");
            }
            let next = async {
                while handlers.len() >= 5 {
                    let ended = handlers.join_next().await.expect("it is not empty");
                    ended.expect("a handler does not panic");
                }
                let next = timeout(QUIET, worker.batch(5 - handlers.len()));
                next.await.unwrap_or_default()
            };
            let Some(batch) = stop.run_until_cancelled(next).await else {
                break;
            };
            for delivery in batch {
                handlers.spawn(self.clone().handle(delivery));
            }
        }
        worker.stop().await;
        while let Some(ended) = handlers.join_next().await {
            ended.expect("a handler does not panic");
        }
        worker.close().await;
    }
}

/// A worker that runs until it is stopped. A drop has the effect of a crash.
struct OrderlyWorker {
    task: JoinSet<()>,
    stop: CancellationToken,
}

impl OrderlyWorker {
    async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.task.join_next().await {
            ended.expect("the worker does not panic");
        }
    }
}

/// Checks that the messages of a key are handled one at a time, in order, while workers start, stop
/// and crash.
pub async fn keys_keep_their_order_over_workers_that_come_and_go<F: Factory>(factory: &F) {
    const KEYS: usize = 6;
    const EACH: usize = 10;
    if !factory.capabilities().owned_partitions {
        return;
    }
    // Long enough that no live worker counts as dead on a busy machine.
    let scene = scene_of(factory, PARTITIONS).with(|settings| settings.lease = 2 * LEASE);
    let handle = scene.handle().await;
    let mut sent = 0;
    let mut send_more = async || {
        for number in sent..sent + EACH {
            for key in 0..KEYS {
                send(&handle, keyed_task(&format!("key-{key}"), number)).await;
            }
        }
        sent += EACH;
    };
    let order = KeyOrderCheck::new();
    // Each call sends 60 messages.
    send_more().await;
    let first = order.start(&scene).await;
    order.until_succeeded(20).await;
    let second = order.start(&scene).await;
    send_more().await;
    order.until_succeeded(80).await;
    let third = order.start(&scene).await;
    send_more().await;
    order.until_succeeded(140).await;
    drop(first);
    send_more().await;
    order.until_succeeded(200).await;
    second.stop().await;
    send_more().await;
    order.until_succeeded(5 * EACH * KEYS).await;
    third.stop().await;
}
