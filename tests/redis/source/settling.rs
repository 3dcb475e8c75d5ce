//! Settlements of deliveries.

use bytes::Bytes;
use campanile::{Attempt, Kind, transport::Discarded};
use futures_util::FutureExt;

use super::*;

#[tokio::test]
async fn a_task_arrives_as_it_was_sent_and_is_acknowledged_when_it_is_done() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let id = raw::add(
        &server,
        "s",
        &[
            ("h:x-a", &b"1"[..]),
            ("payload", b"\x00\xff"),
            ("unknown", b"x"),
            ("name", b"orders.create"),
            ("type", b"task"),
            ("~t", b"60000"),
        ],
    )
    .await;
    let mut source = open(&redis).await;
    let delivery = next(&mut source).await;
    let parts = message(&delivery).parts();
    assert_eq!(parts.kind, Kind::Task);
    assert_eq!(parts.name, "orders.create");
    assert_eq!(parts.headers["x-a"], "1");
    assert_eq!(message(&delivery).payload(), &b"\x00\xff"[..]);
    assert_eq!(parts.id.as_ref().unwrap(), &id.as_str());
    assert_eq!(parts.attempt, Attempt(1));
    let left = parts.deadline.expect("a time to live").remaining();
    assert!(left > 50 * SECOND && left <= 60 * SECOND, "{left:?}");
    let age = parts.accepted_at.unwrap().elapsed().unwrap_or_default();
    assert!(age < 20 * SECOND, "{age:?}");
    assert_eq!(pending(&server).await, (1, 0));
    settle(delivery, done()).await;
    assert_eq!(pending(&server).await, (0, 0));
    let counts = redis.counts();
    assert_eq!((counts.delivered, counts.done), (1, 1));
}

#[tokio::test]
async fn tasks_sent_before_the_first_worker_ran_arrive_in_order() {
    let server = RedisServer::start().await;
    for payload in ["a", "b", "c", "d"] {
        task(&server, payload).await;
    }
    let mut source = open(&handle(&server).await).await;
    let mut payloads = Vec::new();
    while payloads.len() < 4 {
        let deliveries = within(5 * SECOND, source.next(3)).await.unwrap();
        assert!(deliveries.len() <= 3);
        for delivery in deliveries {
            payloads.push(message(&delivery).payload().clone());
            settle(delivery, done()).await;
        }
    }
    assert_eq!(payloads, ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn many_verdicts_at_once_are_all_confirmed() {
    let server = RedisServer::start().await;
    for n in 0..500 {
        task(&server, n.to_string()).await;
    }
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    let mut settling = tokio::task::JoinSet::new();
    let mut seen = 0;
    // There are 500 first deliveries, and every third of them is delivered once more.
    while seen < 667 {
        for delivery in within(5 * SECOND, source.next(64)).await.unwrap() {
            seen += 1;
            let number: u32 = std::str::from_utf8(message(&delivery).payload())
                .unwrap()
                .parse()
                .unwrap();
            let first = message(&delivery).parts().attempt == Attempt(1);
            settling.spawn(settle(
                delivery,
                match first && number % 3 == 1 {
                    true => redeliver(Some(Duration::ZERO), true),
                    false => done(),
                },
            ));
        }
    }
    settling.join_all().await;
    assert_eq!(pending(&server).await, (0, 0));
    assert_eq!(raw::len(&server, "{s}:retry:g").await, 0);
    let counts = redis.counts();
    assert_eq!((counts.delivered, counts.done), (667, 500));
    assert_eq!(counts.lost_leases, 0);
}

#[tokio::test]
async fn a_failed_delivery_comes_again_at_once_with_the_same_id_and_a_higher_attempt() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    let id = task(&server, "x").await;
    for attempt in 1..=3 {
        let delivery = next(&mut source).await;
        let parts = message(&delivery).parts();
        assert_eq!(parts.id.as_ref().unwrap(), &id.as_str());
        assert_eq!(parts.attempt, Attempt(attempt));
        assert_eq!(message(&delivery).payload(), "x");
        settle(delivery, redeliver(Some(Duration::ZERO), true)).await;
        assert_eq!(
            raw::len(&server, "{s}:retry:g").await,
            1,
            "the old entry is deleted"
        );
    }
    let delivery = next(&mut source).await;
    settle(delivery, done()).await;
    assert_eq!(raw::len(&server, "{s}:retry:g").await, 0);
    assert_eq!(
        raw::len(&server, "s").await,
        1,
        "nothing was added for other groups"
    );
    assert_eq!(redis.counts().redelivered, 3);
}

#[tokio::test]
async fn a_redelivery_after_the_end_of_time_waits_and_holds_up_no_other() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    task(&server, "never").await;
    let delivery = next(&mut source).await;
    settle(delivery, redeliver(Some(Duration::MAX), true)).await;
    assert_eq!(redis.counts().redelivered, 1);
    task(&server, "soon").await;
    let delivery = next(&mut source).await;
    settle(delivery, redeliver(Some(SECOND / 10), true)).await;
    let delivery = next(&mut source).await;
    assert_eq!(message(&delivery).payload(), "soon");
    settle(delivery, done()).await;
    let stats = redis.stats().await.expect("the server answers");
    assert_eq!(stats.group("g").expect("the group exists").delayed, 1);
}

#[tokio::test]
async fn a_delayed_redelivery_waits_outside_of_the_pending_list_and_comes_when_it_is_due() {
    let server = RedisServer::start().await;
    let mut source = open(&handle(&server).await).await;
    task(&server, "x").await;
    let delivery = next(&mut source).await;
    let started = std::time::Instant::now();
    settle(delivery, redeliver(Some(SECOND / 2), true)).await;
    assert_eq!(pending(&server).await, (0, 0));
    let delivery = next(&mut source).await;
    let waited = started.elapsed();
    assert!(waited >= SECOND / 2 && waited < 5 * SECOND, "{waited:?}");
    assert_eq!(message(&delivery).parts().attempt, Attempt(2));
    assert_eq!(message(&delivery).payload(), "x");
    settle(delivery, done()).await;
    for key in ["{s}:due:g", "{s}:bodies:g"] {
        let left: usize = server.query(&["EXISTS", key]).await;
        assert_eq!(left, 0, "{key}");
    }
}

#[tokio::test]
async fn an_uncounted_redelivery_is_no_attempt() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.max_deliveries(1);
    let mut source = open(&redis).await;
    task(&server, "x").await;
    for after in [Duration::ZERO, Duration::from_millis(20), Duration::ZERO] {
        let delivery = next(&mut source).await;
        assert_eq!(message(&delivery).parts().attempt, Attempt(1));
        settle(delivery, redeliver(Some(after), false)).await;
    }
    let delivery = next(&mut source).await;
    settle(delivery, redeliver(None, true)).await;
    assert_eq!(redis.counts().dead, 1, "the attempt counts now");
}

#[tokio::test]
async fn another_group_sees_each_message_once_whatever_this_one_does_with_it() {
    let server = RedisServer::start().await;
    let first = handle(&server).await;
    let mut source = open(&first).await;
    let second = handle(&server)
        .await
        .group("h")
        .start(campanile::transport::Start::Beginning)
        .unknown_names(campanile::transport::UnknownNames::Ignore);
    let mut other = open(&second).await;
    let id = task(&server, "x").await;
    let delivery = next(&mut source).await;
    settle(delivery, redeliver(Some(Duration::ZERO), true)).await;
    let delivery = next(&mut source).await;
    settle(delivery, dead("done with it")).await;

    let delivery = next(&mut other).await;
    let parts = message(&delivery).parts();
    assert_eq!(parts.id.as_ref().unwrap(), &id.as_str());
    assert_eq!(parts.attempt, Attempt(1));
    settle(delivery, done()).await;
    nothing(&mut other, SECOND / 2).await;
    assert!(letters(&second).await.is_empty());
}

#[tokio::test]
async fn a_dead_letter_keeps_what_came_and_says_why() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    let fields = [
        ("type", &b"task"[..]),
        ("name", b"n"),
        ("payload", b"\x00\xff\xfe"),
        ("h:x", b"1"),
    ];
    let id = raw::add(&server, "s", &fields).await;
    let delivery = next(&mut source).await;
    settle(delivery, redeliver(Some(Duration::ZERO), true)).await;
    let delivery = next(&mut source).await;
    settle(delivery, dead("no such order")).await;

    let letters = letters(&redis).await;
    let [letter] = &letters[..] else {
        panic!("one dead letter: {letters:?}");
    };
    assert_eq!(letter.message_id, id.as_str());
    assert_eq!(letter.reason, "no such order");
    assert_eq!(letter.attempts, 2);
    let kept: Vec<_> = letter
        .fields
        .iter()
        .map(|(f, v)| (&f[..], &v[..]))
        .collect();
    assert_eq!(kept, fields.map(|(field, value)| (field.as_bytes(), value)));
    assert!(letter.died_at.elapsed().unwrap_or_default() < 20 * SECOND);
    assert_eq!(pending(&server).await, (0, 0));
    assert_eq!(redis.counts().dead, 1);
}

#[tokio::test]
async fn an_entry_of_ten_thousand_fields_can_be_released_delayed_and_dead_lettered() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    let fields: Vec<_> = (0..10_000)
        .map(|n| (format!("f{n}"), vec![0xff, (n % 256) as u8]))
        .collect();
    let borrowed: Vec<_> = fields
        .iter()
        .map(|(field, value)| (&field[..], value))
        .collect();
    raw::add(&server, "s", &borrowed).await;
    let expected: Vec<(Bytes, Bytes)> = fields
        .iter()
        .map(|(field, value)| (field.clone().into(), value.clone().into()))
        .collect();
    for verdict in [
        Verdict::Release,
        redeliver(Some(Duration::from_millis(10)), false),
        redeliver(Some(Duration::ZERO), true),
    ] {
        let delivery = next(&mut source).await;
        let undecodable = delivery.content.as_ref().expect_err("it is no message");
        assert_eq!(undecodable.reason, "the field `type` is missing");
        let found = undecodable
            .fields
            .iter()
            .filter(|(field, _)| !field.starts_with(b"~"));
        assert!(found.eq(&expected));
        settle(delivery, verdict).await;
    }
    let delivery = next(&mut source).await;
    settle(delivery, dead("no message")).await;
    let letters = letters(&redis).await;
    assert!(
        letters[0].fields == expected,
        "the fields are kept as they came"
    );
    assert_eq!(letters[0].attempts, 2);
    // The next message does not wait for this one.
    task(&server, "x").await;
    assert_eq!(message(&next(&mut source).await).payload(), "x");
}

#[tokio::test]
async fn what_a_sender_puts_into_internal_fields_is_not_believed() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    let id = raw::add(
        &server,
        "s",
        &[
            ("type", "task"),
            ("name", "n"),
            ("payload", "x"),
            ("~a", "99"),
            ("~o", "1-1"),
            ("~f", "\u{90}"),
        ],
    )
    .await;
    for attempt in 1..=2 {
        let delivery = next(&mut source).await;
        let parts = message(&delivery).parts();
        assert_eq!(parts.id.as_ref().unwrap(), &id.as_str());
        assert_eq!(parts.attempt, Attempt(attempt));
        settle(delivery, redeliver(Some(Duration::ZERO), true)).await;
    }
}

#[tokio::test]
async fn deliveries_used_up_make_a_dead_letter_with_the_last_reason() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.max_deliveries(2);
    let mut source = open(&redis).await;
    task(&server, "x").await;
    for _ in 0..2 {
        let delivery = next(&mut source).await;
        settle(delivery, redeliver(Some(Duration::ZERO), true)).await;
    }
    let letters = letters(&redis).await;
    assert_eq!(
        (letters[0].reason.as_str(), letters[0].attempts),
        ("given up by the worker after attempt 2 of 2: it failed", 2)
    );
    let counts = redis.counts();
    assert_eq!((counts.redelivered, counts.dead), (1, 1));
}

#[tokio::test]
async fn dead_letters_are_bounded_and_what_that_drops_is_counted() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await.max_dead_letters(2);
    let mut source = open(&redis).await;
    for payload in ["a", "b", "c"] {
        task(&server, payload).await;
        let delivery = next(&mut source).await;
        settle(delivery, dead("x")).await;
    }
    let letters = letters(&redis).await;
    let payloads: Vec<_> = letters
        .iter()
        .map(|letter| &letter.fields[2].1[..])
        .collect();
    assert_eq!(payloads, [b"b", b"c"]);
    assert_eq!(redis.counts().dead_dropped, 1);
}

#[tokio::test]
async fn a_discarded_delivery_is_gone_and_counted_by_its_reason() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    for reason in [Discarded::Expired, Discarded::Requested, Discarded::Ignored] {
        task(&server, "x").await;
        let delivery = next(&mut source).await;
        let verdict = Verdict::Discard {
            reason,
            answer: None,
        };
        settle(delivery, verdict).await;
    }
    assert_eq!(pending(&server).await, (0, 0));
    let counts = redis.counts();
    assert_eq!(
        (counts.expired, counts.discarded, counts.ignored),
        (1, 1, 1)
    );
    assert!(letters(&redis).await.is_empty());
}

#[tokio::test]
async fn a_released_delivery_wakes_another_worker_at_once_and_is_no_attempt() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut first = open(&redis).await;
    task(&server, "x").await;
    let delivery = next(&mut first).await;
    let mut second = open(&redis).await;
    let waiting = tokio::spawn(async move {
        let delivery = next(&mut second).await;
        (std::time::Instant::now(), delivery)
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let given = std::time::Instant::now();
    settle(delivery, Verdict::Release).await;
    let (arrived, delivery) = within(5 * SECOND, waiting).await.unwrap();
    let took = arrived.saturating_duration_since(given);
    assert!(
        took < Duration::from_millis(500),
        "a blocked read wakes at once: {took:?}"
    );
    assert_eq!(message(&delivery).parts().attempt, Attempt(1));
    assert_eq!(redis.counts().released, 1);
}

#[tokio::test]
async fn a_verdict_is_carried_out_although_nobody_waits_for_it() {
    let server = RedisServer::start().await;
    let mut source = open(&handle(&server).await).await;
    for verdict in [done(), dead("x"), redeliver(None, true)] {
        task(&server, "x").await;
        let delivery = next(&mut source).await;
        let polled_once = delivery.settle(verdict).now_or_never();
        assert!(polled_once.is_none());
        raw::eventually(
            || async { (pending(&server).await == (0, 0)).then_some(()) },
            5 * SECOND,
        )
        .await;
    }
}

#[tokio::test]
async fn handled_entries_are_trimmed_behind_every_group() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    // Approximate trimming removes whole nodes of 100 entries.
    for n in 0..350 {
        task(&server, n.to_string()).await;
    }
    let mut held = None;
    for n in 0..350 {
        let delivery = next(&mut source).await;
        if n == 150 {
            held = Some(delivery);
        } else {
            settle(delivery, done()).await;
        }
    }
    let shorter_than = |most| {
        let server = &server;
        raw::eventually(
            move || async move { (raw::len(server, "s").await <= most).then_some(()) },
            10 * SECOND,
        )
    };
    shorter_than(250).await;
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(
        raw::len(&server, "s").await,
        250,
        "the pending entry stays, and all after it"
    );
    settle(held.unwrap(), done()).await;
    shorter_than(100).await;
}

#[tokio::test]
async fn a_stream_with_a_foreign_consumer_is_trimmed_only_when_that_is_asked_for() {
    let server = RedisServer::start().await;
    server
        .command(&["XGROUP", "CREATE", "s", "go", "$", "MKSTREAM"])
        .await;
    server
        .command(&["XGROUP", "CREATECONSUMER", "s", "go", "vm-1"])
        .await;
    for n in 0..200 {
        task(&server, n.to_string()).await;
    }
    let read = [
        "XREADGROUP",
        "GROUP",
        "go",
        "vm-1",
        "COUNT",
        "500",
        "NOACK",
        "STREAMS",
        "s",
        ">",
    ];
    server.command(&read).await;
    let redis = handle(&server)
        .await
        .start(campanile::transport::Start::End)
        .unknown_names(campanile::transport::UnknownNames::Ignore);
    let source = open(&redis).await;
    tokio::time::sleep(2 * SECOND + SECOND / 2).await;
    assert_eq!(raw::len(&server, "s").await, 200);
    source.close().await.unwrap();
    let _source = open(&redis.trim_beside_foreign_groups(true)).await;
    raw::eventually(
        || async { (raw::len(&server, "s").await <= 100).then_some(()) },
        10 * SECOND,
    )
    .await;
}

#[tokio::test]
async fn verdicts_of_every_kind_take_effect_and_are_told_though_nobody_waits_for_them() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    let verdicts = [
        done(),
        redeliver(Some(Duration::from_secs(3600)), true),
        dead("spent"),
        Verdict::Discard {
            reason: Discarded::Requested,
            answer: None,
        },
        Verdict::Release,
    ];
    for verdict in verdicts {
        task(&server, "x").await;
        let delivery = next(&mut source).await;
        let kind = format!("{verdict:?}");
        let (told, outcome) = tokio::sync::oneshot::channel();
        delivery.settle.settle(verdict, |settled| {
            let _ = told.send(settled);
        });
        within(5 * SECOND, outcome)
            .await
            .expect(&kind)
            .expect(&kind);
        assert_eq!(pending(&server).await.0, 0, "{kind}");
    }
    let counts = redis.counts();
    let each = [
        counts.done,
        counts.redelivered,
        counts.dead,
        counts.discarded,
        counts.released,
    ];
    assert_eq!(each, [1; 5]);
}

#[tokio::test]
async fn an_entry_that_somebody_deleted_ends_as_deleted_whatever_the_verdict() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut source = open(&redis).await;
    let verdicts = [redeliver(None, true), dead("spent"), Verdict::Release];
    for (deleted, verdict) in (1..).zip(verdicts) {
        let id = task(&server, "x").await;
        let delivery = next(&mut source).await;
        server.command(&["XDEL", "s", &id]).await;
        settle(delivery, verdict).await;
        assert_eq!(redis.counts().deleted, deleted);
        assert_eq!(pending(&server).await.0, 0);
    }
    let counts = redis.counts();
    assert_eq!(
        (counts.redelivered, counts.dead, counts.released),
        (0, 0, 0)
    );
    assert_eq!(
        raw::len(&server, "{s}:dead:g").await,
        0,
        "the deleted entry leaves no dead letter"
    );
    assert_eq!(counts.lost_leases, 0);
}
