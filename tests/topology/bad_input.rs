//! URLs of another topology than the server's. Each is refused at once, and the error says what to
//! do.

use std::time::Instant;

use campanile::Redis;

use crate::{
    SECOND,
    support::{RedisServer, cluster::Cluster, sentinel::SentinelGroup},
};

/// Asserts that both ways to connect fail at once, and that both errors contain these texts.
async fn is_refused(url: &str, says: &[&str]) {
    let started = Instant::now();
    let refused = tokio::join!(Redis::connect(url), Redis::connect_when_ready(url));
    assert!(started.elapsed() < 5 * SECOND, "{:?}", started.elapsed());
    for result in [refused.0, refused.1] {
        let error = result.expect_err(url);
        assert!(error.is_config(), "{url}: {error:?}");
        for text in says {
            assert!(
                error.to_string().contains(text),
                "{text:?} is not in {error}"
            );
        }
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

#[tokio::test]
async fn the_url_of_a_server_to_a_node_of_a_cluster_is_refused_with_the_one_of_a_cluster() {
    let cluster = Cluster::of_primaries().await;
    let node = cluster.node(1);
    is_refused(&node.url(), &["redis+cluster://", &node.port().to_string()]).await;
}

#[tokio::test]
async fn the_url_of_a_cluster_to_a_server_is_refused_with_the_one_of_a_server() {
    let server = RedisServer::start().await;
    let url = format!("redis+cluster://127.0.0.1:{}", server.port());
    is_refused(&url, &["redis://", &server.port().to_string()]).await;
}

#[tokio::test]
async fn the_url_of_sentinels_to_a_server_is_refused() {
    let server = RedisServer::start().await;
    let url = format!("redis+sentinel://127.0.0.1:{}/mymaster/0", server.port());
    is_refused(
        &url,
        &["no Sentinel", "redis://", &server.port().to_string()],
    )
    .await;
}

#[tokio::test]
async fn a_name_that_the_sentinels_do_not_know_is_named() {
    let group = SentinelGroup::start().await;
    is_refused(&group.url_of("hismaster", 0), &["`hismaster`", "Sentinel"]).await;
}

// The URL alone shows the mistake, so the test needs no server.
#[tokio::test]
async fn a_database_of_a_cluster_is_refused() {
    for url in [
        "redis+cluster://user:hunter2@127.0.0.1:1,127.0.0.1:2/1",
        "redis+cluster://user:hunter2@127.0.0.1:1?db=1",
    ] {
        is_refused(url, &["database", "Redis Cluster"]).await;
    }
}
