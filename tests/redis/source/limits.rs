//! Shared limits on a server.

use campanile::transport::{Limit, Permit};

use super::*;

async fn handle_with_lease(server: &RedisServer, lease: Duration) -> Redis {
    let redis = Redis::connect(&server.url()).await.expect("a handle");
    redis.stream("s").group("g").lease(lease)
}

async fn acquire(
    limit: &Limit,
    delivery: &Delivery<RedisSettler>,
    permits: usize,
) -> Option<Permit> {
    let parts = message(delivery).parts();
    let answer = limit.acquire(parts, "key", permits).await;
    answer.expect("the server answers").ok()
}

#[tokio::test]
async fn a_permit_lasts_for_the_lease_of_its_own_worker() {
    let server = RedisServer::start().await;
    let long = handle_with_lease(&server, 60 * SECOND).await;
    let short = handle_with_lease(&server, SECOND).await;
    let (long, short) = (long.limit("l"), short.limit("l"));
    let (long, short) = (long.expect("a limit"), short.expect("a limit"));
    let mut source = open(&handle(&server).await).await;
    for _ in 0..3 {
        task(&server, "1").await;
    }
    let mut deliveries = Vec::new();
    for _ in 0..3 {
        deliveries.push(next(&mut source).await);
    }
    let _held = acquire(&long, &deliveries[0], 2).await.expect("it is free");
    drop(
        acquire(&short, &deliveries[1], 2)
            .await
            .expect("it is free"),
    );
    tokio::time::sleep(SECOND + SECOND / 2).await;
    assert!(acquire(&short, &deliveries[2], 1).await.is_none());
    for delivery in deliveries {
        settle(delivery, done()).await;
    }
    source.close().await.expect("the source closes");
}

#[tokio::test]
async fn expired_messages_hold_up_no_parked_ones() {
    let server = RedisServer::start().await;
    let redis = handle_with_lease(&server, 300 * SECOND).await;
    let limit = redis.limit("l").expect("a limit");
    let client = campanile::Client::new(redis.clone());
    let mut source = open(&redis).await;
    client.enqueue("n", "first").await.expect("it is sent");
    let first = next(&mut source).await;
    let permit = acquire(&limit, &first, 1).await.expect("it is free");
    for _ in 0..20 {
        let call = client.enqueue("n", "expires").expires_after(SECOND);
        call.await.expect("it is sent");
    }
    client.enqueue("n", "last").await.expect("it is sent");
    for _ in 0..21 {
        let delivery = next(&mut source).await;
        let parts = message(&delivery).parts();
        let answer = limit.acquire(parts, "key", 1).await;
        let request = answer
            .expect("the server answers")
            .expect_err("it is taken");
        settle(delivery, Verdict::Park(request)).await;
    }
    tokio::time::sleep(SECOND).await;
    drop(permit);
    settle(first, done()).await;
    loop {
        let delivery = next(&mut source).await;
        if message(&delivery).payload() == "last" {
            settle(delivery, done()).await;
            break;
        }
        let discard = Verdict::Discard {
            reason: campanile::transport::Discarded::Expired,
            answer: None,
        };
        settle(delivery, discard).await;
    }
    source.close().await.expect("the source closes");
}
