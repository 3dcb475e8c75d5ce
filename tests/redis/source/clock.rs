//! A server whose wall clock steps. Redis measures the idle times of deliveries on this clock.

use std::time::Instant;

use campanile::Attempt;
use support::Options;

use super::*;

const LEASE: Duration = Duration::from_secs(2);

async fn server() -> RedisServer {
    RedisServer::with(Options::new().own_clock()).await
}

async fn now(server: &RedisServer) -> i64 {
    let (seconds, _): (i64, i64) = server.query(&["TIME"]).await;
    seconds
}

#[tokio::test]
async fn the_clock_of_a_test_server_steps_both_ways() {
    let server = server().await;
    let before = now(&server).await;
    for step in [3600, -3600] {
        server.step_clock(step);
        // Valkey reads its clock only ten times a second.
        let stepped = async || {
            let off = now(&server).await - before - step;
            (0..10).contains(&off).then_some(())
        };
        raw::eventually(stepped, 10 * SECOND).await;
    }
}

/// Two workers hold deliveries for several leases while the clock steps, and lose none.
async fn holds_through(steps: &[i64]) {
    let server = server().await;
    let redis = handle(&server).await.lease(LEASE);
    let (mut first, mut second) = (open(&redis).await, open(&redis).await);
    for _ in 0..4 {
        task(&server, "x").await;
    }
    let mut held = Vec::new();
    for source in [&mut first, &mut second] {
        held.push(next(source).await);
        let again = next(source).await;
        settle(again, redeliver(Some(Duration::ZERO), true)).await;
        held.push(next(source).await);
    }
    // A worker claims only after it was healthy for longer than a lease.
    nothing(&mut first, LEASE * 2).await;
    for step in steps {
        server.step_clock(*step);
        nothing(&mut first, LEASE).await;
        nothing(&mut second, LEASE / 2).await;
    }
    acknowledge_kept(&redis, held).await;
    assert_eq!(pending(&server).await, (0, 0));
}

#[tokio::test]
async fn a_clock_that_steps_forward_by_less_than_a_lease_takes_nothing_from_the_living() {
    holds_through(&[1, 2, 4]).await;
}

#[tokio::test]
async fn a_clock_that_steps_forward_by_minutes_takes_nothing_from_the_living() {
    holds_through(&[60, 4000]).await;
}

#[tokio::test]
async fn a_clock_that_steps_back_and_forth_takes_nothing_from_the_living() {
    holds_through(&[-3600, 0, -60]).await;
}

#[tokio::test]
async fn a_clock_that_steps_back_by_an_hour_delays_no_claim_by_more_than_about_a_lease() {
    let server = server().await;
    let redis = handle(&server).await.lease(LEASE);
    let mut dies = open(&redis).await;
    task(&server, "plain").await;
    task(&server, "again").await;
    let plain = next(&mut dies).await;
    settle(next(&mut dies).await, redeliver(Some(Duration::ZERO), true)).await;
    let again = next(&mut dies).await;
    let mut lives = open(&redis).await;
    nothing(&mut lives, LEASE * 2).await;
    // The throttle of the scan expires at a time of the old clock. After the step back, that is an
    // hour away.
    server
        .command(&["SET", "{s}:gate:scan:g", "x", "PX", "150"])
        .await;
    server.step_clock(-3600);
    drop(dies);
    let died = Instant::now();
    for _ in 0..2 {
        let delivery = next(&mut lives).await;
        assert!(message(&delivery).parts().attempt >= Attempt(2));
        settle(delivery, done()).await;
    }
    let took = died.elapsed();
    // The dead worker is silent for one lease, and the claiming worker must be healthy for one. The
    // rest is slack for a loaded machine.
    assert!(took < LEASE * 5, "{took:?}");
    drop((plain, again));
    // Finished entries are trimmed too, except for those in the last node of the stream.
    for _ in 0..200 {
        task(&server, "x").await;
        settle(next(&mut lives).await, done()).await;
    }
    let trimmed = || async { (raw::len(&server, "s").await < 150).then_some(()) };
    raw::eventually(trimmed, 10 * SECOND).await;
}

#[tokio::test]
async fn a_throttle_that_would_outlast_its_period_is_ignored() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.lease(SECOND);
    let mut dies = open(&redis).await;
    task(&server, "x").await;
    let left = next(&mut dies).await;
    let mut lives = open(&redis).await;
    for gate in ["scan", "trim", "reap"] {
        let gate = format!("{{s}}:gate:{gate}:g");
        let far = ["SET", &gate, "x", "PX", "3600000"];
        server.command(&far).await;
    }
    drop(dies);
    let delivery = within(4 * SECOND, next(&mut lives)).await;
    settle(delivery, done()).await;
    drop(left);
}

#[tokio::test]
async fn a_claim_respects_the_lease_of_the_holder() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut slow = open(&redis.clone().lease(15 * SECOND)).await;
    task(&server, "x").await;
    let held = next(&mut slow).await;
    let mut hasty = open(&redis.clone().lease(SECOND)).await;
    // The wait is longer than the lease of `hasty`, and ends before `slow` renews for the first
    // time.
    nothing(&mut hasty, 4 * SECOND).await;
    assert!(!message(&held).parts().lease.as_ref().unwrap().is_lost());
    settle(held, done()).await;
    assert_eq!(redis.counts().claimed, 0);
}
