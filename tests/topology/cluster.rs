//! A cluster under load that loses a primary, fails over, or moves slots.

use crate::{
    SECOND,
    calls::Calls,
    connect,
    load::{Load, Servers},
    scaled,
    support::{Signal, cluster::Cluster, ledger::now, raw},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_goes_on_after_a_primary_was_killed_and_replicated_tasks_run() {
    for _ in 0..scaled(1, 5) {
        let cluster = Cluster::start().await;
        let streams = cluster.a_name_on_each("jobs").await;
        let redis = connect(&cluster.url()).await;
        let load = Load::start(&redis, &streams, cluster.dir()).await;
        let old = cluster.owner(&streams[0]).await;
        let replicated = raw::replicated(cluster.node(old), &streams[0], 1).await;
        let at = now();
        cluster.node(old).signal(Signal::Kill);
        cluster.new_owner(&streams[0], old).await;
        let promoted = now();
        load.until_work_goes_on(promoted).await;
        let account = load.finish(&cluster, "cluster: primary killed", at).await;
        account.assert_lost_writes(replicated..promoted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_failover_loses_no_task_and_runs_none_twice() {
    let cluster = Cluster::start().await;
    let streams = cluster.a_name_on_each("jobs").await;
    let redis = connect(&cluster.url()).await;
    let load = Load::start(&redis, &streams, cluster.dir()).await;
    let at = now();
    for round in 0..scaled(1, 6) {
        cluster.fail_over(&streams[round % 3]).await;
        load.until_work_goes_on(now()).await;
    }
    let account = load.finish(&cluster, "cluster: CLUSTER FAILOVER", at).await;
    assert_eq!(account.lost(), Default::default());
    assert_eq!(account.repeated(), Default::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_and_events_go_on_after_a_cluster_failover_and_after_a_primary_was_killed() {
    let cluster = Cluster::start().await;
    let redis = connect(&cluster.url()).await;
    // The stream is on the first node of the URL. The handle may have its subscriptions there, too.
    let [stream, ..] = cluster.a_name_on_each("calls").await;
    let calls = Calls::start(&redis, &stream).await;
    calls.work(cluster.primary_of(&stream).await).await;
    let (_, new) = cluster.fail_over(&stream).await;
    calls.work(cluster.node(new)).await;
    assert_eq!(cluster.replica_of(new).await, 0);
    cluster.node(new).signal(Signal::Kill);
    cluster.new_owner(&stream, new).await;
    calls.work(cluster.primary_of(&stream).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_move_while_messages_flow_lose_nothing_and_repeat_nothing() {
    let cluster = Cluster::of_primaries().await;
    let streams = cluster.a_name_on_each("jobs").await;
    let redis = connect(&cluster.url()).await;
    let load = Load::start(&redis, &streams, cluster.dir()).await;
    let at = now();
    for round in 1..=scaled(1, 6) {
        // The slots move one after the other, as with `redis-cli`. Nodes that get slots at the same
        // time choose their epochs without a vote, and may disagree about the owners afterwards.
        for (home, stream) in streams.iter().enumerate() {
            let slot = cluster.slot(stream).await;
            cluster
                .move_slot(slot, (home + round) % 3, SECOND / 4)
                .await;
        }
        load.until_work_goes_on(now()).await;
    }
    let account = load.finish(&cluster, "cluster: slots migrated", at).await;
    assert_eq!(account.lost(), Default::default());
    assert_eq!(account.repeated(), Default::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_move_at_once_while_messages_flow_lose_nothing_and_repeat_nothing() {
    let cluster = Cluster::of_primaries().await;
    if !cluster.moves_slots_at_once().await {
        return;
    }
    let streams = cluster.a_name_on_each("jobs").await;
    for (home, stream) in streams.iter().enumerate() {
        // Tasks also flow while this is copied.
        let filling = [
            "SETRANGE",
            &format!("{{{stream}}}:filling"),
            "67108864",
            "x",
        ];
        cluster.node(home).command(&filling).await;
    }
    let redis = connect(&cluster.url()).await;
    let load = Load::start(&redis, &streams, cluster.dir()).await;
    let at = now();
    for round in 1..=scaled(2, 12) {
        for (home, stream) in streams.iter().enumerate() {
            let slot = cluster.slot(stream).await;
            cluster.move_slot_at_once(slot, (home + round) % 3).await;
        }
        load.until_work_goes_on(now()).await;
    }
    let account = load.finish(&cluster, "cluster: slots at once", at).await;
    assert_eq!(account.lost(), Default::default());
    assert_eq!(account.repeated(), Default::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_added_gets_slots_and_nothing_is_lost_or_repeated() {
    let mut cluster = Cluster::of_primaries().await;
    let streams = cluster.a_name_on_each("jobs").await;
    let redis = connect(&cluster.url()).await;
    let load = Load::start(&redis, &streams, cluster.dir()).await;
    let at = now();
    let added = cluster.add_node().await;
    for stream in &streams[..scaled(2, 3)] {
        let slot = cluster.slot(stream).await;
        cluster.move_slot(slot, added, SECOND / 20).await;
        assert_eq!(cluster.owner(stream).await, added);
        load.until_work_goes_on(now()).await;
    }
    let account = load.finish(&cluster, "cluster: node added", at).await;
    assert_eq!(account.lost(), Default::default());
    assert_eq!(account.repeated(), Default::default());
}
