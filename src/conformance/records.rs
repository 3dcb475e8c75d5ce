//! Checks of the records of tasks (result, progress and checkpoint), of lists of tasks, and of the
//! feed of changes.

use std::{collections::HashSet, time::Duration};

use tokio::time::sleep;

use super::{
    Factory,
    partitions::{keyed_task, partitioned_scene},
    scene::{
        LEASE, Scene, answer, attempt, done, id, in_time, message, must, redeliver_after, send,
        settle,
    },
    tasks::{RETENTION, assert_equal, connect, status, tracked_task, unique_task},
};
use crate::{
    message::{Message, MessageId, OnConflict, UniqueKey},
    payload::Json,
    progress::{Checkpoint, Progress},
    reply::{IntoReply, Reply},
    transport::{
        Changes, ChangesFrom, FeedItem, TaskChange, TaskQuery, TaskState, TaskStatus, Tasks,
        Verdict,
    },
};

/// The maximum size of a recorded result, in bytes.
const MAX_RESULT: usize = 64 << 10;

/// Waits until the status of a task meets the condition.
async fn until(tasks: &Tasks, id: &MessageId, is_met: impl Fn(&TaskStatus) -> bool) {
    let met = async {
        while !is_met(&status(tasks, id).await) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    in_time("waiting for a status", met).await;
}

/// Checks that the reply of a handler is recorded as the result of its task, unless it is too
/// large.
pub async fn the_result_of_a_task_is_recorded_up_to_a_size<F: Factory>(factory: &F) {
    if !factory.capabilities().tasks {
        return;
    }
    let scene = Scene::new(factory);
    let (handle, tasks) = connect(factory, &scene).await;
    let mut worker = scene.worker().await;
    let mut run_task = async |reply: Reply| {
        let receipt = send(&handle, tracked_task("")).await;
        let running = worker.one().await;
        assert!(status(&tasks, &receipt).await.read_result::<()>().is_err());
        answer(running, Ok(reply)).await;
        status(&tasks, &receipt).await
    };
    let ended = run_task(Json((1, "a")).into_reply().expect("JSON")).await;
    let Json(result): Json<(u8, String)> = ended.read_result().expect("the result is recorded");
    assert_eq!(result, (1, "a".into()));
    let ended = run_task(Reply::default()).await;
    ended.read_result::<()>().expect("an empty result");
    assert!(ended.read_result::<Json<u8>>().is_err());
    let ended = run_task(Reply::new(vec![0xff; MAX_RESULT])).await;
    let bytes: Vec<u8> = ended.read_result().expect("the result is recorded");
    assert_eq!(bytes.len(), MAX_RESULT);
    let ended = run_task(Reply::new(vec![0; 8 << 20])).await;
    assert_eq!(
        (ended.state, ended.result.as_ref()),
        (TaskState::Done, None)
    );
    assert_eq!(ended.result_too_large, Some(8 << 20));
    let error = ended.read_result::<Vec<u8>>().expect_err("it is too large");
    assert!(
        error.is_decode() && error.to_string().contains("65536"),
        "{error}"
    );
    worker.close().await;
}

/// Checks that the progress that a handler reports is recorded. When the task has ended, the record
/// has the last report, even after 100,000 reports. A report has no effect if the task has no
/// record.
pub async fn the_progress_of_a_task_is_recorded<F: Factory>(factory: &F) {
    if !factory.capabilities().tasks {
        return;
    }
    let scene = Scene::new(factory);
    let (handle, tasks) = connect(factory, &scene).await;
    let mut worker = scene.worker().await;
    let receipt = send(&handle, tracked_task("")).await;
    let delivery = worker.one().await;
    let progress = Progress::of_delivery(message(&delivery).parts());
    assert_eq!(status(&tasks, &receipt).await.progress, None);
    progress.set("reads").expect("a text is a progress");
    until(&tasks, &receipt, |status| {
        status.progress.as_deref() == Some(b"\"reads\"")
    })
    .await;
    let too_large = progress.set("x".repeat(4 << 10));
    assert!(too_large.is_err_and(|error| error.is_invalid()));
    for number in 1..=100_000 {
        progress.set(number).expect("a number is a progress");
    }
    until(&tasks, &receipt, |status| {
        status
            .read_progress()
            .is_ok_and(|read| read == Some(100_000))
    })
    .await;
    settle(delivery, redeliver_after(Duration::ZERO)).await;
    let delivery = worker.one().await;
    progress.set("late").expect("a late report does nothing");
    let read = status(&tasks, &receipt).await.read_progress();
    assert_equal(read.expect("a number"), Some(100_000));
    Progress::of_delivery(message(&delivery).parts())
        .set((1, 2))
        .expect("a tuple is a progress");
    done(delivery).await;
    let ended = status(&tasks, &receipt).await;
    assert_equal(ended.read_progress().expect("a tuple"), Some((1, 2)));
    let list = must("listing", tasks.list(TaskQuery::all())).await;
    assert_equal(list.tasks[0].progress.as_deref(), Some(&b"[1,2]"[..]));

    send(&handle, Message::task("task", "")).await;
    let untracked = worker.one().await;
    let progress = Progress::of_delivery(message(&untracked).parts());
    progress
        .set(1)
        .expect("a report without a record does nothing");
    assert!(Checkpoint::of_delivery(message(&untracked).parts()).is_none());
    done(untracked).await;
    worker.close().await;
}

/// Checks that the next attempt of a task reads the task's checkpoint. A checkpoint cannot be saved
/// after its attempt has ended, and cannot be read after its task has ended.
pub async fn a_checkpoint_is_read_by_the_next_attempt<F: Factory>(factory: &F) {
    if !factory.capabilities().tasks {
        return;
    }
    let scene = Scene::new(factory);
    let (handle, tasks) = connect(factory, &scene).await;
    let mut worker = scene.worker().await;
    let receipt = send(&handle, tracked_task("")).await;
    let first = worker.one().await;
    let checkpoint =
        Checkpoint::of_delivery(message(&first).parts()).expect("the task has a record");
    let none = must("loading", checkpoint.load::<u64>()).await;
    assert_eq!(none, None);
    must("saving", checkpoint.save(1)).await;
    must("saving", checkpoint.save((2, "page"))).await;
    let too_large = checkpoint.save("x".repeat(64 << 10)).await;
    assert!(too_large.is_err_and(|error| error.is_invalid()));
    settle(first, redeliver_after(Duration::from_millis(50))).await;
    let late = checkpoint.save(3).await.expect_err("the attempt has ended");
    assert!(late.is_refused(), "{late}");

    let second = worker.one().await;
    assert_eq!((id(&second), attempt(&second)), (&receipt, 2));
    let checkpoint =
        Checkpoint::of_delivery(message(&second).parts()).expect("the task has a record");
    let saved = must("loading", checkpoint.load::<(u8, String)>()).await;
    assert_equal(saved, Some((2, "page".into())));
    assert!(
        checkpoint
            .load::<u8>()
            .await
            .is_err_and(|error| error.is_decode())
    );
    done(second).await;
    assert_eq!(status(&tasks, &receipt).await.state, TaskState::Done);
    assert_eq!(must("loading", checkpoint.load::<u64>()).await, None);
    worker.close().await;
}

/// Checks that a worker that lost its task to another worker can change neither the progress nor
/// the checkpoint of the task.
pub async fn a_worker_that_lost_its_task_notes_nothing<F: Factory>(factory: &F) {
    let capabilities = factory.capabilities();
    if !capabilities.tasks || !capabilities.claim || !capabilities.end_leases {
        return;
    }
    let scene = Scene::new(factory).with(|settings| settings.lease = LEASE);
    let (handle, tasks) = connect(factory, &scene).await;
    let mut loser = scene.worker().await;
    let receipt = send(&handle, tracked_task("")).await;
    let lost = loser.one().await;
    let old = Checkpoint::of_delivery(message(&lost).parts()).expect("the task has a record");
    must("saving", old.save("first")).await;
    let mut winner = scene.worker().await;
    must("ending leases", factory.end_leases(&scene.settings)).await;
    let delivery = winner.one().await;
    let refused = old
        .save("late")
        .await
        .expect_err("another worker has the task");
    assert!(refused.is_refused(), "{refused}");
    Progress::of_delivery(message(&lost).parts())
        .set("late")
        .expect("a late report does nothing");
    let new = Checkpoint::of_delivery(message(&delivery).parts()).expect("the task has a record");
    assert_equal(must("loading", new.load()).await, Some("first".to_owned()));
    done(delivery).await;
    assert_eq!(status(&tasks, &receipt).await.progress, None);
    drop(lost);
    loser.close().await;
    winner.close().await;
}

/// Checks that tasks are listed by state and name in pages, that the most recently changed task
/// comes first, and that a list has each task once.
pub async fn a_list_of_tasks_has_pages_by_state_and_name<F: Factory>(factory: &F) {
    if !factory.capabilities().tasks {
        return;
    }
    let scene = Scene::new(factory);
    let (handle, tasks) = connect(factory, &scene).await;
    let empty = must("listing", tasks.list(TaskQuery::all())).await;
    assert!(empty.tasks.is_empty() && empty.next.is_none());
    let mut sent = Vec::new();
    for number in 0..7 {
        let mut task = tracked_task("");
        task.parts_mut().name = ["a", "b"][number % 2].into();
        task.parts_mut().due = (number == 6).then_some(crate::Due::After(RETENTION));
        sent.push(send(&handle, task).await);
    }
    send(&handle, Message::task("a", "untracked")).await;
    let mut worker = scene.worker().await;
    let mut deliveries = worker.exactly(7).await;
    // Of the seven recorded tasks, one is done, five run, and one is delayed.
    let position = deliveries.iter().position(|it| id(it) == &sent[0]);
    done(deliveries.remove(position.expect("it is delivered"))).await;
    worker.stop().await;
    let list = async |query: TaskQuery| {
        let (mut found, mut next) = (Vec::new(), Some(query));
        while let Some(query) = next {
            let page = must("listing", tasks.list(query.clone())).await;
            assert!(page.tasks.len() <= query.max, "a page is too large");
            found.extend(page.tasks);
            next = page.next;
        }
        found
    };
    let ids = |tasks: &[TaskStatus]| tasks.iter().map(|it| it.id.clone()).collect::<Vec<_>>();
    for max in [1, 2, 100] {
        let all = ids(&list(TaskQuery::all().max(max)).await);
        assert_eq!(all.len(), 7, "each task once");
        let all: HashSet<_> = all.into_iter().collect();
        assert_eq!(all, sent.iter().cloned().collect());
        let running = TaskQuery::all().state(TaskState::Running).max(max);
        let named = ids(&list(running.clone().named("a")).await);
        assert_eq!(named.len(), 2);
        assert!(named.contains(&sent[2]) && named.contains(&sent[4]));
        assert_eq!(list(running).await.len(), 5);
    }
    let by_state = async |state| ids(&list(TaskQuery::all().state(state)).await);
    assert_eq!(by_state(TaskState::Done).await, [sent[0].clone()]);
    assert_eq!(by_state(TaskState::Delayed).await, [sent[6].clone()]);
    assert!(by_state(TaskState::Dead).await.is_empty());
    for delivery in deliveries {
        let last = id(&delivery).clone();
        let is_recorded = sent.contains(&last);
        // The list is sorted by the server's time in whole milliseconds, so each change needs its
        // own millisecond.
        sleep(Duration::from_millis(2)).await;
        done(delivery).await;
        if is_recorded {
            assert_eq!(by_state(TaskState::Done).await[0], last);
        }
    }
    assert!(by_state(TaskState::Running).await.is_empty());
    worker.close().await;
}

/// Returns the next change.
async fn next_change(changes: &mut Changes) -> TaskChange {
    match must("waiting for a change", changes.next()).await {
        FeedItem::Change(change) => change,
        FeedItem::Gap => panic!("the feed has a gap after a few changes"),
    }
}

/// Checks that the feed has each change of a task in order, and that another reader can continue
/// from a cursor.
pub async fn changes_are_followed_from_a_cursor<F: Factory>(factory: &F) {
    if !factory.capabilities().tasks {
        return;
    }
    let scene = Scene::new(factory);
    let (handle, tasks) = connect(factory, &scene).await;
    let mut changes = must("following", tasks.changes(ChangesFrom::Now)).await;
    let receipt = send(&handle, tracked_task("")).await;
    let mut worker = scene.worker().await;
    settle(
        worker.one().await,
        redeliver_after(Duration::from_millis(50)),
    )
    .await;
    let verdict = Verdict::DeadLetter {
        reason: "it cannot be read".into(),
        answer: None,
    };
    settle(worker.one().await, verdict).await;
    let expected = [
        (TaskState::Waiting, 0, ""),
        (TaskState::Running, 1, ""),
        (TaskState::Delayed, 1, "it failed in a check"),
        (TaskState::Waiting, 1, "it failed in a check"),
        (TaskState::Running, 2, "it failed in a check"),
        (TaskState::Dead, 2, "it cannot be read"),
    ];
    let mut cursor = None;
    for (number, expected) in expected.into_iter().enumerate() {
        let found = next_change(&mut changes).await;
        assert_eq!((&found.id, &*found.name), (&receipt, "task"));
        assert_eq!((found.state, found.attempt.0, &*found.reason), expected);
        if number == 3 {
            cursor = Some(changes.cursor());
        }
    }
    drop(changes);
    let next = send(&handle, tracked_task("")).await;
    let from = ChangesFrom::Cursor(cursor.expect("set above"));
    let mut rest = must("following", tasks.changes(from)).await;
    for (state, id) in [
        (TaskState::Running, &receipt),
        (TaskState::Dead, &receipt),
        (TaskState::Waiting, &next),
    ] {
        let found = next_change(&mut rest).await;
        assert_eq!((found.state, &found.id), (state, id));
    }
    let mut all = must("following", tasks.changes(ChangesFrom::Beginning)).await;
    assert_eq!(next_change(&mut all).await.id, receipt);
    done(worker.one().await).await;
    worker.close().await;
}

/// Checks that `wait` returns the last status of a task, even if the task ended before the call.
/// For an unknown task, `wait` fails.
pub async fn a_wait_ends_with_its_task<F: Factory>(factory: &F) {
    if !factory.capabilities().tasks {
        return;
    }
    let scene = Scene::new(factory);
    let (handle, tasks) = connect(factory, &scene).await;
    let mut worker = scene.worker().await;
    let spawn_wait = |id: MessageId| {
        let tasks = tasks.clone();
        tokio::spawn(async move { tasks.wait(&id).await })
    };
    // Two calls wait for the first task, and two for the second task. One call is dropped.
    let first = send(&handle, tracked_task("first")).await;
    let early = [spawn_wait(first.clone()), spawn_wait(first.clone())];
    let second = send(&handle, unique_task("k", OnConflict::Keep)).await;
    let cancelled = spawn_wait(second.clone());
    let dropped = spawn_wait(second.clone());
    let delivery = worker.one().await;
    sleep(Duration::from_millis(100)).await;
    dropped.abort();
    assert!(early.iter().all(|it| !it.is_finished()));
    answer(delivery, Ok(Reply::new("7"))).await;
    for early in early {
        let ended = in_time("waiting for a task", early)
            .await
            .expect("no panic");
        let ended = ended.expect("the task has ended");
        assert_eq!((ended.state, &ended.id), (TaskState::Done, &first));
        let Json(result): Json<u8> = ended.read_result().expect("a number");
        assert_eq!(result, 7);
    }
    assert!(must("cancelling", tasks.cancel(&second, "not needed")).await);
    let ended = in_time("waiting for a task", cancelled)
        .await
        .expect("no panic");
    let ended = ended.expect("the task has ended");
    assert_eq!(
        (ended.state, &*ended.reason),
        (TaskState::Cancelled, "not needed")
    );
    // Waits for a task that has ended, and for an unknown task.
    let late = must("waiting for a task", tasks.wait(&first)).await;
    assert_eq!(late.state, TaskState::Done);
    let unknown = MessageId::from("c0ffee00-0000-4000-8000-000000000000");
    let error = in_time("waiting for a task", tasks.wait(&unknown)).await;
    assert!(error.is_err_and(|error| error.is_invalid()));

    // Many tasks end while calls begin to wait for them.
    let mut ids = Vec::new();
    for _ in 0..50 {
        ids.push(send(&handle, tracked_task("many")).await);
    }
    let waits = ids.iter().map(|id| tasks.wait(id));
    let work = async {
        for _ in 0..50 {
            let delivery = worker.one().await;
            done(delivery).await;
        }
    };
    let waits = futures_util::future::join_all(waits);
    let (ended, ()) = in_time("waiting for tasks", futures_util::future::join(waits, work)).await;
    for status in ended {
        assert_eq!(status.expect("the task has ended").state, TaskState::Done);
    }
    worker.close().await;
}

/// Checks that a task can be cancelled by its unique key, and that this frees the key.
pub async fn a_task_is_cancelled_by_its_key<F: Factory>(factory: &F) {
    if !factory.capabilities().tasks {
        return;
    }
    let scene = Scene::new(factory);
    let (handle, tasks) = connect(factory, &scene).await;
    let key = UniqueKey::from("k");
    let none = must("cancelling", tasks.cancel_key(&key, "")).await;
    assert_eq!(none, None);
    let mut task = unique_task("k", OnConflict::Keep);
    task.parts_mut().tracked = Some(RETENTION);
    let first = send(&handle, task).await;
    let cancelled = must("cancelling", tasks.cancel_key(&key, "not needed")).await;
    assert_equal(cancelled.as_ref(), Some(&first));
    let ended = status(&tasks, &first).await;
    assert_eq!(
        (ended.state, &*ended.reason),
        (TaskState::Cancelled, "not needed")
    );
    assert_eq!(must("cancelling", tasks.cancel_key(&key, "")).await, None);
    send(&handle, unique_task("k", OnConflict::Refuse)).await;
}

/// Checks that only the tasks with the given states and names are cancelled.
pub async fn tasks_are_cancelled_by_state_and_name<F: Factory>(factory: &F) {
    if !factory.capabilities().tasks {
        return;
    }
    let scene = Scene::new(factory);
    let (handle, tasks) = connect(factory, &scene).await;
    let mut named_a = Vec::new();
    for number in 0..250 {
        let mut task = tracked_task("");
        task.parts_mut().name = ["a", "b"][number % 2].into();
        task.parts_mut().due = (number % 5 == 0).then_some(crate::Due::After(RETENTION));
        let receipt = send(&handle, task).await;
        if number % 2 == 0 {
            named_a.push(receipt);
        }
    }
    let cancel = async |query| must("cancelling", tasks.cancel_all(query, "mistake")).await;
    let delayed = TaskQuery::all().named("a").state(TaskState::Delayed);
    assert_eq!(cancel(delayed.clone()).await, 25);
    assert_eq!(cancel(delayed).await, 0);
    assert_eq!(cancel(TaskQuery::all().state(TaskState::Done)).await, 0);
    assert_eq!(cancel(TaskQuery::all().named("a").max(7)).await, 100);
    for id in &named_a {
        let ended = status(&tasks, id).await;
        assert_eq!(
            (ended.state, &*ended.reason),
            (TaskState::Cancelled, "mistake")
        );
    }
    assert_eq!(cancel(TaskQuery::all()).await, 125);
    let cancelled = TaskQuery::all().state(TaskState::Cancelled).max(1_000);
    let list = must("listing", tasks.list(cancelled)).await;
    assert_eq!(list.tasks.len(), 250);
}

/// Checks that invalid ids, keys, reasons, positions and cursors are refused.
pub async fn input_about_tasks_that_is_invalid_is_refused<F: Factory>(factory: &F) {
    if !factory.capabilities().tasks {
        return;
    }
    let scene = Scene::new(factory);
    let (handle, tasks) = connect(factory, &scene).await;
    let receipt = send(&handle, tracked_task("")).await;
    let long = "x".repeat(1 << 20);
    for text in ["", &long] {
        let (id, key) = (MessageId::from(text), UniqueKey::from(text));
        let refused = [
            tasks.status(&id).await.map(drop),
            tasks.wait(&id).await.map(drop),
            tasks.cancel(&id, "").await.map(drop),
            tasks.holder(&key).await.map(drop),
            tasks.cancel_key(&key, "").await.map(drop),
        ];
        for refused in refused {
            assert!(refused.is_err_and(|error| error.is_invalid()));
        }
    }
    let refused = [
        tasks.cancel(&receipt, &long).await.map(drop),
        tasks.cancel_all(TaskQuery::all(), &long).await.map(drop),
        tasks.list(TaskQuery::all().after(&*long)).await.map(drop),
        tasks
            .changes(ChangesFrom::Cursor(long.clone()))
            .await
            .map(drop),
        tasks
            .changes(ChangesFrom::Cursor("1,2".into()))
            .await
            .map(drop),
    ];
    for refused in refused {
        assert!(refused.is_err_and(|error| error.is_invalid()));
    }
    let never = MessageId::from("c0ffee00-0000-4000-8000-000000000000");
    assert!(!must("cancelling", tasks.cancel(&never, "")).await);
    assert_eq!(status(&tasks, &receipt).await.state, TaskState::Waiting);
}

/// Checks that the tasks of all partitions of a stream are listed, followed, waited for and
/// cancelled together.
pub async fn the_tasks_of_all_partitions_are_seen_together<F: Factory>(factory: &F) {
    let capabilities = factory.capabilities();
    if !capabilities.tasks || !capabilities.partitions {
        return;
    }
    let (scene, _) = partitioned_scene(factory, 3);
    let (handle, tasks) = connect(factory, &scene).await;
    let mut changes = must("following", tasks.changes(ChangesFrom::Now)).await;
    let mut sent = HashSet::new();
    for number in 0..12 {
        let mut task = keyed_task(&number.to_string(), number);
        task.parts_mut().tracked = Some(RETENTION);
        sent.insert(send(&handle, task).await);
    }
    let mut followed = HashSet::new();
    while followed.len() < sent.len() {
        followed.insert(next_change(&mut changes).await.id);
    }
    assert_eq!(followed, sent);
    let cursor = changes.cursor();
    let (mut listed, mut next) = (HashSet::new(), Some(TaskQuery::all().max(5)));
    while let Some(query) = next {
        let page = must("listing", tasks.list(query)).await;
        listed.extend(page.tasks.into_iter().map(|task| task.id));
        next = page.next;
    }
    assert_eq!(listed, sent);
    let mut worker = scene.worker().await;
    let delivery = worker.one().await;
    let running = id(&delivery).clone();
    let ended = async { must("waiting for a task", tasks.wait(&running)).await };
    let (ended, ()) = futures_util::future::join(ended, done(delivery)).await;
    assert_eq!(ended.state, TaskState::Done);
    worker.stop().await;
    let cancelled = must("cancelling", tasks.cancel_all(TaskQuery::all(), "")).await;
    assert_eq!(cancelled, 11);
    let from = ChangesFrom::Cursor(cursor);
    let mut rest = must("following", tasks.changes(from)).await;
    let mut ended = HashSet::new();
    while ended.len() < sent.len() {
        let change = next_change(&mut rest).await;
        if change.state.has_ended() {
            ended.insert(change.id);
        }
    }
    worker.close().await;
}
