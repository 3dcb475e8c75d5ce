//! Requests whose worker or connections are lost, and requests whose callers no longer wait.

use std::time::Instant;

use campanile::{Client, Json, Redis, Reply, ReplyMode};
use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use crate::{
    CLAIM, RECONNECT, SECOND,
    ledger::{What, now},
    scaled,
    scene::Scene,
    support::{Options, Signal, raw},
    worker::Job,
};

/// A user for the sender, so that its connections can be distinguished from the workers'.
fn with_a_sender() -> Options {
    Options::new().acl("user sender on >pw ~* &* +@all")
}

async fn sender(scene: &Scene) -> Redis {
    let url = scene.server.url().replace("redis://", "redis://sender:pw@");
    let redis = Redis::connect(&url).await;
    redis.expect("the server is there").stream("jobs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_worker_is_killed_is_answered_by_another_and_once() {
    let scene = Scene::new().await;
    let mut workers = scene.workers(2).await;
    let client = scene.client();
    let requests = (0..20).map(|n| {
        let (client, ledger) = (client.clone(), scene.ledger.clone());
        async move {
            ledger.write(What::Sent, n, 0);
            let reply = client.request("double", Json(Job { n, ms: 1_500 })).await;
            let Json(doubled): Json<u64> = reply.expect("an answer");
            assert_eq!(doubled, 2 * n);
        }
    });
    let kill = async {
        scene
            .until(20 * SECOND, |account| {
                account.jobs(What::Started).len() == 20
            })
            .await;
        let killed = workers.remove(0);
        killed.signal(Signal::Kill);
        (killed.pid(), now())
    };
    let (_, (killed, at)) = tokio::join!(join_all(requests), kill);
    let account = scene.all_done(30 * SECOND).await;
    let in_hand = account.in_hand(killed);
    assert!(!in_hand.is_empty());
    let recovered = account.claimed(&in_hand, killed, at);
    account.report("RPC: worker killed in mid-request", recovered, CLAIM);
    assert_eq!(account.repeated().len(), in_hand.len());
    assert_eq!(
        account.all(What::Finished).count(),
        20,
        "each request is answered once"
    );
    assert_eq!(scene.redis.counts().stray_replies, 0);
}

/// Kills the connections of a client with many requests in flight. Returns the number of replies,
/// and the times after which the other requests failed.
async fn loses_its_connections(mode: ReplyMode, fault: &str) -> (usize, Vec<std::time::Duration>) {
    const REQUESTS: u64 = 1_000;
    let mut scene = Scene::with(with_a_sender()).await;
    scene.setup.max_in_flight = REQUESTS as usize;
    let workers = scene.workers(1).await;
    let redis = sender(&scene).await;
    let client = Client::new(redis.clone());
    let requests = (0..REQUESTS).map(|n| {
        let client = client.clone();
        let job = Json(Job { n, ms: 3_000 });
        let ledger = scene.ledger.clone();
        async move {
            ledger.write(What::Sent, n, 0);
            let reply: Result<Json<u64>, _> = match mode {
                ReplyMode::Reliable => client.request("double", job).await,
                _ => client.request_fast("double", job).await,
            };
            let ended = Instant::now();
            if let Ok(Json(doubled)) = &reply {
                assert_eq!(*doubled, 2 * n);
            }
            (reply.is_ok(), ended)
        }
    });
    let kill = async {
        scene
            .until(20 * SECOND, |account| {
                account.jobs(What::Started).len() == 1_000
            })
            .await;
        let killed: u64 = scene
            .server
            .query(&["CLIENT", "KILL", "USER", "sender"])
            .await;
        assert!(killed >= 2, "{killed} connections");
        Instant::now()
    };
    let (ended, killed) = tokio::join!(join_all(requests), kill);
    let account = scene.all_done(30 * SECOND).await;
    let first = ended.iter().map(|(_, ended)| *ended).min();
    account.report(fault, first.expect("a thousand") - killed, RECONNECT);
    assert!(account.repeated().is_empty(), "no request ran twice");
    drop(workers);
    let answered = ended.iter().filter(|(answered, _)| *answered).count();
    let failed = ended.into_iter().filter(|(answered, _)| !answered);
    let failed = failed.map(|(_, ended)| ended.saturating_duration_since(killed));
    (answered, failed.collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reliable_requests_are_answered_although_their_clients_connections_are_killed() {
    let fault = "RPC, reliable: 1,000 under way, connections killed";
    let (answered, _) = loses_its_connections(ReplyMode::Reliable, fault).await;
    assert_eq!(answered, 1_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fast_requests_fail_at_once_when_their_clients_connections_are_killed() {
    let fault = "RPC, fast: 1,000 under way, connections killed";
    let (answered, failed) = loses_its_connections(ReplyMode::Fast, fault).await;
    assert_eq!(answered, 0, "replies to lost connections cannot arrive");
    assert!(failed.iter().all(|took| *took < 2 * SECOND), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_requests_leave_nothing_behind() {
    let scene = Scene::with(with_a_sender()).await;
    let redis = sender(&scene).await;
    let client = Client::new(redis.clone());
    let requests = scaled(20_000, 100_000);
    for _ in 0..requests / 1_000 {
        let abandoned = (0..1_000).map(|n| {
            let job = Json(Job { n, ms: 0 });
            let call = client.request::<Reply>("double", job).timeout(SECOND);
            timeout(SECOND / 10, call.into_future())
        });
        // On a loaded machine a call may end by its own time limit first.
        let ended = join_all(abandoned).await.into_iter();
        let answered = ended.filter(|ended| matches!(ended, Ok(Ok(_))));
        assert_eq!(answered.count(), 0, "there is no worker");
    }
    sleep(SECOND).await;
    let waiting = raw::len(&scene.server, "jobs").await;
    assert!(waiting > 0, "some requests were sent");
    let at = now();
    let workers = scene.workers(1).await;
    let drained = || async {
        raw::drained(&scene.server, "jobs", "workers")
            .await
            .then_some(())
    };
    raw::eventually(drained, 60 * SECOND).await;
    let account = scene.ledger.read();
    account.report(
        &format!("RPC: {requests} abandoned requests"),
        now() - at,
        scaled(30, 60) * SECOND,
    );
    assert_eq!(
        account.all(What::Started).count(),
        0,
        "expired requests are not started"
    );
    let trimmed = || async { (raw::len(&scene.server, "jobs").await <= 200).then_some(()) };
    raw::eventually(trimmed, 20 * SECOND).await;

    drop((client, redis));
    let nothing = || async {
        let keys: Vec<String> = scene.server.query(&["KEYS", "*:rpc:*"]).await;
        let channels: Vec<String> = scene.server.query(&["PUBSUB", "CHANNELS"]).await;
        let clients: String = scene.server.query(&["CLIENT", "LIST"]).await;
        let connected = clients.contains("user=sender");
        (keys.is_empty() && channels.is_empty() && !connected).then_some(())
    };
    raw::eventually(nothing, 20 * SECOND).await;
    drop(workers);
}
