//! Tests of the memory transport alone: paused time, trimming, and its hooks for tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use campanile::{
    Client, Message, MessageId, PartitionKey, Reply,
    transport::{
        Delivery, Interest, Page, Source, Start, Streams, Transport, UnknownNames, Verdict,
        memory::{Memory, MemorySettler, MemorySource},
    },
};
use proptest::prelude::*;
use tokio::time::{Instant, advance, timeout};
use tower::ServiceExt;

use crate::logs::Logs;

const HOUR: Duration = Duration::from_secs(3600);

async fn send(memory: &Memory, payload: &'static str) -> MessageId {
    let reply = memory.clone().oneshot(Message::task("task", payload)).await;
    reply.unwrap().receipt().unwrap().clone()
}

async fn open(memory: &Memory) -> MemorySource {
    memory.clone().open(Interest::stream()).await.unwrap()
}

async fn one(worker: &mut MemorySource) -> Delivery<MemorySettler> {
    let next = timeout(24 * HOUR, worker.next(1)).await;
    next.expect("a delivery within a day").unwrap().remove(0)
}

async fn is_idle(worker: &mut MemorySource) -> bool {
    timeout(24 * HOUR, worker.next(1)).await.is_err()
}

async fn done(delivery: Delivery<MemorySettler>) {
    settle(delivery, Verdict::Done(Ok(Reply::default()))).await;
}

async fn settle(delivery: Delivery<MemorySettler>, verdict: Verdict) {
    delivery.settle(verdict).await.unwrap();
}

fn again(after: Duration) -> Verdict {
    Verdict::Redeliver {
        after: Some(after),
        counted: true,
        reason: "it failed".into(),
    }
}

fn payload(delivery: &Delivery<MemorySettler>) -> &[u8] {
    delivery.content.as_ref().unwrap().payload()
}

/// Takes the key of a partition from a header, as `Call::partition_key` shows.
fn by_tenant(mut message: Message) -> Message {
    let tenant = message.headers().get("x-tenant");
    let tenant = tenant.and_then(|it| it.to_str().ok());
    if let Some(tenant) = tenant.map(PartitionKey::from) {
        message.parts_mut().partition_key.get_or_insert(tenant);
    }
    message
}

#[tokio::test(start_paused = true)]
async fn a_function_around_the_transport_chooses_the_partition_of_each_call() {
    let memory = Memory::new().streams(Streams::partitioned("orders", 16));
    let client = Client::new(memory.clone().map_request(by_tenant));
    for tenant in ["a", "b", "c", "d", "e"] {
        for _ in 0..3 {
            let call = client.enqueue("task", tenant).header("x-tenant", tenant);
            call.await.unwrap();
        }
    }
    let other = client.enqueue("task", "a").header("x-tenant", "e");
    other.partition_key("a").await.unwrap();
    let mut worker = open(&memory).await;
    let mut partitions = BTreeMap::<PartitionKey, BTreeSet<_>>::new();
    for _ in 0..16 {
        let delivery = one(&mut worker).await;
        let parts = delivery.content.as_ref().unwrap().parts();
        let key = parts.partition_key.clone().expect("it has a key");
        assert_eq!(key.as_bytes(), payload(&delivery));
        partitions
            .entry(key)
            .or_default()
            .insert(parts.stream.clone());
        done(delivery).await;
    }
    assert_eq!(partitions.len(), 5);
    let counts: Vec<_> = partitions.values().map(BTreeSet::len).collect();
    assert_eq!(counts, [1; 5], "{partitions:?}");
}

#[tokio::test(start_paused = true)]
async fn a_redelivery_after_an_hour_passes_in_virtual_time() {
    let memory = Memory::new();
    let mut worker = open(&memory).await;
    send(&memory, "later").await;
    let start = Instant::now();
    settle(one(&mut worker).await, again(HOUR)).await;
    assert_eq!(memory.backlog().await.unwrap().retrying, 1);
    done(one(&mut worker).await).await;
    assert!(start.elapsed() >= HOUR && start.elapsed() < HOUR + Duration::from_secs(1));
    assert!(memory.backlog().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn ids_and_times_follow_tokios_clock() {
    let memory = Memory::new();
    let mut worker = open(&memory).await;
    let now = SystemTime::now();
    advance(24 * HOUR).await;
    send(&memory, "tomorrow").await;
    let delivery = one(&mut worker).await;
    let accepted = delivery.content.as_ref().unwrap().parts().accepted_at;
    let later = accepted.unwrap().duration_since(now).unwrap();
    assert!(later > 23 * HOUR && later < 25 * HOUR, "{later:?}");
    done(delivery).await;
}

#[tokio::test(start_paused = true)]
async fn workers_that_wait_hear_of_a_sooner_redelivery_than_they_wait_for() {
    let memory = Memory::new();
    let mut holder = open(&memory).await;
    send(&memory, "late").await;
    send(&memory, "soon").await;
    let (late, soon) = (one(&mut holder).await, one(&mut holder).await);
    let wait = |mut worker: MemorySource| {
        tokio::spawn(async move {
            let first = one(&mut worker).await;
            (first, one(&mut worker).await)
        })
    };
    let leaving = wait(open(&memory).await);
    let staying = wait(open(&memory).await);
    tokio::task::yield_now().await;
    let start = Instant::now();
    settle(late, again(10 * HOUR)).await;
    tokio::task::yield_now().await;
    settle(soon, again(HOUR)).await;
    tokio::task::yield_now().await;
    // One worker leaves. The other worker must also wake when the next message is due.
    leaving.abort();
    let (first, second) = staying.await.unwrap();
    assert_eq!(
        (payload(&first), payload(&second)),
        (&b"soon"[..], &b"late"[..])
    );
    let late = start.elapsed();
    assert!(late >= 10 * HOUR && late < 11 * HOUR, "{late:?}");
}

#[tokio::test]
async fn entries_are_removed_once_every_group_has_finished_them() {
    let memory = Memory::new().unknown_names(UnknownNames::Ignore);
    let other = memory.clone().group("other").start(Start::Beginning);
    for _ in 0..3 {
        send(&memory, "task").await;
    }
    assert_eq!(
        memory.stats().await.unwrap().entries,
        3,
        "without a group all is kept"
    );
    let mut first = open(&memory).await;
    let mut second = open(&other).await;
    let mut held = first.next(3).await.unwrap();
    // The deliveries are settled out of order: the oldest one is still in flight.
    done(held.pop().unwrap()).await;
    done(held.pop().unwrap()).await;
    for delivery in second.next(3).await.unwrap() {
        done(delivery).await;
    }
    assert_eq!(memory.stats().await.unwrap().entries, 3);
    assert_eq!(memory.backlog().await.unwrap().running, 1);
    done(held.pop().unwrap()).await;
    assert!(memory.backlog().await.unwrap().is_empty());
    assert!(other.backlog().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_delayed_redelivery_does_not_keep_the_stream() {
    let memory = Memory::new();
    let mut worker = open(&memory).await;
    send(&memory, "task").await;
    settle(one(&mut worker).await, again(HOUR)).await;
    assert_eq!(memory.stats().await.unwrap().entries, 0);
    assert_eq!(payload(&one(&mut worker).await), b"task");
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_is_reported_and_its_verdict_changes_nothing() {
    let memory = Memory::new();
    let mut worker = open(&memory).await;
    send(&memory, "task").await;
    let held = one(&mut worker).await;
    let lease = held.content.as_ref().unwrap().parts().lease.clone();
    let token = lease.unwrap().token();
    assert!(!token.is_cancelled());
    memory.end_leases();
    let claimed = one(&mut worker).await;
    assert!(token.is_cancelled());
    assert_eq!(memory.counts().lost_leases, 1);
    settle(held, again(Duration::ZERO)).await;
    assert!(
        is_idle(&mut worker).await,
        "the late verdict was carried out"
    );
    done(claimed).await;
    let counts = memory.counts();
    assert_eq!((counts.done, counts.redelivered, counts.claimed), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_late_success_changes_nothing() {
    let memory = Memory::new();
    let mut worker = open(&memory).await;
    send(&memory, "task").await;
    let late = one(&mut worker).await;
    memory.end_leases();
    let again = one(&mut worker).await;
    done(late).await;
    assert_eq!(memory.counts().done, 0);
    settle(again, Verdict::Release).await;
    done(one(&mut worker).await).await;
    assert_eq!(memory.counts().done, 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_holds_for_ever_while_its_source_lives_and_ends_after_it_is_dropped() {
    let memory = Memory::new().lease(Duration::from_secs(60));
    let mut slow = open(&memory).await;
    let mut other = open(&memory).await;
    send(&memory, "task").await;
    let held = one(&mut slow).await;
    assert!(is_idle(&mut other).await, "nothing is claimed for a day");
    let start = Instant::now();
    drop(slow);
    let delivery = one(&mut other).await;
    assert!(start.elapsed() >= Duration::from_secs(60));
    assert!(start.elapsed() < Duration::from_secs(61));
    done(delivery).await;
    done(held).await;
    assert_eq!(memory.counts().done, 1);
}

#[tokio::test]
async fn redeliveries_and_new_entries_take_turns() {
    let memory = Memory::new();
    let mut worker = open(&memory).await;
    send(&memory, "stubborn").await;
    let mut delivery = one(&mut worker).await;
    for _ in 0..3 {
        send(&memory, "new").await;
    }
    let mut seen = Vec::new();
    for _ in 0..6 {
        let verdict = match payload(&delivery) {
            b"stubborn" => Verdict::Release,
            _ => Verdict::Done(Ok(Reply::default())),
        };
        settle(delivery, verdict).await;
        delivery = one(&mut worker).await;
        seen.push(payload(&delivery).to_vec());
    }
    let new = seen.iter().filter(|payload| *payload == b"new").count();
    assert_eq!(new, 3, "the redelivery held up the new entries: {seen:?}");
}

#[tokio::test]
async fn a_full_event_buffer_drops_what_comes_then_and_counts_it() {
    let memory = Memory::new().event_buffer(2);
    let mut interest = Interest::default();
    interest.events.push("news".into());
    let mut worker = memory.clone().open(interest).await.unwrap();
    for text in ["1", "2", "3"] {
        let event = Message::event("news", text);
        memory.clone().oneshot(event).await.unwrap();
    }
    let deliveries = worker.next(9).await.unwrap();
    let heard: Vec<_> = deliveries.iter().map(payload).collect();
    assert_eq!(heard, [b"1", b"2"]);
    assert_eq!(
        (memory.counts().events, memory.counts().events_dropped),
        (3, 1)
    );
    memory
        .clone()
        .oneshot(Message::event("news", "4"))
        .await
        .unwrap();
    worker.stop().await;
    assert_eq!(
        memory.counts().events_dropped,
        2,
        "dropped events are counted"
    );
}

#[tokio::test]
async fn dead_letters_are_bounded_and_what_that_drops_is_counted() {
    let memory = Memory::new().max_dead_letters(2);
    let mut worker = open(&memory).await;
    for text in ["1", "2", "3"] {
        send(&memory, text).await;
        let verdict = Verdict::DeadLetter {
            reason: format!("number {text}"),
            answer: None,
        };
        settle(one(&mut worker).await, verdict).await;
    }
    let page = memory.dead_letters().list(Page::default()).await;
    let dead = page.unwrap().letters;
    let reasons: Vec<_> = dead.iter().map(|letter| letter.reason.as_str()).collect();
    assert_eq!(reasons, ["number 2", "number 3"]);
    assert_eq!((memory.counts().dead, memory.counts().dead_dropped), (3, 1));
    assert!(
        !format!("{dead:?}").contains("payload"),
        "fields are not shown"
    );
}

#[tokio::test]
async fn a_stopped_source_fetches_nothing_more() {
    let memory = Memory::new();
    let mut worker = open(&memory).await;
    worker.stop().await;
    send(&memory, "task").await;
    assert!(worker.next(1).await.unwrap_err().is_closed());
    assert_eq!(memory.backlog().await.unwrap().waiting, 1);
}

#[tokio::test]
async fn several_groups_need_a_word_about_unknown_names() {
    let memory = Memory::new();
    let _first = open(&memory).await;
    let second = memory.clone().group("second").start(Start::End);
    let error = second.clone().open(Interest::stream()).await.unwrap_err();
    assert!(
        error.is_config() && error.to_string().contains("unknown_names"),
        "{error}"
    );
    open(&second.unknown_names(UnknownNames::Ignore)).await;
}

#[tokio::test]
async fn a_start_that_is_no_id_is_a_mistake_in_the_set_up() {
    let start = Start::After("yesterday".into());
    let worker = Memory::new().start(start).open(Interest::stream()).await;
    assert!(worker.unwrap_err().is_config());
}

#[tokio::test]
async fn clones_share_a_broker_and_others_do_not() {
    let memory = Memory::new();
    let other_stream = memory.clone().stream("other");
    send(&other_stream, "task").await;
    assert_eq!(
        (
            memory.stats().await.unwrap().entries,
            other_stream.stats().await.unwrap().entries
        ),
        (0, 1)
    );
    assert_eq!(memory.counts().sent, 1);
    assert_eq!(
        Memory::new().stream("other").stats().await.unwrap().entries,
        0
    );
}

#[tokio::test]
async fn nothing_runs_in_the_background() {
    let memory = Memory::new();
    let mut worker = open(&memory).await;
    let request = memory.clone().oneshot(Message::rpc("user.get", ""));
    let request = tokio::spawn(request);
    settle(one(&mut worker).await, again(HOUR)).await;
    let metrics = tokio::runtime::Handle::current().metrics();
    assert_eq!(metrics.num_alive_tasks(), 1, "the request alone");
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    assert_eq!(metrics.num_alive_tasks(), 0);
}

/// One step of a random history.
#[derive(Debug, Clone)]
enum Step {
    Send,
    Take { worker: usize, most: usize },
    FailureVerdict { held: usize, verdict: u8 },
    Drop { held: usize },
    Vanish { worker: usize },
    Close { worker: usize },
    EndLeases,
    Wait(Duration),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Send),
        6 => (0..4_usize, 1..4_usize).prop_map(|(worker, most)| Step::Take { worker, most }),
        6 => (any::<usize>(), 0..6_u8).prop_map(|(held, verdict)| Step::FailureVerdict { held, verdict }),
        1 => any::<usize>().prop_map(|held| Step::Drop { held }),
        1 => (0..4_usize).prop_map(|worker| Step::Vanish { worker }),
        1 => (0..4_usize).prop_map(|worker| Step::Close { worker }),
        1 => Just(Step::EndLeases),
        2 => (0..20_000_u64).prop_map(|ms| Step::Wait(Duration::from_millis(ms))),
    ]
}

fn verdict(number: u8) -> Verdict {
    match number {
        0 | 1 => Verdict::Done(Ok(Reply::default())),
        2 => again(Duration::ZERO),
        3 => again(Duration::from_secs(5)),
        4 => Verdict::Release,
        _ => Verdict::DeadLetter {
            reason: "bad".into(),
            answer: None,
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// After any history of the workers, each message has ended exactly once in each group, and the
    /// stream is empty.
    #[test]
    fn every_message_ends_exactly_once_in_each_group(
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(history(steps));
    }
}

async fn history(steps: Vec<Step>) {
    let memory = Memory::new()
        .max_deliveries(3)
        .unknown_names(UnknownNames::Fail)
        .start(Start::Beginning);
    let groups = [memory.clone().group("one"), memory.clone().group("two")];
    let group_of = |worker: usize| &groups[worker % 2];
    let mut workers = Vec::new();
    for worker in 0..4 {
        workers.push(open(group_of(worker)).await);
    }
    let mut held = Vec::new();
    for step in steps {
        match step {
            Step::Send => drop(send(&memory, "task").await),
            Step::Take { worker, most } => {
                let next = timeout(Duration::ZERO, workers[worker].next(most)).await;
                held.extend(next.into_iter().flat_map(Result::unwrap));
            }
            Step::FailureVerdict {
                held: at,
                verdict: number,
            } if !held.is_empty() => {
                let delivery = held.swap_remove(at % held.len());
                settle(delivery, verdict(number)).await;
            }
            Step::Drop { held: at } if !held.is_empty() => {
                drop(held.swap_remove(at % held.len()));
            }
            Step::Vanish { worker } => workers[worker] = open(group_of(worker)).await,
            Step::Close { worker } => {
                let new = open(group_of(worker)).await;
                let old = std::mem::replace(&mut workers[worker], new);
                old.close().await.unwrap();
            }
            Step::EndLeases => groups[0].end_leases(),
            Step::Wait(time) => advance(time).await,
            Step::FailureVerdict { .. } | Step::Drop { .. } => {}
        }
    }
    // Settles the deliveries in flight first, then all other messages.
    for delivery in held {
        done(delivery).await;
    }
    for worker in &mut workers[..2] {
        while let Ok(batch) = timeout(HOUR, worker.next(5)).await {
            for delivery in batch.unwrap() {
                assert!(delivery.content.as_ref().unwrap().parts().attempt.0 <= 3);
                done(delivery).await;
            }
        }
    }
    let counts = memory.counts();
    assert_eq!(counts.done + counts.dead, counts.sent * 2, "{counts:?}");
    for group in &groups {
        assert!(group.backlog().await.unwrap().is_empty());
    }
}

/// Sends a task with the idempotency key `k` that is due `after` from now.
async fn send_once(memory: &Memory, after: Duration) -> MessageId {
    let mut task = Message::task("task", "");
    let parts = task.parts_mut();
    parts.idempotency_key = Some("k".into());
    parts.due = (!after.is_zero()).then_some(campanile::Due::After(after));
    let reply = memory.clone().oneshot(task).await;
    reply.unwrap().receipt().unwrap().clone()
}

#[tokio::test(start_paused = true)]
async fn a_key_whose_task_became_a_dead_letter_lets_the_task_be_sent_again() {
    let memory = Memory::new();
    let mut worker = open(&memory).await;
    let first = send_once(&memory, Duration::ZERO).await;
    assert_eq!(send_once(&memory, Duration::ZERO).await, first);
    let verdict = Verdict::DeadLetter {
        reason: "it failed".into(),
        answer: None,
    };
    settle(one(&mut worker).await, verdict).await;
    let second = send_once(&memory, Duration::ZERO).await;
    assert_ne!(second, first, "the receipt is that of the task which died");
    let delivery = one(&mut worker).await;
    assert_eq!(delivery.content.as_ref().unwrap().parts().id, Some(second));
    done(delivery).await;
}

#[tokio::test(start_paused = true)]
async fn a_key_is_remembered_until_its_delayed_task_is_due_and_for_its_window_after_that() {
    let memory = Memory::new().idempotency_window(HOUR);
    let first = send_once(&memory, 3 * HOUR).await;
    advance(2 * HOUR).await;
    assert_eq!(
        send_once(&memory, 3 * HOUR).await,
        first,
        "the task is not due yet"
    );
    advance(HOUR + HOUR / 2).await;
    assert_eq!(
        send_once(&memory, 3 * HOUR).await,
        first,
        "within the window"
    );
    advance(HOUR).await;
    assert_ne!(
        send_once(&memory, 3 * HOUR).await,
        first,
        "after the window"
    );
}

#[tokio::test(start_paused = true)]
async fn a_claim_names_the_dead_worker_and_its_first_messages() {
    crate::logs::keep();
    let memory = Memory::new();
    let mut dead = open(&memory).await;
    let mut ids = Vec::new();
    for _ in 0..12 {
        ids.push(send(&memory, "x").await);
    }
    let held = dead.next(12).await.unwrap();
    assert_eq!(held.len(), 12);
    drop((dead, held));
    let logs = Logs::start();
    let mut other = open(&memory).await;
    done(one(&mut other).await).await;
    let lines = logs.lines(&[
        "INFO",
        "claimed deliveries",
        "from=memory-0",
        "deliveries=12",
    ]);
    assert_eq!(lines.len(), 1, "{}", logs.text());
    for id in &ids[..10] {
        assert!(lines[0].contains(&**id), "no {id} in {}", lines[0]);
    }
    for words in ["and 2 more", "stream=app_stream", "group=app_group"] {
        assert!(lines[0].contains(words), "no {words} in {}", lines[0]);
    }
}
