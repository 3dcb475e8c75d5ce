//! `campanile schedules`

use std::time::Duration;

use campanile::{
    Redis,
    schedule::{Schedule, ScheduledTask},
};

use super::*;

/// Stores two schedules of the default stream.
async fn schedules(server: &RedisServer) -> Redis {
    let redis = Redis::connect(&server.url())
        .await
        .expect("the server is there");
    let nightly = Schedule::cron("0 3 * * *").in_zone("Europe/Berlin");
    let nightly = ScheduledTask::new("nightly", nightly, "report.make", "7").version(2);
    let hourly = Schedule::every(Duration::from_secs(3_600));
    let hourly = ScheduledTask::new("hourly", hourly, "clean", ()).skip_while_running();
    for task in [nightly, hourly] {
        assert!(redis.schedules().put(&task).await.expect("it is stored"));
    }
    redis
}

#[tokio::test]
async fn schedules_are_listed_and_shown_with_their_next_ticks_and_last_runs() {
    let server = RedisServer::start().await;
    let none = run(campanile(&server, "schedules list"))
        .await
        .ended_with(0);
    assert_eq!(none.text(), "no schedules\n");
    let _redis = schedules(&server).await;

    let list = run(campanile(&server, "schedules list"))
        .await
        .ended_with(0);
    let rows: Vec<_> = list.text().lines().collect();
    assert!(rows[0].starts_with("NAME"), "{rows:?}");
    assert!(
        rows[1].starts_with("hourly   every 3600s") && rows[1].contains(":00:00.000Z"),
        "{rows:?}"
    );
    assert!(
        rows[2].starts_with("nightly  0 3 * * * (Europe/Berlin)  report.make"),
        "{rows:?}"
    );

    let sent = run(campanile(&server, "schedules run hourly"))
        .await
        .ended_with(0);
    let id = sent
        .text()
        .trim()
        .strip_prefix("sent ")
        .expect("it was sent")
        .to_owned();
    let again = run(campanile(&server, "schedules run hourly"))
        .await
        .ended_with(0);
    assert!(again.text().contains("has not ended") && again.text().contains(&id));
    let shown = run(campanile(&server, "schedules show hourly"))
        .await
        .ended_with(0);
    let count = |title: &str| {
        shown
            .text()
            .lines()
            .filter(|line| line.starts_with(title))
            .count()
    };
    assert_eq!((count("next "), count("run ")), (5, 2), "{}", shown.text());
    let shown = run(campanile(&server, "schedules show nightly --json"))
        .await
        .ended_with(0)
        .json();
    assert_eq!(shown["version"], 2);
    assert_eq!(shown["next_ms"].as_array().map(Vec::len), Some(5));
    assert_eq!(shown["schedule"], "0 3 * * * (Europe/Berlin)");
}

#[tokio::test]
async fn a_schedule_is_paused_resumed_and_removed() {
    let server = RedisServer::start().await;
    let redis = schedules(&server).await;
    let paused = run(campanile(&server, "schedules pause nightly"))
        .await
        .ended_with(0);
    assert_eq!(paused.text(), "paused nightly\n");
    let list = run(campanile(&server, "schedules list"))
        .await
        .ended_with(0);
    let row = list.text().lines().find(|line| line.starts_with("nightly"));
    assert!(
        row.is_some_and(|row| row.contains("paused")),
        "{}",
        list.text()
    );
    run(campanile(&server, "schedules resume nightly"))
        .await
        .ended_with(0);
    let shown = run(campanile(&server, "schedules show nightly --json"))
        .await
        .ended_with(0)
        .json();
    assert_eq!(shown["paused"], false);
    run(campanile(&server, "schedules remove nightly"))
        .await
        .ended_with(0);
    let left = redis.schedules().list().await.expect("the server is there");
    assert_eq!(left.len(), 1);
}

#[tokio::test]
async fn an_unknown_schedule_is_not_found_and_the_error_says_so() {
    let server = RedisServer::start().await;
    for command in ["show", "run", "pause", "resume", "remove"] {
        let ran = run(campanile(&server, &format!("schedules {command} weekly"))).await;
        ran.ended_with(4).tells(&["weekly", "schedules list"]);
    }
}
