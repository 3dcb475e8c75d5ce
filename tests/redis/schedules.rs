//! Scheduled tasks on a real server: its clock, its outages, its rights, and what other programs store.

use std::time::SystemTime;

use campanile::{
    Name, Redis,
    schedule::{Missed, Schedule, ScheduledTask},
    transport::{ScheduleStatus, Schedules},
};
use tokio::{task::JoinHandle, time::Duration};

use crate::{
    SECOND,
    support::{Options, RedisServer, raw, rights::documented},
};

const HOUR: Duration = Duration::from_secs(3_600);

async fn connect(server: &RedisServer) -> Redis {
    let redis = Redis::connect(&server.url()).await;
    redis.expect("the server is there").stream("s").group("g")
}

fn hourly(name: &str, missed: Missed) -> ScheduledTask {
    ScheduledTask::new(name, Schedule::every(HOUR).missed(missed), name, "")
}

fn often(name: &str) -> ScheduledTask {
    let every = Schedule::every(SECOND / 10).missed(Missed::All);
    ScheduledTask::new(name, every, name, "")
}

async fn status(schedules: &Schedules, name: &str) -> ScheduleStatus {
    let status = schedules.get(&Name::from(name)).await;
    status
        .expect("the server is there")
        .expect("the schedule is stored")
}

/// A process that runs the schedules, until this value is dropped.
struct Running(JoinHandle<()>);

impl Running {
    fn start(redis: &Redis, entries: Vec<ScheduledTask>) -> Self {
        let schedules = redis.schedules();
        Self(tokio::spawn(async move {
            let ended = schedules.run(entries).await;
            panic!("the schedules ended: {ended:?}");
        }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits until a status meets a condition.
async fn until(
    schedules: &Schedules,
    name: &str,
    is_met: impl Fn(&ScheduleStatus) -> bool,
) -> ScheduleStatus {
    let name = Name::from(name);
    let met = || async {
        let status = schedules.get(&name).await.ok().flatten();
        status.filter(|status| is_met(status))
    };
    raw::eventually(met, 20 * SECOND).await
}

/// The values of this field of the entries of the stream.
async fn field_of_all(server: &RedisServer, field: &str) -> Vec<String> {
    let entries = raw::entries(server, "s").await.into_iter();
    let values = entries.flat_map(|(_, fields)| {
        fields
            .into_iter()
            .filter(|(name, _)| name == field.as_bytes())
    });
    values
        .map(|(_, value)| String::from_utf8(value).expect("UTF-8"))
        .collect()
}

#[tokio::test]
async fn the_servers_clock_decides_and_missed_ticks_follow_their_rule() {
    let server = RedisServer::with(Options::new().own_clock()).await;
    // The server's clock is at half past an hour, some hours ahead of this process.
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970");
    let past_the_hour = (now.as_secs() % 3_600) as i64;
    let step = 5 * 3_600 + 1_800 - past_the_hour;
    server.step_clock(step);
    let redis = connect(&server).await;
    let schedules = redis.schedules();
    for (name, missed) in [
        ("all", Missed::All),
        ("once", Missed::Once),
        ("skip", Missed::Skip),
    ] {
        assert!(
            schedules
                .put(&hourly(name, missed))
                .await
                .expect("it is stored")
        );
    }
    let began = status(&schedules, "all").await.last_tick;
    let ahead = began
        .duration_since(SystemTime::now())
        .expect("the server is ahead");
    assert!(ahead > 4 * HOUR, "{ahead:?}");
    let running = Running::start(&redis, vec![]);
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(raw::len(&server, "s").await, 0, "no tick is due");

    server.step_clock(step + 3 * 3_600);
    let all = until(&schedules, "all", |status| status.runs.len() == 3).await;
    let hours = all
        .task
        .expect("it can be read")
        .schedule()
        .next_ticks(began, 4)
        .expect("valid");
    let runs: Vec<_> = all.runs.iter().map(|run| run.at).collect();
    assert_eq!(runs, hours[..3]);
    let once = until(&schedules, "once", |status| !status.runs.is_empty()).await;
    assert_eq!((once.runs.len(), once.last_tick), (1, hours[2]));

    // No tick is sent again, neither when the clock steps back nor when it steps forward again.
    server.step_clock(step + 3_600);
    tokio::time::sleep(2 * SECOND).await;
    server.step_clock(step + 3 * 3_600);
    tokio::time::sleep(2 * SECOND).await;
    let mut names = field_of_all(&server, "name").await;
    names.sort();
    assert_eq!(names, ["all", "all", "all", "once"]);
    assert_eq!(status(&schedules, "skip").await.runs, []);

    // The next tick is in time for all of them.
    server.step_clock(step + 3 * 3_600 + 1_800);
    for name in ["all", "once", "skip"] {
        until(&schedules, name, |status| status.last_tick == hours[3]).await;
    }
    assert_eq!(raw::len(&server, "s").await, 7);
    drop(running);
}

#[tokio::test]
async fn an_outage_is_survived_and_its_ticks_are_caught_up() {
    let server = RedisServer::with(Options::new().persistent()).await;
    let redis = connect(&server).await;
    let schedules = redis.schedules();
    let running = [(); 3].map(|()| Running::start(&redis, vec![often("often")]));
    let before = until(&schedules, "often", |status| status.runs.len() > 5).await;
    server.restart().await;
    let long_after = before.last_tick + 3 * SECOND;
    let after = until(&schedules, "often", |status| status.last_tick > long_after).await;
    drop(running);
    // The handle sends its commands in order, so a tick on its way is before this.
    assert!(
        schedules
            .pause(&before.name)
            .await
            .expect("the server is there")
    );
    let ticks = field_of_all(&server, "h:schedule-tick").await;
    let mut distinct = ticks.clone();
    distinct.dedup();
    assert_eq!(ticks, distinct, "a tick was sent twice");
    let last = status(&schedules, "often").await;
    let schedule = last.task.expect("it can be read").schedule().clone();
    let since = before.runs[0].at;
    let all = schedule
        .next_ticks(since, 10_000)
        .expect("valid")
        .into_iter();
    let expected = all.take_while(|tick| *tick <= last.last_tick).count();
    // Ticks before `since` may have been sent, too.
    assert!(ticks.len() > expected, "{} of {expected}", ticks.len());
    assert!(after.last_tick <= last.last_tick);
}

#[tokio::test]
async fn entries_of_the_code_are_stored_again_after_the_server_has_lost_its_data() {
    let server = RedisServer::start().await;
    let redis = connect(&server).await;
    let schedules = redis.schedules();
    let _running = Running::start(&redis, vec![often("one"), often("two")]);
    until(&schedules, "two", |status| !status.runs.is_empty()).await;
    server.command(&["FLUSHALL"]).await;
    for name in ["one", "two"] {
        until(&schedules, name, |status| !status.runs.is_empty()).await;
    }
}

#[tokio::test]
async fn a_tick_is_sent_once_its_task_can_be_stored_and_others_do_not_wait() {
    let server = RedisServer::start().await;
    let redis = connect(&server).await;
    let schedules = redis.schedules();
    // The task of one schedule is delayed by its jitter, and its key has another type.
    server.command(&["SET", "{s}:due", "x"]).await;
    let jitter = Schedule::every(SECOND / 10)
        .missed(Missed::All)
        .jitter(HOUR);
    let late = ScheduledTask::new("late", jitter, "late", "");
    assert!(schedules.put(&late).await.expect("it is stored"));
    let began = status(&schedules, "late").await.last_tick;
    let _running = Running::start(&redis, vec![often("other")]);
    until(&schedules, "other", |status| status.runs.len() > 3).await;
    let blocked = status(&schedules, "late").await;
    assert_eq!((blocked.last_tick, blocked.runs), (began, vec![]));
    server.command(&["DEL", "{s}:due"]).await;
    let ran = until(&schedules, "late", |status| status.runs.len() >= 3).await;
    let all = ran
        .task
        .expect("it can be read")
        .schedule()
        .next_ticks(began, 3)
        .expect("valid");
    assert_eq!(ran.runs[0].at, all[0], "no tick is lost");
}

#[tokio::test]
async fn a_key_of_another_type_is_named_and_no_run_is_recorded() {
    let server = RedisServer::start().await;
    let schedules = connect(&server).await.schedules();
    assert!(schedules.put(&often("often")).await.expect("it is stored"));
    server.command(&["SET", "s", "x"]).await;
    let by_hand = schedules.run_now(&Name::from("often")).await;
    let error = by_hand.expect_err("the key has another type");
    assert!(error.is_refused());
    let source = std::error::Error::source(&error).expect("the server's error");
    assert!(source.to_string().contains("`s` is a string"), "{source}");
    assert_eq!(status(&schedules, "often").await.runs, []);
}

#[tokio::test]
async fn a_schedule_of_a_newer_library_is_left_to_newer_processes() {
    let server = RedisServer::start().await;
    let redis = connect(&server).await;
    let schedules = redis.schedules();
    for name in ["new", "old"] {
        assert!(schedules.put(&often(name)).await.expect("it is stored"));
    }
    let newer = r#"{"schedule":{"timing":"sunrise"}}"#;
    server
        .command(&["HSET", "{s}:schedules", "definition:new", newer])
        .await;
    server
        .command(&["HSET", "{s}:schedules", "another program", "x"])
        .await;
    server
        .command(&["HSET", "{s}:schedules", "last:lonely", "x"])
        .await;
    let _running = Running::start(&redis, vec![]);
    until(&schedules, "old", |status| status.runs.len() > 2).await;
    let new = status(&schedules, "new").await;
    let fault = new.task.expect_err("no such timing is known");
    assert!(fault.contains("sunrise"), "{fault}");
    assert_eq!(new.runs, []);
    let refused = schedules
        .run_now(&new.name)
        .await
        .expect_err("it cannot be read");
    assert!(refused.is_invalid());
    assert_eq!(
        schedules.list().await.expect("the server is there").len(),
        2
    );
    assert!(
        schedules
            .remove(&new.name)
            .await
            .expect("the server is there")
    );
}

#[tokio::test]
async fn the_documented_rights_are_enough_and_a_missing_one_loses_no_tick() {
    let rights = documented(&["stores, runs and lists"]);
    let acl = format!("user runner on >pw {rights}\nuser default on nopass ~* &* +@all");
    let server = RedisServer::with(Options::new().acl(&acl)).await;
    let url = format!("redis://runner:pw@127.0.0.1:{}/", server.port());
    let redis = Redis::connect(&url).await.expect("the user can log in");
    let redis = redis.stream("s").group("g");
    let schedules = redis.schedules();
    let every = Schedule::every(SECOND / 10).jitter(SECOND / 50);
    let task = ScheduledTask::new("often", every, "task", "x");
    let task = task
        .skip_while_running()
        .tracked(SECOND)
        .expires_after(60 * SECOND);
    let _running = Running::start(&redis, vec![task]);
    let ran = until(&schedules, "often", |status| status.runs.len() > 2).await;
    assert!(!ran.runs[0].is_skipped && ran.runs[1].is_skipped);
    assert_eq!(ran.runs[0].task, ran.runs[1].task);
    for (change, done) in [
        ("pause", schedules.pause(&ran.name).await),
        (
            "run",
            schedules.run_now(&ran.name).await.map(|run| run.is_some()),
        ),
        ("resume", schedules.resume(&ran.name).await),
        ("remove", schedules.remove(&ran.name).await),
    ] {
        assert!(
            done.unwrap_or_else(|error| panic!("{change}: {error}")),
            "{change}"
        );
    }

    // Without the right to the stream, no tick counts as sent.
    server
        .command(&[
            "ACL",
            "SETUSER",
            "runner",
            "reset",
            "on",
            ">pw",
            "~{s}:schedules",
            "+@all",
        ])
        .await;
    let redis = Redis::connect(&url)
        .await
        .expect("the user can log in")
        .stream("s")
        .group("g");
    let schedules = redis.schedules();
    assert!(
        schedules
            .put(&often("blocked"))
            .await
            .expect("it is stored")
    );
    let began = status(&schedules, "blocked").await.last_tick;
    let _running = Running::start(&redis, vec![]);
    tokio::time::sleep(SECOND / 2).await;
    assert_eq!(status(&schedules, "blocked").await.last_tick, began);
}
