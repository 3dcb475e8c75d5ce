//! A failover to a server whose clock is ahead of that of the old primary.

use std::time::Duration;

use campanile::{Attempt, BoxError, Client, Json, Redis, Router, transport::Backoff};
use tokio::{sync::watch, time::sleep};

use crate::{
    FOUND, SECOND, connect,
    load::GROUP,
    support::{
        Options,
        ledger::{Account, Ledger, What, now},
        raw::{self, eventually},
        sentinel::{SentinelGroup, Setup},
        worker::Worker,
    },
};

/// The difference of the clocks, in seconds.
const AHEAD: i64 = 60;
const LEASE: Duration = Duration::from_secs(3);

/// The numbers of the jobs: those that run during the failover, delayed ones, and those that are sent
/// after it.
const HELD: std::ops::Range<u64> = 0..8;
const DELAYED: std::ops::Range<u64> = 100..110;
const AFTER: std::ops::Range<u64> = 200..230;

/// Each odd job of `hold` fails at first, so that its second attempt comes from the stream of
/// retries. It lasts until `go` is set.
fn app(ledger: &Ledger, go: &watch::Receiver<bool>) -> Router {
    let (held, run) = (ledger.clone(), ledger.clone());
    let go = go.clone();
    Router::new()
        .task("hold", async move |attempt: Attempt, Json(n): Json<u64>| {
            if n % 2 == 1 && attempt.0 == 1 {
                return Err(BoxError::from("the first attempt always fails"));
            }
            held.write(What::Started, n, attempt.0);
            let _ = go.clone().wait_for(|go| *go).await;
            held.write(What::Finished, n, attempt.0);
            Ok(())
        })
        .task("run", async move |attempt: Attempt, Json(n): Json<u64>| {
            run.write(What::Started, n, attempt.0);
            run.write(What::Finished, n, attempt.0);
        })
}

async fn until(ledger: &Ledger, limit: Duration, said: impl Fn(&Account) -> bool) {
    eventually(async || said(&ledger.read()).then_some(()), limit).await;
}

fn in_order(account: &Account, what: What, jobs: std::ops::Range<u64>) -> Vec<u64> {
    let lines = account.all(what).map(|line| line.job);
    lines.filter(|job| jobs.contains(job)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_primary_whose_clock_is_a_minute_ahead_takes_no_delivery_from_the_living() {
    let group = SentinelGroup::with(Setup {
        options: Options::new().own_clock(),
        ..Setup::default()
    })
    .await;
    let old = group.primary().await;
    for server in (0..3).filter(|server| *server != old) {
        group.server(server).step_clock(AHEAD);
    }
    let ledger = Ledger::open(&group.dir().join("ledger"));
    let (go, goes) = watch::channel(false);
    let handle = async |stream: &str| -> Redis {
        let redis = connect(&group.url(0)).await.stream(stream).group(GROUP);
        let backoff = Backoff::exponential(SECOND / 20, SECOND / 10);
        redis.lease(LEASE).backoff(backoff)
    };
    // Two workers of one group: each would claim what it takes for abandoned.
    let mut workers = Vec::new();
    for _ in 0..2 {
        workers.push(Worker::start(handle("jobs").await, app(&ledger, &goes)));
    }
    let later = handle("later").await.max_in_flight(1);
    workers.push(Worker::start(later.clone(), app(&ledger, &goes)));

    let (jobs, later) = (Client::new(handle("jobs").await), Client::new(later));
    for n in HELD {
        jobs.enqueue("hold", Json(n)).await.unwrap();
        ledger.write(What::Sent, n, 0);
    }
    // The last one is due first. None is due before the failover.
    for n in DELAYED {
        let delay =
            Duration::from_secs(50) - Duration::from_millis(100) * (n - DELAYED.start) as u32;
        later.enqueue("run", Json(n)).delay(delay).await.unwrap();
        ledger.write(What::Sent, n, 0);
    }
    // This one is due after the end of the test by either clock.
    later
        .enqueue("run", Json(0_u64))
        .delay(600 * SECOND)
        .await
        .unwrap();
    until(&ledger, FOUND, |account| {
        account.jobs(What::Started).len() == 8
    })
    .await;
    // Healthy for longer than a lease, since only then a worker claims.
    sleep(LEASE * 2).await;
    raw::replicated(group.server(old), "jobs", 2).await;
    assert!(in_order(&ledger.read(), What::Started, DELAYED).is_empty());

    let (_, new) = group.fail_over().await;
    let time = async |server: usize| -> i64 {
        let (seconds, _): (i64, i64) = group.server(server).query(&["TIME"]).await;
        seconds
    };
    let ahead = time(new).await - time(old).await;
    assert!((AHEAD - 1..=AHEAD + 1).contains(&ahead), "{ahead}");
    // The old primary takes tasks until it is demoted, and forgets them then.
    group.demoted(old).await;
    let at = now();
    for n in AFTER {
        jobs.enqueue("run", Json(n)).await.unwrap();
        ledger.write(What::Sent, n, 0);
    }
    let done =
        |account: &Account| in_order(account, What::Finished, DELAYED.start..AFTER.end).len();
    until(&ledger, FOUND, |account| done(account) >= 40).await;
    // The first leases would have ended long ago.
    sleep(LEASE * 3).await;
    assert!(in_order(&ledger.read(), What::Finished, HELD).is_empty());
    go.send_replace(true);
    until(&ledger, FOUND, |account| account.lost().is_empty()).await;
    for (stream, retried) in [
        ("jobs", "{jobs}:retry:workers"),
        ("later", "{later}:retry:workers"),
    ] {
        let server = group.server(new);
        let settled = async || {
            let left = raw::pending(server, retried, GROUP).await + raw::len(server, retried).await;
            (left == 0 && raw::drained(server, stream, GROUP).await).then_some(())
        };
        eventually(settled, FOUND).await;
    }
    for worker in workers {
        worker.stop().await.expect("it ends well");
    }

    let account = ledger.read();
    let first = account
        .all(What::Finished)
        .find(|line| AFTER.contains(&line.job));
    let recovered = first.expect("they are finished").at - at;
    account.report(
        "Sentinel: clock of the new primary 60 s ahead",
        recovered,
        FOUND,
    );
    assert_eq!(account.repeated(), Default::default());
    let mut due: Vec<_> = DELAYED.collect();
    due.reverse();
    assert_eq!(in_order(&account, What::Started, DELAYED), due);
    let waiting: usize = group.server(new).query(&["ZCARD", "{later}:due"]).await;
    assert_eq!(waiting, 1, "the task that is not due");
}
