//! Kills processes that run the same schedule, and checks that each tick has exactly one task.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use campanile::{
    Name, Redis,
    schedule::{Missed, Schedule, ScheduledTask},
};

use crate::{
    SECOND, scaled,
    scene::Scene,
    support::{Signal, raw},
    worker::WorkerProcess,
};

const PERIOD: Duration = Duration::from_millis(20);
const PROCESSES: usize = 5;

fn tick_task(period: Duration) -> ScheduledTask {
    let every = Schedule::every(period).missed(Missed::All);
    ScheduledTask::new("often", every, "tick", "")
}

/// Runs the schedule in a worker process.
pub(crate) async fn run(redis: &Redis, period: Duration) {
    let ended = redis.schedules().run([tick_task(period)]).await;
    panic!("the schedules ended: {ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_tick_has_one_task_whichever_processes_are_killed() {
    let mut scene = Scene::new().await;
    scene.setup.schedule = Some(PERIOD);
    let (schedules, task) = (scene.redis.schedules(), tick_task(PERIOD));
    let name = Name::from("often");
    assert!(schedules.put(&task).await.expect("it is stored"));
    let status = async || {
        let status = schedules.get(&name).await.expect("the server is there");
        status.expect("the schedule is stored")
    };
    let began = status().await.last_tick;
    let start = || WorkerProcess::start(&scene.setup);
    let mut processes: Vec<_> = (0..PROCESSES).map(|_| start()).collect();

    let ticks = scaled(500, 10_000);
    let (mut kills, mut frozen) = (0, 0);
    let end = began + PERIOD * ticks;
    while status().await.last_tick < end {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(50..300))).await;
        let unlucky = fastrand::usize(..PROCESSES);
        if fastrand::u32(..4) == 0 {
            // The frozen process proposes old ticks when it continues.
            processes[unlucky].signal(Signal::Stop);
            tokio::time::sleep(SECOND / 5).await;
            processes[unlucky].signal(Signal::Cont);
            frozen += 1;
        } else {
            processes[unlucky].signal(Signal::Kill);
            processes[unlucky] = start();
            kills += 1;
        }
    }
    drop(processes);

    let last = status().await.last_tick;
    let mut sent = BTreeMap::<String, u32>::new();
    for (_, fields) in raw::entries(&scene.server, "jobs").await {
        let tick = fields.iter().find(|(field, _)| field == b"h:schedule-tick");
        let (_, tick) = tick.expect("the task of a tick names it");
        *sent
            .entry(String::from_utf8_lossy(tick).into_owned())
            .or_default() += 1;
    }
    let all = task
        .schedule()
        .next_ticks(began, 2 * ticks as usize + 10_000);
    let all = all.expect("the schedule is valid").into_iter();
    let expected: Vec<_> = all
        .take_while(|tick| *tick <= last)
        .map(format_tick)
        .collect();
    let doubled = sent.values().filter(|count| **count > 1).count();
    let missing = expected
        .iter()
        .filter(|tick| !sent.contains_key(*tick))
        .count();
    println!(
        "ledger: {PROCESSES} processes, {kills} kills, {frozen} freezes: ticks {} sent {} doubled \
         {doubled} missing {missing}",
        expected.len(),
        sent.values().sum::<u32>(),
    );
    assert!(expected.len() >= ticks as usize && kills > 0);
    assert_eq!((doubled, missing), (0, 0));
    assert_eq!(sent.into_keys().collect::<Vec<_>>(), sorted(expected));
}

/// Formats a tick as in the header of its task.
fn format_tick(tick: SystemTime) -> String {
    let since = tick
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970");
    let time = jiff::Timestamp::from_millisecond(since.as_millis() as i64);
    time.expect("a time").to_string()
}

fn sorted(mut ticks: Vec<String>) -> Vec<String> {
    ticks.sort();
    ticks
}
