//! Tests of the clusters and Sentinels that the other tests use, with bare redis-rs, and of the
//! load on a server that does not fail.

use crate::{
    SECOND,
    calls::Calls,
    connect,
    load::Load,
    support::{
        Options, RedisServer, Signal,
        cluster::Cluster,
        ledger::now,
        raw,
        sentinel::{SentinelGroup, Setup},
    },
};

const STARS: &str = "user default off\nuser worker on >pw ~* &* +@all";

fn with_login() -> Options {
    Options::new().acl(STARS).login("worker", "pw")
}

async fn set(server: &RedisServer, key: &str) -> redis::RedisResult<redis::Value> {
    server.try_command(&["SET", key, "value"]).await
}

#[tokio::test]
async fn a_cluster_has_a_stream_on_each_primary_and_a_replica_of_each() {
    let cluster = Cluster::start().await;
    assert_eq!(cluster.len(), 6);
    let names = cluster.a_name_on_each("jobs").await;
    for (owner, name) in names.iter().enumerate() {
        assert_eq!(cluster.owner(name).await, owner);
        raw::add(cluster.node(owner), name, &[("a", "b")]).await;
        raw::replicated(cluster.node(owner), name, 1).await;
        let replica = cluster.replica_of(owner).await;
        assert!((3..6).contains(&replica), "{replica}");
        let elsewhere = cluster.node((owner + 1) % 3);
        let refusal = set(elsewhere, name).await.unwrap_err();
        assert_eq!(refusal.code(), Some("MOVED"));
    }
}

#[tokio::test]
async fn a_cluster_fails_over_by_command_and_by_the_death_of_a_primary() {
    let cluster = Cluster::with(with_login(), 1).await;
    let key = "a";
    let (old, new) = cluster.fail_over(key).await;
    set(cluster.node(new), key).await.unwrap();
    let refusal = set(cluster.node(old), key).await.unwrap_err();
    assert_eq!(refusal.code(), Some("MOVED"));

    assert_eq!(cluster.replica_of(new).await, old);
    raw::replicated(cluster.node(new), key, 1).await;
    cluster.node(new).signal(Signal::Kill);
    assert_eq!(cluster.new_owner(key, new).await, old);
    let value: String = cluster.node(old).query(&["GET", key]).await;
    assert_eq!(value, "value");
}

#[tokio::test]
async fn a_slot_with_keys_moves_to_another_node_and_to_an_added_one() {
    let mut cluster = Cluster::with(with_login(), 0).await;
    let keys = ["{tag}:1", "{tag}:2"];
    let slot = cluster.slot("tag").await;
    let from = cluster.owner("tag").await;
    for key in keys {
        set(cluster.node(from), key).await.unwrap();
    }
    let to = (from + 1) % 3;
    let half = async {
        let asks = async || {
            let refusal = set(cluster.node(from), "{tag}:3").await.err()?;
            (refusal.code() == Some("ASK")).then_some(())
        };
        raw::eventually(asks, 10 * SECOND).await;
    };
    tokio::join!(cluster.move_slot(slot, to, SECOND / 4), half);
    let added = cluster.add_node().await;
    cluster.move_slot(slot, added, SECOND / 100).await;
    assert_eq!(cluster.owner("tag").await, added);
    let found: usize = cluster
        .node(added)
        .query(&["EXISTS", keys[0], keys[1]])
        .await;
    assert_eq!(found, 2);
    let refusal = set(cluster.node(from), keys[0]).await.unwrap_err();
    assert_eq!(refusal.code(), Some("MOVED"));
}

#[tokio::test]
async fn sentinels_promote_a_replica_when_the_primary_is_killed() {
    let group = SentinelGroup::with(Setup {
        options: with_login(),
        sentinel_login: true,
        ..Setup::default()
    })
    .await;
    let old = group.primary().await;
    assert_eq!(old, 0);
    set(group.server(old), "a").await.unwrap();
    raw::replicated(group.server(old), "a", 2).await;
    group.server(old).signal(Signal::Kill);
    let new = group.new_primary(old).await;
    let value: String = group.server(new).query(&["GET", "a"]).await;
    assert_eq!(value, "value");
}

#[tokio::test]
async fn sentinels_promote_a_replica_by_command_and_demote_the_old_primary() {
    let group = SentinelGroup::start().await;
    let (old, new) = group.fail_over().await;
    assert_ne!(old, new);
    group.demoted(old).await;
    let refusal = set(group.server(old), "a").await.unwrap_err();
    assert_eq!(refusal.code(), Some("READONLY"));
    set(group.server(new), "a").await.unwrap();
}

#[tokio::test]
async fn an_isolated_primary_takes_no_writes_while_sentinels_promote_a_replica() {
    let group = SentinelGroup::with(Setup {
        options: Options::new().args(["--min-replicas-to-write", "1"]),
        can_isolate: true,
        ..Setup::default()
    })
    .await;
    let old = group.primary().await;
    set(group.server(old), "a").await.unwrap();
    group.isolate_primary();
    let refused = async || {
        let refusal = set(group.server(old), "a").await.err()?;
        (refusal.code() == Some("NOREPLICAS")).then_some(())
    };
    raw::eventually(refused, SECOND).await;
    let new = group.new_primary(old).await;
    let role: Vec<redis::Value> = group.server(old).query(&["ROLE"]).await;
    assert_eq!(role[0], redis::Value::BulkString(b"master".to_vec()));
    let takes = async || set(group.server(new), "a").await.is_ok().then_some(());
    raw::eventually(takes, 10 * SECOND).await;
    group.heal();
    group.demoted(old).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_load_loses_nothing_and_all_calls_work_on_a_server_that_does_not_fail() {
    let server = RedisServer::start().await;
    let redis = connect(&server.url()).await;
    let streams = ["a".to_owned(), "b".to_owned()];
    let load = Load::start(&redis, &streams, server.dir()).await;
    Calls::start(&redis, "calls").await.work(&server).await;
    load.pause().await;
    let paused = now();
    tokio::time::sleep(SECOND).await;
    load.resume();
    load.until_work_goes_on(now()).await;
    let account = load.finish(&server, "none", paused).await;
    assert_eq!(account.lost(), Default::default());
    assert_eq!(account.repeated(), Default::default());
    let pause = account.longest_pause(|job| job < 1_000_000, paused, now());
    assert!(
        pause >= SECOND,
        "the ledger does not show the pause: {pause:?}"
    );
}
