//! Connections to a cluster: seeds that are down, logins, TLS.

use std::time::Instant;

use campanile::{Client, Redis};

use crate::{
    FOUND, SECOND, connect,
    load::Servers,
    support::{Options, Signal, cluster::Cluster, raw},
};

#[tokio::test]
async fn a_cluster_is_found_although_its_first_seeds_are_down() {
    let cluster = Cluster::start().await;
    let [stream, ..] = cluster.a_name_on_each("jobs").await;
    // One replica is down and another does not answer. The primaries still serve all slots.
    let down = [3, 4];
    cluster.node(down[0]).signal(Signal::Kill);
    cluster.node(down[1]).signal(Signal::Stop);
    let seeds = [down[0], down[1], 2].map(|node| cluster.node(node).port());
    let started = Instant::now();
    let redis = connect(&cluster.url_of(&seeds))
        .await
        .stream(stream.as_str());
    Client::new(redis).enqueue("a", "").await.unwrap();
    assert!(started.elapsed() < 10 * SECOND, "{:?}", started.elapsed());
    cluster.node(down[1]).signal(Signal::Cont);
    assert_eq!(
        raw::len(cluster.primary_of(&stream).await, &stream).await,
        1
    );
}

#[tokio::test]
async fn a_handle_waits_for_a_cluster_that_is_not_there_yet() {
    let cluster = Cluster::with(Options::new().persistent(), 0).await;
    for node in 0..3 {
        cluster.node(node).signal(Signal::Kill);
    }
    let url = cluster.url();
    let error = Redis::connect(&url).await.unwrap_err();
    assert!(error.is_disconnected(), "{error:?}");
    let connecting = tokio::spawn(async move { Redis::connect_when_ready(&url).await });
    tokio::time::sleep(SECOND).await;
    assert!(!connecting.is_finished());
    for node in 0..3 {
        cluster.node(node).restart().await;
    }
    let connected = tokio::time::timeout(2 * FOUND, connecting).await.unwrap();
    let redis = connected.unwrap().unwrap().stream("jobs");
    Client::new(redis).enqueue("a", "").await.unwrap();
}

#[tokio::test]
async fn the_login_of_the_url_is_used_on_every_node() {
    let acl = "user default off\nuser worker on >pw ~* &* +@all";
    let cluster = Cluster::with(Options::new().acl(acl).login("worker", "pw"), 0).await;
    let redis = connect(&cluster.url()).await;
    let client = Client::new(redis);
    for (node, stream) in cluster.a_name_on_each("jobs").await.iter().enumerate() {
        client
            .enqueue("a", "")
            .stream(stream.as_str())
            .await
            .unwrap();
        assert_eq!(raw::len(cluster.node(node), stream).await, 1);
    }
    let wrong = cluster.url().replace("worker:pw", "worker:hunter2");
    let error = Redis::connect(&wrong).await.unwrap_err();
    assert!(error.is_config(), "{error:?}");
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
}

#[cfg(feature = "redis-rustls")]
#[tokio::test]
async fn every_node_is_reached_over_tls() {
    let cluster = Cluster::with_tls().await;
    let connecting = Redis::builder(cluster.url()).ca_certificate(cluster.certificate());
    let redis = connecting.connect().await.unwrap();
    let client = Client::new(redis);
    for (node, stream) in cluster.a_name_on_each("jobs").await.iter().enumerate() {
        client
            .enqueue("a", "")
            .stream(stream.as_str())
            .await
            .unwrap();
        assert_eq!(raw::len(cluster.node(node), stream).await, 1);
    }
    let error = Redis::connect(&cluster.url()).await.unwrap_err();
    assert!(error.is_config(), "{error:?}");
    assert!(error.to_string().contains("ca_certificate"), "{error}");
}
