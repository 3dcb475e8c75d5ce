//! Tests of the exact texts of failed assertions.

use std::{
    panic,
    sync::{Arc, Mutex},
};

use campanile::{
    Attempt, Json, Router,
    testing::{Harness, anything, event, rpc, task},
};

use super::failure_of;

/// A harness in which two tasks, an event and a request were handled, one of them at its second
/// attempt.
async fn busy_day() -> Harness {
    let app: Router = Router::new()
        .task(
            "mail",
            async |Attempt(attempt): Attempt, _: String| match attempt {
                1 => Err(
                    campanile::Failure::redeliver_after(std::time::Duration::from_secs(90))
                        .because(std::io::Error::other("no stamps")),
                ),
                _ => Ok(()),
            },
        )
        .event("news", async || {})
        .rpc("add", async |Json(n): Json<u32>| Json(n + 1));
    let harness = Harness::start(app).await;
    let client = harness.client();
    client
        .enqueue("mail", Json(("Ada", 1)))
        .header("x-tenant", "acme")
        .await
        .unwrap();
    client.publish("news", "rain").await.unwrap();
    client.request::<Json<u32>>("add", Json(1)).await.unwrap();
    harness.finished().await;
    harness
}

const DAY: &str = "what has happened:
  0.000s task `mail` [\"Ada\",1]: sent
  0.000s event `news` rain: sent";

#[tokio::test(start_paused = true)]
async fn a_missing_message_is_reported_with_those_that_happened() {
    let harness = busy_day().await;
    let text = failure_of(|| harness.assert_sent(task("orders.create")));
    let (said, listed) = text.split_once("\n\n").unwrap();
    assert_eq!(said, "task `orders.create` was never sent");
    assert!(listed.starts_with(DAY), "{listed}");
    for line in [
        "0.000s task `mail` [\"Ada\",1]: redelivered after 90.000s: \
         the delivery failed and is to be redelivered: no stamps",
        "0.000s event `news` rain: handled",
        "0.000s rpc `add` 1: acknowledged",
        "90.000s task `mail` [\"Ada\",1]: acknowledged, attempt 2",
    ] {
        assert!(
            listed.lines().any(|listed| listed.trim() == line),
            "{line}\n{listed}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_near_miss_is_reported_with_its_differences() {
    let harness = busy_day().await;
    let said = |expected| {
        let text = failure_of(|| harness.assert_acknowledged(expected));
        let first = text.lines().next().unwrap().to_owned();
        let remarked = text.lines().find(|line| line.contains("<-"));
        (first, remarked.unwrap_or_default().trim().to_owned())
    };
    let (first, remark) = said(task("mail").json(("Ada", 2)));
    assert_eq!(
        first,
        r#"task `mail` with the JSON ["Ada",2] was never acknowledged"#
    );
    let line = "90.000s task `mail` [\"Ada\",1]: acknowledged, attempt 2   <- another";
    assert_eq!(remark, format!("{line} payload"));
    let (first, remark) = said(task("mail").attempt(1));
    assert_eq!(first, "task `mail` at attempt 1 was never acknowledged");
    assert_eq!(remark, format!("{line} attempt"));
    let (first, remark) = said(task("mail").header("x-tenant", "other"));
    assert_eq!(
        first,
        "task `mail` with the header x-tenant: other was never acknowledged"
    );
    assert!(remark.ends_with("<- other headers"), "{remark}");
    let (first, remark) = said(task("mail").stream("s"));
    assert_eq!(
        first,
        "task `mail` on the stream `s` was never acknowledged"
    );
    assert!(remark.ends_with("<- another stream"), "{remark}");
    let (first, remark) = said(event("news").payload("sun"));
    assert_eq!(
        first,
        "event `news` with the payload sun was never acknowledged"
    );
    assert_eq!(
        remark,
        "0.000s event `news` rain: handled   <- another payload"
    );
    // A message of another kind is not a near miss.
    assert_eq!(said(rpc("news")).1, "");
    harness.assert_acknowledged(
        task("mail")
            .header("x-tenant", "acme")
            .payload(r#"["Ada",1]"#),
    );
}

#[tokio::test(start_paused = true)]
async fn too_often_and_too_seldom_say_how_often() {
    let harness = busy_day().await;
    let first = |expected| {
        let text = failure_of(|| harness.assert_sent(expected));
        text.lines().next().unwrap().to_owned()
    };
    assert_eq!(
        first(anything().once()),
        "anything was sent 3 times instead of once"
    );
    assert_eq!(
        first(rpc("add").never()),
        "rpc `add` was sent once instead of never"
    );
    assert_eq!(
        first(rpc("add").times(2)),
        "rpc `add` was sent once instead of 2 times"
    );
    let text = failure_of(|| harness.assert_sent(rpc("add").never()));
    assert!(
        text.contains("rpc `add` 1: sent   <- this is one\n"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn reasons_are_part_of_what_is_expected() {
    let harness = busy_day().await;
    harness.assert_redelivered(task("mail").because("no stamps").once());
    let text = failure_of(|| harness.assert_redelivered(task("mail").because("no paper")));
    assert!(
        text.starts_with("task `mail` because of \"no paper\" was never redelivered\n"),
        "{text}"
    );
    assert!(text.contains("<- another reason"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn where_nothing_has_happened_that_is_said() {
    let harness = Harness::new();
    let text = failure_of(|| harness.assert_sent(anything()));
    assert_eq!(text, "anything was never sent\n\nnothing has happened");
}

#[tokio::test(start_paused = true)]
async fn payloads_are_shown_as_far_as_they_can_be_read() {
    let harness = Harness::new();
    let client = harness.client();
    client.enqueue("long", "é".repeat(1000)).await.unwrap();
    client.enqueue("raw", b"\x00\xff".as_slice()).await.unwrap();
    client.enqueue("lines", "a\nb").await.unwrap();
    let text = failure_of(|| harness.assert_sent(task("short")));
    let long = format!("task `long` {}… (2000 bytes): sent", "é".repeat(120));
    assert!(text.contains(&long), "{text}");
    assert!(text.contains(r"task `raw` 0x[\x00\xff]: sent"), "{text}");
    assert!(text.contains(r"task `lines` 0x[a\nb]: sent"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_payload_of_json_is_expected_whatever_the_order_of_its_keys() {
    let harness = Harness::new();
    let client = harness.client();
    client
        .enqueue("a", r#"{ "id": 7, "by": "Ada" }"#)
        .await
        .unwrap();
    harness.assert_sent(
        task("a")
            .json(serde_json::json!({ "by": "Ada", "id": 7 }))
            .once(),
    );
    failure_of(|| harness.assert_sent(task("a").payload(r#"{"id":7,"by":"Ada"}"#)));
}

/// No other test of this program may install a panic hook. This hook ignores other threads.
#[tokio::test(start_paused = true)]
async fn an_assertion_fails_in_the_line_of_the_test() {
    let harness = Harness::new();
    let seen = Arc::new(Mutex::new(None));
    let (keep, this) = (Arc::clone(&seen), std::thread::current().id());
    let before = Arc::new(panic::take_hook());
    let old = Arc::clone(&before);
    panic::set_hook(Box::new(move |info| {
        if std::thread::current().id() == this {
            *keep.lock().unwrap() = info.location().map(|at| (at.file().to_owned(), at.line()));
        } else {
            old(info);
        }
    }));
    let line = line!() + 1;
    failure_of(|| harness.assert_dead_lettered(anything()));
    assert_eq!(*seen.lock().unwrap(), Some((file!().to_owned(), line)));
}
