//! A primary that Sentinels name, and that changes.

use std::time::Duration;

use campanile::{Client, Redis};
use tokio::time::timeout;

use crate::{
    FOUND, SECOND,
    calls::Calls,
    connect,
    load::Load,
    scaled,
    support::{
        Options, Signal,
        ledger::now,
        raw,
        sentinel::{SentinelGroup, Setup},
    },
};

/// The longest time until a client leaves a primary that the Sentinels do not name any more.
const LEFT: Duration = Duration::from_secs(5);

#[tokio::test]
async fn the_primary_is_found_by_its_name_with_both_logins_and_the_database() {
    let acl = "user default off\nuser worker on >pw ~* &* +@all";
    let group = SentinelGroup::with(Setup {
        options: Options::new().acl(acl).login("worker", "pw"),
        sentinel_login: true,
        ..Setup::default()
    })
    .await;
    let redis = connect(&group.url(3)).await.stream("s");
    Client::new(redis).enqueue("a", "").await.unwrap();
    let primary = group.server(group.primary().await);
    let keyspace: String = primary.query(&["INFO", "keyspace"]).await;
    assert!(keyspace.contains("db3:"), "{keyspace}");
    assert!(!keyspace.contains("db0:"), "{keyspace}");
    let mut connection = primary.connection().await;
    let (_, sent): (String, usize) = redis::pipe()
        .cmd("SELECT")
        .arg(3)
        .cmd("XLEN")
        .arg("s")
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(sent, 1);
}

#[cfg(feature = "redis-rustls")]
#[tokio::test]
async fn sentinels_and_their_primary_are_reached_over_tls() {
    let group = SentinelGroup::with(Setup {
        tls: true,
        ..Setup::default()
    })
    .await;
    let connecting = Redis::builder(group.url(0)).ca_certificate(group.certificate());
    let redis = connecting.connect().await.unwrap().stream("s");
    Client::new(redis).enqueue("a", "").await.unwrap();
    let primary = group.server(group.primary().await);
    assert_eq!(raw::len(primary, "s").await, 1);
    let error = Redis::connect(&group.url(0)).await.unwrap_err();
    assert!(error.is_config(), "{error:?}");
    assert!(error.to_string().contains("ca_certificate"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_dead_sentinels_of_three_hinder_neither_work_nor_new_connections() {
    let group = SentinelGroup::start().await;
    let redis = connect(&group.url(0)).await;
    let load = Load::start(&redis, &["jobs".to_owned()], group.dir()).await;
    let primary = group.server(group.primary().await);
    let at = now();
    group.sentinel(0).signal(Signal::Kill);
    // The frozen Sentinel accepts connections and never answers.
    group.sentinel(1).signal(Signal::Stop);
    // The handle asks the Sentinels every 5 s, and again for each connection that it makes.
    tokio::time::sleep(6 * SECOND).await;
    load.until_work_goes_on(now()).await;
    primary.kill_connections().await;
    load.until_work_goes_on(now()).await;
    let another = connect(&group.url(0)).await.stream("another");
    Client::new(another).enqueue("a", "").await.unwrap();
    let account = load
        .finish(primary, "Sentinel: two of three dead", at)
        .await;
    assert_eq!(account.lost(), Default::default());
    assert_eq!(account.repeated(), Default::default());
    group.sentinel(1).signal(Signal::Cont);
}

#[tokio::test]
async fn a_handle_waits_for_sentinels_that_are_not_there_yet() {
    let group = SentinelGroup::start().await;
    for sentinel in 0..3 {
        group.sentinel(sentinel).signal(Signal::Kill);
    }
    let error = Redis::connect(&group.url(0)).await.unwrap_err();
    assert!(error.is_disconnected(), "{error:?}");
    assert!(error.to_string().contains("Sentinel"), "{error}");
    let url = group.url(0);
    let connecting = tokio::spawn(async move { Redis::connect_when_ready(&url).await });
    tokio::time::sleep(SECOND).await;
    assert!(!connecting.is_finished());
    group.sentinel(2).restart().await;
    let connected = timeout(FOUND, connecting).await.expect("connected in time");
    let redis = connected.unwrap().unwrap().stream("s");
    Client::new(redis).enqueue("a", "").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_goes_on_after_the_primary_was_killed_and_replicated_tasks_run() {
    for _ in 0..scaled(1, 5) {
        let group = SentinelGroup::start().await;
        let redis = connect(&group.url(0)).await;
        let load = Load::start(&redis, &["jobs".to_owned()], group.dir()).await;
        let old = group.primary().await;
        let replicated = raw::replicated(group.server(old), "jobs", 2).await;
        let at = now();
        group.server(old).signal(Signal::Kill);
        group.new_primary(old).await;
        let promoted = now();
        load.until_work_goes_on(promoted).await;
        let account = load.finish(&group, "Sentinel: primary killed", at).await;
        account.assert_lost_writes(replicated..promoted);
    }
}

// The Sentinels demote the old primary some seconds after they have named the new one. The old
// primary takes writes until then, and loses them. So a client must leave it earlier.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_by_the_sentinels_is_followed_before_the_old_primary_is_demoted() {
    for _ in 0..scaled(1, 5) {
        let group = SentinelGroup::start().await;
        let redis = connect(&group.url(0)).await;
        let load = Load::start(&redis, &["jobs".to_owned()], group.dir()).await;
        let old = group.primary().await;
        let replicated = raw::replicated(group.server(old), "jobs", 2).await;
        let at = now();
        group.fail_over().await;
        let named = now();
        group.demoted(old).await;
        println!(
            "demoted {:.2?} after the new primary was named",
            now() - named
        );
        load.until_work_goes_on(now()).await;
        let account = load.finish(&group, "Sentinel: SENTINEL FAILOVER", at).await;
        account.assert_lost_writes(replicated..named + LEFT);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_and_events_go_on_after_a_failover_and_after_the_primary_was_killed() {
    let group = SentinelGroup::start().await;
    let redis = connect(&group.url(0)).await;
    let calls = Calls::start(&redis, "calls").await;
    calls.work(group.server(group.primary().await)).await;
    let (old, new) = group.fail_over().await;
    calls.work(group.server(new)).await;
    // The old primary must be a replica before the new one is killed, or it cannot be promoted.
    group.demoted(old).await;
    raw::replicated(group.server(new), "calls", 2).await;
    group.server(new).signal(Signal::Kill);
    let third = group.new_primary(new).await;
    calls.work(group.server(third)).await;
}

// With `min-replicas-to-write`, a primary that has lost its replicas refuses writes. It still
// answers all other commands, and does not know the new primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_isolated_primary_that_clients_still_reach_is_left_and_nothing_is_lost() {
    let group = SentinelGroup::with(Setup {
        options: Options::new().args(["--min-replicas-to-write", "1"]),
        can_isolate: true,
        ..Setup::default()
    })
    .await;
    let redis = connect(&group.url(0)).await;
    let load = Load::start(&redis, &["jobs".to_owned()], group.dir()).await;
    // Sending pauses: a task that is confirmed just while the replicas are cut off could be lost,
    // and the ledger could not distinguish that from a defect.
    load.pause().await;
    let old = group.primary().await;
    raw::replicated(group.server(old), "jobs", 2).await;
    let at = now();
    group.isolate_primary();
    // Until the primary has seen that its replicas are gone, it confirms writes that it loses.
    let is_alone = async || {
        let info: String = group.server(old).query(&["INFO", "replication"]).await;
        info.contains("connected_slaves:0\r\n").then_some(())
    };
    raw::eventually(is_alone, FOUND).await;
    load.resume();
    group.new_primary(old).await;
    load.until_work_goes_on(now()).await;
    // The Sentinels may have failed over once more, a second or two after the first time.
    let new = group.primary().await;
    let role: Vec<redis::Value> = group.server(old).query(&["ROLE"]).await;
    assert_eq!(
        role[0],
        redis::Value::BulkString(b"master".to_vec()),
        "the old primary is isolated until now"
    );
    group.heal();
    group.demoted(old).await;
    load.until_work_goes_on(now()).await;
    assert_eq!(group.primary().await, new);
    let account = load.finish(&group, "Sentinel: primary isolated", at).await;
    assert_eq!(account.lost(), Default::default());
    assert_eq!(account.repeated(), Default::default());
}
