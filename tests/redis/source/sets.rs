//! Several streams on one consumer: one that fails does not stop the others, and the set changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use campanile::{Client, transport::Streams};

use super::{support::Options, *};

async fn handle_of(server: &RedisServer, streams: Streams) -> Redis {
    let redis = Redis::connect(&server.url()).await.expect("a handle");
    redis.streams(streams).group("g").lease(SECOND)
}

async fn add(server: &RedisServer, stream: &str, payload: &str) {
    let fields = [
        ("type", &b"task"[..]),
        ("name", b"n"),
        ("payload", payload.as_bytes()),
    ];
    raw::add(server, stream, &fields).await;
}

/// Takes the next delivery, which must be from this stream, and settles it.
async fn take(source: &mut RedisSource, stream: &str) {
    let delivery = next(source).await;
    let found = message(&delivery).parts().stream.clone();
    assert_eq!(found.as_deref(), Some(stream));
    settle(delivery, done()).await;
}

#[tokio::test]
async fn a_stream_that_cannot_be_read_does_not_stop_the_others() {
    let server = RedisServer::start().await;
    let redis = handle_of(&server, Streams::in_turn(["a", "b", "c"])).await;
    let mut source = open(&redis).await;
    for stream in ["a", "b", "c"] {
        add(&server, stream, "x").await;
        take(&mut source, stream).await;
    }
    // A deleted stream is created again. After a rename, a stream of the old name is created.
    server.command(&["DEL", "a"]).await;
    server.command(&["RENAME", "b", "elsewhere"]).await;
    for stream in ["c", "a", "b", "c"] {
        add(&server, stream, "y").await;
        take(&mut source, stream).await;
    }
    // A stream is replaced by a key of another type. The other streams go on, and it is read again
    // once it is a stream.
    server.command(&["DEL", "a"]).await;
    server.command(&["SET", "a", "no stream"]).await;
    let began = Instant::now();
    for n in 0..20 {
        let stream = ["b", "c"][n % 2];
        add(&server, stream, "z").await;
        take(&mut source, stream).await;
    }
    assert!(began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
    server.command(&["DEL", "a"]).await;
    add(&server, "a", "again").await;
    take(&mut source, "a").await;
    within(5 * SECOND, source.close())
        .await
        .expect("the source closes");
    for stream in ["a", "b", "c"] {
        let consumers: Vec<redis::Value> = server.query(&["XINFO", "CONSUMERS", stream, "g"]).await;
        assert!(consumers.is_empty(), "{stream}: {consumers:?}");
    }
}

#[tokio::test]
async fn a_read_of_many_streams_brings_no_more_than_there_is_room_for() {
    let server = RedisServer::start().await;
    let streams: Vec<_> = (0..40).map(|n| format!("s{n}")).collect();
    for stream in &streams {
        for n in 0..5 {
            add(&server, stream, &n.to_string()).await;
        }
    }
    let redis = handle_of(&server, Streams::in_turn(streams.clone())).await;
    let mut source = open(&redis).await;
    for max in [1, 3, 32, 7, 16] {
        let deliveries = within(5 * SECOND, source.next(max)).await.expect("some");
        assert!(deliveries.len() <= max, "{} of {max}", deliveries.len());
        let mut held = 0;
        for stream in &streams {
            held += raw::pending(&server, stream, "g").await;
        }
        assert!(held <= max, "{held} are pending, and {max} were asked for");
        for delivery in deliveries {
            settle(delivery, done()).await;
        }
    }
    within(5 * SECOND, source.close())
        .await
        .expect("the source closes");
}

#[tokio::test]
async fn a_stream_that_wakes_up_beside_busy_ones_is_read_within_a_few_reads() {
    let server = RedisServer::start().await;
    let streams: Vec<_> = (0..8).map(|n| format!("s{n}")).collect();
    let redis = handle_of(&server, Streams::in_turn(streams.clone())).await;
    let mut source = open(&redis).await;
    for stream in &streams[1..] {
        for _ in 0..200 {
            add(&server, stream, "busy").await;
        }
    }
    // The first stream has had no entries for so long that it does not count as active.
    let mut taken = 0;
    while taken < 200 {
        let deliveries = within(5 * SECOND, source.next(7)).await.expect("some");
        taken += deliveries.len();
        for delivery in deliveries {
            settle(delivery, done()).await;
        }
    }
    add(&server, "s0", "woken up").await;
    let mut reads = 0;
    loop {
        let deliveries = within(5 * SECOND, source.next(7)).await.expect("some");
        reads += 1;
        let is_woken = |it: &Delivery<_>| message(it).parts().stream.as_deref() == Some("s0");
        let woken = deliveries.iter().any(is_woken);
        for delivery in deliveries {
            settle(delivery, done()).await;
        }
        if woken {
            break;
        }
        assert!(reads < 20, "the stream is not read beside the busy ones");
    }
    within(5 * SECOND, source.close())
        .await
        .expect("the source closes");
}

#[tokio::test]
async fn what_a_dead_worker_held_on_any_stream_of_a_set_is_claimed() {
    let server = RedisServer::start().await;
    let streams: Vec<_> = (0..10).map(|n| format!("s{n}")).collect();
    let redis = handle_of(&server, Streams::in_turn(streams.clone())).await;
    let mut dead = open(&redis).await;
    for stream in &streams {
        add(&server, stream, "x").await;
    }
    let mut held = Vec::new();
    while held.len() < streams.len() {
        held.extend(within(5 * SECOND, dead.next(10)).await.expect("some"));
    }
    let mut source = open(&redis).await;
    nothing(&mut source, 2 * SECOND).await;
    drop((held, dead));
    let mut claimed = BTreeSet::new();
    while claimed.len() < streams.len() {
        let delivery = next(&mut source).await;
        assert_eq!(message(&delivery).parts().attempt.0, 2);
        let stream = message(&delivery).parts().stream.clone();
        claimed.insert(stream.expect("the stream of the message").to_string());
        settle(delivery, done()).await;
    }
    within(5 * SECOND, source.close())
        .await
        .expect("the source closes");
}

/// Takes and settles the next deliveries, a few at a time, and returns their streams.
async fn take_few(source: &mut RedisSource) -> Vec<String> {
    let deliveries = within(5 * SECOND, source.next(4)).await;
    let mut streams = Vec::new();
    for delivery in deliveries.expect("the source goes on") {
        let stream = message(&delivery).parts().stream.clone();
        streams.push(stream.expect("the stream of the message").to_string());
        settle(delivery, done()).await;
    }
    streams
}

#[tokio::test]
async fn streams_of_several_slots_have_strict_priority_on_a_cluster() {
    const EACH: usize = 40;
    let server = RedisServer::with(Options::new().cluster()).await;
    // The first and the last are in one slot.
    let names = ["{a}.1", "b", "c", "{a}.2"];
    for name in names {
        for _ in 0..EACH {
            add(&server, name, "x").await;
        }
    }
    let mut source = open(&handle_of(&server, Streams::strict(names)).await).await;
    let mut taken = Vec::new();
    while taken.len() < 2 * EACH + EACH / 2 {
        taken.extend(take_few(&mut source).await);
    }
    let expected = names.iter().flat_map(|name| [*name; EACH]);
    let differs = taken.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{taken:?}");
    // A message that is added to the first stream goes before the rest.
    add(&server, names[0], "urgent").await;
    let mut later = Vec::new();
    while !later.iter().any(|name| name == names[0]) {
        later.extend(take_few(&mut source).await);
    }
    assert!(later.len() < EACH / 2, "{later:?}");
    while taken.len() + later.len() < 4 * EACH + 1 {
        later.extend(take_few(&mut source).await);
    }
    within(5 * SECOND, source.close())
        .await
        .expect("the source closes");
}

#[tokio::test]
async fn streams_of_several_slots_share_by_their_weights_on_a_cluster() {
    let server = RedisServer::with(Options::new().cluster()).await;
    for name in ["a", "b"] {
        for _ in 0..400 {
            add(&server, name, "x").await;
        }
    }
    let weights = Streams::weighted([("a", 9), ("b", 1)]);
    let mut source = open(&handle_of(&server, weights).await).await;
    let mut taken = Vec::new();
    while taken.len() < 300 {
        taken.extend(take_few(&mut source).await);
    }
    let of_a = taken.iter().filter(|name| *name == "a").count() as f64;
    let share = of_a / taken.len() as f64;
    assert!((0.85..0.95).contains(&share), "{share}");
    // The other one has all of the room once the first has nothing.
    while taken.len() < 800 {
        taken.extend(take_few(&mut source).await);
    }
    within(5 * SECOND, source.close())
        .await
        .expect("the source closes");
}

#[tokio::test]
async fn a_stream_that_cannot_be_read_stops_no_stream_of_lower_priority_on_a_cluster() {
    let server = RedisServer::with(Options::new().cluster()).await;
    let redis = handle_of(&server, Streams::strict(["a", "b"])).await;
    let mut source = open(&redis).await;
    for stream in ["a", "b"] {
        add(&server, stream, "x").await;
        take(&mut source, stream).await;
    }
    server.command(&["DEL", "a"]).await;
    server.command(&["SET", "a", "no stream"]).await;
    let began = Instant::now();
    for _ in 0..20 {
        add(&server, "b", "y").await;
        take(&mut source, "b").await;
    }
    assert!(began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
    server.command(&["DEL", "a"]).await;
    add(&server, "a", "z").await;
    take(&mut source, "a").await;
    within(5 * SECOND, source.close())
        .await
        .expect("the source closes");
}

#[tokio::test]
async fn streams_of_several_slots_are_served_in_turn_on_a_cluster() {
    const EACH: usize = 40;
    let server = RedisServer::with(Options::new().cluster()).await;
    let names: Vec<String> = (0..16).map(|n| format!("orders:{n}")).collect();
    let redis = handle_of(&server, Streams::in_turn(names.iter().map(String::as_str))).await;
    let mut source = open(&redis).await;
    // One stream has a long backlog, and must not hold up the others.
    for _ in 0..10 * EACH {
        add(&server, &names[0], "x").await;
    }
    for name in &names[1..] {
        for _ in 0..EACH {
            add(&server, name, "x").await;
        }
    }
    let mut counts = BTreeMap::<String, usize>::new();
    let mut before_the_last = 0;
    while counts.values().sum::<usize>() < 25 * EACH {
        let deliveries = within(5 * SECOND, source.next(10))
            .await
            .expect("the source goes on");
        assert!(deliveries.len() <= 10);
        for delivery in deliveries {
            let stream = message(&delivery).parts().stream.clone();
            *counts
                .entry(stream.expect("the stream of the message").to_string())
                .or_default() += 1;
            settle(delivery, done()).await;
        }
        if names[1..]
            .iter()
            .any(|name| counts.get(name) != Some(&EACH))
        {
            before_the_last = counts.get(&names[0]).copied().unwrap_or_default();
        }
    }
    assert!(
        before_the_last < 10 * EACH,
        "the other streams waited for the long backlog"
    );
    // A stream that was idle is read again.
    add(&server, &names[7], "x").await;
    take(&mut source, &names[7]).await;
    within(10 * SECOND, source.close())
        .await
        .expect("the source closes");
    for name in &names {
        assert_eq!(raw::pending(&server, name, "g").await, 0, "{name}");
    }
}

#[tokio::test]
async fn a_read_that_waits_for_entries_of_one_slot_keeps_no_demand_from_the_others() {
    let server = RedisServer::with(Options::new().cluster()).await;
    let names: Vec<String> = (0..8).map(|n| format!("orders:{n}")).collect();
    let redis = handle_of(&server, Streams::in_turn(names.iter().map(String::as_str))).await;
    // Such a read waits for up to two seconds.
    let mut source = open(&redis.lease(10 * SECOND)).await;
    for name in &names {
        add(&server, name, "x").await;
        take(&mut source, name).await;
    }
    let began = Instant::now();
    for name in &names {
        add(&server, name, "y").await;
        take(&mut source, name).await;
    }
    assert!(began.elapsed() < 4 * SECOND, "{:?}", began.elapsed());
    within(5 * SECOND, source.close())
        .await
        .expect("the source closes");
}

#[tokio::test]
async fn a_set_of_too_many_slots_or_a_registry_is_refused_on_a_cluster() {
    let server = RedisServer::with(Options::new().cluster()).await;
    let names: Vec<String> = (0..1025).map(|n| format!("orders:{n}")).collect();
    for (streams, said) in [
        (Streams::in_turn(names), "at most 1024"),
        (Streams::registered("tenants"), "list the streams"),
    ] {
        let redis = handle_of(&server, streams).await;
        let opened = within(5 * SECOND, redis.open(Interest::stream())).await;
        let error = opened.expect_err("it cannot be served");
        assert!(error.is_config(), "{error:?}");
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[tokio::test]
async fn a_registered_stream_that_is_not_used_any_more_is_retired_once_nothing_is_left_on_it() {
    const REGISTRY: &str = "campanile:registry:tenants";
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url()).await.expect("a handle");
    let client = Client::new(redis.registry("tenants"));
    let later = client.enqueue("n", "x").stream("later");
    later.delay(60 * SECOND).await.expect("the message is sent");
    client
        .enqueue("n", "x")
        .stream("now")
        .await
        .expect("the message is sent");
    client
        .enqueue("n", "x")
        .stream("used")
        .await
        .expect("the message is sent");
    // A message of the group is parked on this stream.
    server
        .command(&["ZADD", "{parked}:parking:g", "+inf", "limit:key"])
        .await;
    server
        .command(&["XGROUP", "CREATE", "parked", "g", "0", "MKSTREAM"])
        .await;
    let (time, _): (u64, u64) = server.query(&["TIME"]).await;
    let long_ago = ((time - 100) * 1000).to_string();
    for stream in ["later", "now", "parked"] {
        server.command(&["ZADD", REGISTRY, &long_ago, stream]).await;
    }
    let mut source = open(&handle_of(&server, Streams::registered("tenants")).await).await;
    let mut found = BTreeSet::new();
    for _ in 0..2 {
        let delivery = next(&mut source).await;
        let stream = message(&delivery).parts().stream.clone();
        found.insert(stream.expect("the stream of the message").to_string());
        settle(delivery, done()).await;
    }
    assert_eq!(found, ["now", "used"].map(str::to_owned).into());
    // The unused stream is retired while the worker waits for a delivery.
    let retired = || async {
        let left: Vec<String> = server.query(&["ZRANGE", REGISTRY, "0", "-1"]).await;
        (!left.contains(&"now".to_owned())).then_some(left)
    };
    let mut asking = Box::pin(source.next(1));
    let left = tokio::select! {
        left = raw::eventually(retired, 30 * SECOND) => left,
        delivery = &mut asking => panic!("an unexpected delivery: {delivery:?}"),
    };
    assert_eq!(
        left,
        ["later", "parked", "used"],
        "streams with a delayed or a parked task stay"
    );
    // Another sender registers the stream again with its first task.
    let other = Redis::connect(&server.url()).await.expect("a handle");
    let client = Client::new(other.registry("tenants"));
    client
        .enqueue("n", "y")
        .stream("now")
        .await
        .expect("the message is sent");
    let delivery = within(10 * SECOND, &mut asking).await.expect("a delivery");
    let delivery = delivery.into_iter().next().expect("one");
    assert_eq!(message(&delivery).parts().stream.as_deref(), Some("now"));
    settle(delivery, done()).await;
    drop(asking);
    within(5 * SECOND, source.close())
        .await
        .expect("the source closes");
}
