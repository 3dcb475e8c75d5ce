//! Checks of scheduled tasks.

use std::time::{Duration, SystemTime};

use tokio::{task::JoinHandle, time::sleep};

use super::{
    Factory,
    scene::{QUIET, Scene, WorkerOf, done, id, in_time, message, must, redeliver_after, settle},
};
use crate::{
    message::Name,
    schedule::{Missed, Schedule, ScheduledTask},
    transport::{ScheduleRun, ScheduleStatus, Schedules},
};

const NAME: Name = Name::from_static("often");

/// Runs the schedules, as a separate process would, until this value is dropped.
struct RunningSchedules(JoinHandle<()>);

impl RunningSchedules {
    fn start(schedules: &Schedules, entries: Vec<ScheduledTask>) -> Self {
        let schedules = schedules.clone();
        Self(tokio::spawn(async move {
            let Err(error) = schedules.run(entries).await;
            panic!("the schedules ended: {}", error.chain());
        }))
    }
}

impl Drop for RunningSchedules {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn connect<F: Factory>(factory: &F, scene: &Scene<'_, F>) -> Schedules {
    let schedules = factory.schedules(&scene.handle().await);
    schedules.expect("the factory declares `schedules` and gives none")
}

/// Returns a scheduled task with this time between its ticks. Each missed tick is sent, too.
fn scheduled_task(milliseconds: u64, payload: &'static str) -> ScheduledTask {
    let every = Schedule::every(Duration::from_millis(milliseconds)).missed(Missed::All);
    ScheduledTask::new(NAME, every, "task", payload)
}

async fn put(schedules: &Schedules, task: &ScheduledTask) {
    assert!(must("storing a schedule", schedules.put(task)).await);
}

async fn status(schedules: &Schedules) -> ScheduleStatus {
    let status = must("looking up a schedule", schedules.get(&NAME)).await;
    status.expect("the schedule is stored")
}

/// Waits until the status meets a condition.
async fn until(schedules: &Schedules, is_met: impl Fn(&ScheduleStatus) -> bool) -> ScheduleStatus {
    let met = async {
        loop {
            let status = status(schedules).await;
            if is_met(&status) {
                return status;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    in_time("waiting for a schedule", met).await
}

fn ticks(runs: &[ScheduleRun]) -> Vec<SystemTime> {
    runs.iter().map(|run| run.at).collect()
}

/// Handles tasks with this payload until none has come for [`QUIET`], and returns their number.
async fn drain<F: Factory>(worker: &mut WorkerOf<F>, payload: &str) -> usize {
    let mut count = 0;
    while let Some(delivery) = worker.within(QUIET).await {
        assert_eq!(message(&delivery).payload(), payload);
        done(delivery).await;
        count += 1;
    }
    count
}

/// Checks that each tick sends exactly one task, even if several processes run the schedules.
pub async fn ticks_are_sent_once_by_any_number_of_processes<F: Factory>(factory: &F) {
    if !factory.capabilities().schedules {
        return;
    }
    let scene = Scene::new(factory);
    let schedules = connect(factory, &scene).await;
    let task = scheduled_task(50, "x").header("x-tenant", "acme");
    put(&schedules, &task).await;
    let start_tick = status(&schedules).await.last_tick;
    let mut running = Vec::new();
    for _ in 0..4 {
        let schedules = connect(factory, &scene).await;
        running.push(RunningSchedules::start(&schedules, vec![task.clone()]));
    }
    until(&schedules, |status| {
        status.last_tick >= start_tick + Duration::from_secs(2)
    })
    .await;
    running.pop();
    until(&schedules, |status| {
        status.last_tick >= start_tick + Duration::from_secs(3)
    })
    .await;
    drop(running);

    let mut worker = scene.worker().await;
    let delivery = worker.one().await;
    assert_eq!(message(&delivery).headers()["x-tenant"], "acme");
    done(delivery).await;
    let count = 1 + drain::<F>(&mut worker, "x").await;
    let last = status(&schedules).await;
    let all = must("computing ticks", async {
        task.schedule().next_ticks(start_tick, 1_000)
    })
    .await;
    let expected = all.iter().filter(|tick| **tick <= last.last_tick).count();
    assert_eq!(count, expected, "each tick has one task");
    assert_eq!(
        ticks(&last.runs),
        all[expected - ScheduleStatus::MAX_RUNS..expected]
    );
    worker.close().await;
}

/// Checks that missed ticks send one task in total, or one task each, as the schedule says. The
/// next tick is sent, too.
pub async fn missed_ticks_are_sent_together_or_each_as_chosen<F: Factory>(factory: &F) {
    if !factory.capabilities().schedules {
        return;
    }
    for missed in [Missed::Once, Missed::All] {
        let scene = Scene::new(factory);
        let schedules = connect(factory, &scene).await;
        let every = Schedule::every(Duration::from_millis(300)).missed(missed);
        let task = ScheduledTask::new(NAME, every.clone(), "task", "x");
        put(&schedules, &task).await;
        let start_tick = status(&schedules).await.last_tick;
        sleep(Duration::from_secs(1)).await;
        let running = RunningSchedules::start(&schedules, vec![]);
        let caught_up = until(&schedules, |status| status.runs.len() >= 2).await;
        drop(running);
        let all = must("computing ticks", async {
            every.next_ticks(start_tick, 100)
        })
        .await;
        let first = caught_up.runs[0].at;
        match missed {
            Missed::All => assert_eq!(first, all[0], "each tick is sent"),
            _ => assert!(
                first >= all[2],
                "the missed ticks are sent together, as the last of them"
            ),
        }
        let index = all.iter().position(|tick| *tick == first);
        let index = index.expect("a run is at a tick");
        assert_eq!(caught_up.runs[1].at, all[index + 1]);
    }
}

/// Checks that schedules can be added, changed and removed while they run, and that storing an
/// older version changes nothing.
pub async fn schedules_are_changed_at_run_time<F: Factory>(factory: &F) {
    if !factory.capabilities().schedules {
        return;
    }
    let scene = Scene::new(factory);
    let schedules = connect(factory, &scene).await;
    assert_eq!(must("listing", schedules.list()).await, []);
    let _running = RunningSchedules::start(&connect(factory, &scene).await, vec![]);
    let mut worker = scene.worker().await;

    put(&schedules, &scheduled_task(200, "first").version(2)).await;
    let delivery = worker.one().await;
    assert_eq!(message(&delivery).payload(), "first");
    done(delivery).await;

    let older = scheduled_task(200, "older").version(1);
    assert!(!must("storing an older version", schedules.put(&older)).await);
    put(&schedules, &scheduled_task(200, "second").version(3)).await;
    let stored = status(&schedules).await;
    assert_eq!((stored.version, stored.paused), (3, false));
    assert_eq!(stored.task.expect("it can be read").task_name(), "task");
    let changed = async {
        loop {
            let delivery = worker.one().await;
            let is_new = message(&delivery).payload() == "second";
            assert!(is_new || message(&delivery).payload() == "first");
            done(delivery).await;
            if is_new {
                return;
            }
        }
    };
    in_time("waiting for the changed task", changed).await;

    assert!(must("removing", schedules.remove(&NAME)).await);
    assert!(!must("removing", schedules.remove(&NAME)).await);
    assert_eq!(must("listing", schedules.list()).await, []);
    drain::<F>(&mut worker, "second").await;
    worker
        .nothing_for(2 * QUIET, "a removed schedule has sent a task")
        .await;
    worker.close().await;
}

/// Checks that a paused schedule sends nothing but can be run by hand, and that ticks during the
/// pause are never sent.
pub async fn a_schedule_is_paused_resumed_and_run_by_hand<F: Factory>(factory: &F) {
    if !factory.capabilities().schedules {
        return;
    }
    let scene = Scene::new(factory);
    let schedules = connect(factory, &scene).await;
    let unknown = Name::from("unknown");
    assert!(!must("pausing", schedules.pause(&unknown)).await);
    assert!(!must("resuming", schedules.resume(&unknown)).await);
    assert_eq!(must("running", schedules.run_now(&unknown)).await, None);

    put(&schedules, &scheduled_task(150, "x")).await;
    assert!(must("pausing", schedules.pause(&NAME)).await);
    let running = RunningSchedules::start(&schedules, vec![]);
    let mut worker = scene.worker().await;
    worker
        .nothing_for(3 * QUIET, "a paused schedule has sent a task")
        .await;
    let paused = status(&schedules).await;
    assert!(paused.paused && paused.next_ticks(3).is_empty());

    let run = must("running", schedules.run_now(&NAME))
        .await
        .expect("it exists");
    assert!(run.is_manual && !run.is_skipped);
    let delivery = worker.one().await;
    assert_eq!(id(&delivery), &run.task);
    done(delivery).await;
    let after = status(&schedules).await;
    assert_eq!((after.last_tick, after.runs), (paused.last_tick, vec![run]));

    assert!(must("resuming", schedules.resume(&NAME)).await);
    let resumed = status(&schedules).await;
    assert!(
        resumed.last_tick >= paused.as_of,
        "the ticks of the pause are left out"
    );
    assert_eq!(resumed.next_ticks(3).len(), 3);
    let ran = until(&schedules, |status| status.runs.len() > 1).await;
    assert!(ran.runs[1].at > paused.as_of && !ran.runs[1].is_manual);
    drop(running);
    assert!(drain::<F>(&mut worker, "x").await >= 1);
    worker.close().await;
}

/// Checks that with `skip_while_running` a tick sends nothing while the task of an earlier tick has
/// not ended.
pub async fn a_tick_is_skipped_while_the_last_task_has_not_ended<F: Factory>(factory: &F) {
    if !factory.capabilities().schedules {
        return;
    }
    let scene = Scene::new(factory);
    let schedules = connect(factory, &scene).await;
    put(&schedules, &scheduled_task(100, "x").skip_while_running()).await;
    let running = RunningSchedules::start(&schedules, vec![]);
    let mut worker = scene.worker().await;
    let delivery = worker.one().await;
    let first = id(&delivery).clone();
    // Between two attempts the task has not ended, so ticks are still skipped.
    settle(delivery, redeliver_after(Duration::from_millis(300))).await;
    let skipped = until(&schedules, |status| status.runs.len() >= 3).await;
    assert_eq!(
        (&skipped.runs[0].task, skipped.runs[0].is_skipped),
        (&first, false)
    );
    assert_eq!(
        (&skipped.runs[1].task, skipped.runs[1].is_skipped),
        (&first, true)
    );
    let manual_run = must("running", schedules.run_now(&NAME))
        .await
        .expect("it exists");
    assert!(manual_run.is_skipped && manual_run.task == first);
    let delivery = worker.one().await;
    assert_eq!(id(&delivery), &first);
    done(delivery).await;
    let delivery = worker.one().await;
    assert_ne!(id(&delivery), &first, "the next tick sends a task");
    drop(running);
    done(delivery).await;
    drain::<F>(&mut worker, "x").await;
    worker.close().await;
}

/// Checks that the jitter delays tasks.
pub async fn the_jitter_of_a_schedule_delays_its_tasks<F: Factory>(factory: &F) {
    if !factory.capabilities().schedules {
        return;
    }
    let scene = Scene::new(factory);
    let schedules = connect(factory, &scene).await;
    let every = Schedule::every(Duration::from_millis(100)).jitter(Duration::from_secs(3600));
    let task = ScheduledTask::new(NAME, every, "task", "x");
    put(&schedules, &task).await;
    let running = RunningSchedules::start(&schedules, vec![]);
    until(&schedules, |status| {
        status.runs.len() == ScheduleStatus::MAX_RUNS
    })
    .await;
    drop(running);
    let mut worker = scene.worker().await;
    // With a jitter of up to an hour, it is unlikely that any of the ten tasks is due this soon.
    assert!(
        worker.within(QUIET).await.is_none(),
        "a task came without its delay"
    );
    worker.close().await;
}

/// Checks that an invalid schedule is refused, and nothing is stored.
pub async fn an_invalid_schedule_is_refused<F: Factory>(factory: &F) {
    if !factory.capabilities().schedules {
        return;
    }
    let scene = Scene::new(factory);
    let schedules = connect(factory, &scene).await;
    for schedule in [
        Schedule::cron("0 0 30 2 *"),
        Schedule::cron("every day"),
        Schedule::cron("0 3 * * *").in_zone("Europe/Berln"),
        Schedule::every(Duration::ZERO),
    ] {
        let task = ScheduledTask::new(NAME, schedule, "task", "");
        let refused = schedules.put(&task).await;
        assert!(refused.is_err_and(|error| error.is_invalid()));
        let entries = [scheduled_task(100, "x"), task];
        let ended = in_time("running", schedules.run(entries)).await;
        assert!(ended.is_err_and(|error| error.is_invalid()));
    }
    assert_eq!(must("listing", schedules.list()).await, []);
}
