//! Owned partitions on the memory transport: paused time, cancellations, and random histories.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use campanile::{
    Client, Message, Reply,
    transport::{
        Delivery, Interest, PartitionTerm, Source, Streams, Transport, Verdict,
        memory::{Memory, MemorySettler, MemorySource},
    },
};
use proptest::prelude::*;
use tokio::time::{Instant, advance, timeout};
use tower::ServiceExt;

const SECOND: Duration = Duration::from_secs(1);

fn owning(partitions: usize) -> Memory {
    Memory::new().streams(Streams::partitioned("orders", partitions).owned())
}

async fn send(memory: &Memory, key: &str, payload: impl ToString) {
    let mut task = Message::task("task", payload.to_string());
    task.parts_mut().partition_key = Some(key.into());
    memory.clone().oneshot(task).await.unwrap();
}

async fn open(memory: &Memory) -> MemorySource {
    memory.clone().open(Interest::stream()).await.unwrap()
}

async fn one(worker: &mut MemorySource) -> Delivery<MemorySettler> {
    let next = timeout(60 * SECOND, worker.next(1)).await;
    next.expect("a delivery within a minute").unwrap().remove(0)
}

async fn has_nothing(worker: &mut MemorySource) -> bool {
    timeout(SECOND, worker.next(1)).await.is_err()
}

async fn done(delivery: Delivery<MemorySettler>) {
    let verdict = Verdict::Done(Ok(Reply::default()));
    delivery.settle(verdict).await.unwrap();
}

fn again(after: Duration) -> Verdict {
    Verdict::Redeliver {
        after: Some(after),
        counted: true,
        reason: "it failed".into(),
    }
}

fn message(delivery: &Delivery<MemorySettler>) -> &Message {
    delivery.content.as_ref().unwrap()
}

fn term(delivery: &Delivery<MemorySettler>) -> PartitionTerm {
    let term = message(delivery).extensions().get();
    *term.expect("each delivery has one")
}

#[tokio::test(start_paused = true)]
async fn a_dead_worker_is_followed_at_the_end_of_its_lease_and_a_closed_one_at_once() {
    let memory = owning(1).lease(10 * SECOND);
    for number in 0..2 {
        send(&memory, "k", number).await;
    }
    let mut first = open(&memory).await;
    let mut second = open(&memory).await;
    let held = one(&mut first).await;
    let died = Instant::now();
    drop((first, held));
    let delivery = one(&mut second).await;
    assert_eq!(died.elapsed(), 10 * SECOND);
    assert_eq!(term(&delivery), PartitionTerm::new(0, 2));
    done(delivery).await;
    let mut third = open(&memory).await;
    let closed = Instant::now();
    second.close().await.unwrap();
    let delivery = one(&mut third).await;
    assert_eq!(term(&delivery), PartitionTerm::new(0, 3));
    let mut fourth = open(&memory).await;
    third.stop().await;
    assert!(has_nothing(&mut fourth).await, "it still runs");
    done(delivery).await;
    send(&memory, "k", 2).await;
    assert_eq!(term(&one(&mut fourth).await), PartitionTerm::new(0, 4));
    assert_eq!(closed.elapsed(), SECOND, "the time of `has_nothing`");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_delivery_begins_another_term_once_the_others_have_ended() {
    let memory = owning(1);
    let mut worker = open(&memory).await;
    for (key, number) in [("a", 0), ("b", 1), ("a", 2), ("c", 3)] {
        send(&memory, key, number).await;
    }
    let mut held = worker.next(2).await.unwrap();
    let other = held.remove(1);
    drop(held);
    assert!(has_nothing(&mut worker).await, "a new term waits for `b`");
    done(other).await;
    for number in ["0", "2", "3"] {
        let delivery = one(&mut worker).await;
        assert_eq!(message(&delivery).payload(), number);
        assert_eq!(term(&delivery).term, 2);
        done(delivery).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_message_of_a_key_waits_for_the_handler_of_a_cancelled_task() {
    let memory = owning(1);
    let mut worker = open(&memory).await;
    let client = Client::new(memory.clone());
    let mut ids = Vec::new();
    for number in ["0", "1", "2", "3"] {
        let call = client.enqueue("task", number).tracked(60 * SECOND);
        let sent = call.partition_key("k").await.unwrap();
        ids.push(sent.id().unwrap().clone());
    }
    let tasks = memory.tasks();
    let running = one(&mut worker).await;
    assert!(has_nothing(&mut worker).await, "its key is held");
    for cancelled in [0, 2] {
        assert!(tasks.cancel(&ids[cancelled], "").await.unwrap());
    }
    assert!(message(&running).parts().lease.as_ref().unwrap().is_lost());
    assert!(has_nothing(&mut worker).await, "its handler runs");
    done(running).await;
    let delivery = one(&mut worker).await;
    assert_eq!(message(&delivery).payload(), "1");
    delivery.settle(again(10 * SECOND)).await.unwrap();
    assert!(has_nothing(&mut worker).await, "it is repeated first");
    assert!(tasks.cancel(&ids[1], "").await.unwrap());
    let delivery = one(&mut worker).await;
    assert_eq!(message(&delivery).payload(), "3");
    done(delivery).await;
}

#[tokio::test(start_paused = true)]
async fn a_purge_removes_messages_that_wait_for_their_keys_and_frees_the_keys() {
    let memory = owning(1);
    let mut worker = open(&memory).await;
    for (key, number) in [("a", 0), ("a", 1), ("b", 2)] {
        send(&memory, key, number).await;
    }
    let mut held = worker.next(3).await.unwrap();
    assert_eq!(held.len(), 2);
    held.remove(0).settle(again(10 * SECOND)).await.unwrap();
    assert_eq!(memory.control().purge_waiting().await.unwrap(), 2);
    send(&memory, "a", 3).await;
    let delivery = one(&mut worker).await;
    assert_eq!(message(&delivery).payload(), "3");
    done(delivery).await;
    done(held.remove(0)).await;
    assert!(memory.backlog().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn owners_inherit_what_workers_without_partitions_have_left_and_the_reverse() {
    let memory = Memory::new();
    let in_turn = memory
        .clone()
        .streams(Streams::partitioned("orders", 1))
        .lease(SECOND);
    let owning = memory
        .streams(Streams::partitioned("orders", 1).owned())
        .lease(SECOND);
    for number in 0..3 {
        send(&owning, "k", number).await;
    }
    let mut worker = open(&in_turn).await;
    let mut held = worker.next(2).await.unwrap();
    held.remove(1).settle(again(3 * SECOND)).await.unwrap();
    let mut owner = open(&owning).await;
    let delivery = one(&mut owner).await;
    assert_eq!(message(&delivery).payload(), "0");
    let alone = owning.clone().streams(Streams::strict(["orders:0"]));
    let refused = alone.open(Interest::stream()).await;
    let refused = refused.map(drop).expect_err("owners read it");
    assert!(refused.is_config(), "{refused}");
    assert!(message(&held[0]).parts().lease.as_ref().unwrap().is_lost());
    assert!(
        has_nothing(&mut worker).await,
        "only owners read the partition"
    );
    drop((owner, delivery));
    // The owner has died, and the other worker takes its place.
    let mut left = Vec::new();
    for _ in 0..3 {
        let delivery = one(&mut worker).await;
        let payload = String::from_utf8(message(&delivery).payload().to_vec());
        left.push(payload.unwrap());
        done(delivery).await;
    }
    left.sort();
    assert_eq!(left, ["0", "1", "2"]);
    assert!(in_turn.backlog().await.unwrap().is_empty());
}

#[cfg(feature = "testing")]
#[tokio::test(start_paused = true)]
async fn the_test_kit_waits_for_messages_that_wait_for_their_keys() {
    use campanile::{
        Attempt, Failure, Router,
        testing::{Harness, task},
    };
    let app: Router = Router::new().task("task", async |Attempt(attempt): Attempt| match attempt {
        1 => Err(Failure::redeliver_after(60 * SECOND)),
        _ => Ok(()),
    });
    let mut harness = Harness::over(owning(2).max_in_flight(2));
    harness.serve(app).await;
    for number in 0..6 {
        send(&harness.memory(), "k", number).await;
    }
    harness.settled().await;
    harness.assert_redelivered(task("task").times(1));
    assert_eq!(harness.advance_to_next().await, Some(60 * SECOND));
    harness.assert_acknowledged(task("task").times(1));
    harness.finished().await;
    harness.assert_acknowledged(task("task").times(6));
}

/// One step of a random history.
#[derive(Debug, Clone)]
enum Step {
    Send { key: u8 },
    Take { worker: usize, most: usize },
    FailureVerdict { held: usize, verdict: u8 },
    Drop { held: usize },
    Vanish { worker: usize },
    Stop { worker: usize },
    EndLeases,
    Wait(Duration),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..4_u8).prop_map(|key| Step::Send { key }),
        8 => (0..3_usize, 1..4_usize).prop_map(|(worker, most)| Step::Take { worker, most }),
        6 => (any::<usize>(), 0..6_u8).prop_map(|(held, verdict)| Step::FailureVerdict { held, verdict }),
        1 => any::<usize>().prop_map(|held| Step::Drop { held }),
        1 => (0..3_usize).prop_map(|worker| Step::Vanish { worker }),
        1 => (0..3_usize).prop_map(|worker| Step::Stop { worker }),
        1 => Just(Step::EndLeases),
        2 => (0..20_000_u64).prop_map(|ms| Step::Wait(Duration::from_millis(ms))),
    ]
}

/// Returns a verdict, and `true` if it ends the message.
fn verdict(number: u8) -> (Verdict, bool) {
    match number {
        0 | 1 => (Verdict::Done(Ok(Reply::default())), true),
        2 => (again(Duration::ZERO), false),
        3 => (again(Duration::from_secs(5)), false),
        4 => (Verdict::Release, false),
        _ => {
            let reason = "bad".into();
            let answer = None;
            (Verdict::DeadLetter { reason, answer }, true)
        }
    }
}

/// A delivery that is not settled.
struct Held {
    delivery: Delivery<MemorySettler>,
    key: String,
}

impl Held {
    fn is_lost(&self) -> bool {
        let lease = message(&self.delivery).parts().lease.as_ref();
        lease.expect("each delivery has one").is_lost()
    }
}

/// The messages, deliveries and terms of a history so far.
#[derive(Default)]
struct Progress {
    sent: HashMap<String, u32>,
    /// For each key, the number of messages that have ended.
    ended: HashMap<String, u32>,
    held: Vec<Held>,
    /// For each partition, its last term and the worker that had it.
    terms: BTreeMap<usize, (u64, usize)>,
}

impl Progress {
    fn take(&mut self, worker: usize, delivery: Delivery<MemorySettler>) {
        let content = message(&delivery);
        let key = content.parts().partition_key.clone().unwrap().to_string();
        let number = std::str::from_utf8(content.payload()).unwrap();
        let ended = self.ended.get(&key).copied().unwrap_or_default();
        assert_eq!(number, ended.to_string(), "the order of `{key}`");
        let mut held = self.held.iter().filter(|held| held.key == key);
        assert!(held.all(Held::is_lost), "two messages of `{key}` run");
        let PartitionTerm {
            partition, term, ..
        } = term(&delivery);
        let last = self.terms.insert(partition, (term, worker));
        let is_next = last.is_none_or(|(last, of)| term > last || (term, worker) == (last, of));
        assert!(is_next, "{partition}: {term} of {worker} after {last:?}");
        self.held.push(Held { delivery, key });
    }

    async fn settle(&mut self, at: usize, number: u8) {
        let held = self.held.swap_remove(at);
        let (verdict, ends) = verdict(number);
        if ends && !held.is_lost() {
            *self.ended.entry(held.key).or_default() += 1;
        }
        held.delivery.settle(verdict).await.unwrap();
    }
}

async fn history(steps: Vec<Step>) {
    let memory = owning(3).max_deliveries(u32::MAX).max_in_flight(3);
    // The number of a worker that is opened in another's place is new.
    let mut workers = Vec::new();
    for number in 0..3 {
        workers.push((number, open(&memory).await));
    }
    let mut opened = 3;
    let mut progress = Progress::default();
    for step in steps {
        match step {
            Step::Send { key } => {
                let key = format!("key-{key}");
                let number = progress.sent.entry(key.clone()).or_default();
                send(&memory, &key, *number).await;
                *number += 1;
            }
            Step::Take { worker, most } => {
                let (number, worker) = &mut workers[worker];
                if let Ok(taken) = timeout(Duration::ZERO, worker.next(most)).await {
                    for delivery in taken.unwrap() {
                        progress.take(*number, delivery);
                    }
                }
            }
            Step::FailureVerdict { held, verdict } if !progress.held.is_empty() => {
                let at = held % progress.held.len();
                progress.settle(at, verdict).await;
            }
            Step::Drop { held } if !progress.held.is_empty() => {
                let at = held % progress.held.len();
                drop(progress.held.swap_remove(at));
            }
            Step::Vanish { worker } | Step::Stop { worker } => {
                if matches!(step, Step::Stop { .. }) {
                    workers[worker].1.stop().await;
                }
                workers[worker] = (opened, open(&memory).await);
                opened += 1;
            }
            Step::EndLeases => memory.end_leases(),
            Step::Wait(time) => advance(time).await,
            Step::FailureVerdict { .. } | Step::Drop { .. } => {}
        }
    }
    while !progress.held.is_empty() {
        progress.settle(0, 0).await;
    }
    // Each worker in turn, since its partitions have messages that only it can take.
    let mut idle = 0;
    while idle < 3 {
        let (number, worker) = &mut workers[idle];
        let Ok(taken) = timeout(Duration::from_secs(120), worker.next(3)).await else {
            idle += 1;
            continue;
        };
        idle = 0;
        for delivery in taken.unwrap() {
            progress.take(*number, delivery);
        }
        while !progress.held.is_empty() {
            progress.settle(0, 0).await;
        }
    }
    assert_eq!(progress.ended, progress.sent);
    assert!(memory.backlog().await.unwrap().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Over any history of the workers, the messages of a key run one at a time, in order, and each
    /// ends once.
    #[test]
    fn keys_keep_their_order_over_any_history(
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(history(steps));
    }
}
