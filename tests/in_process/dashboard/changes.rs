//! The changes.

use std::time::Duration;

use campanile::{
    Json,
    schedule::{Schedule, ScheduledTask},
    transport::{MessageQuery, MessageState, TaskState},
};

use super::*;

/// The payloads and the headers of the messages that wait.
async fn waiting(memory: &Memory) -> Vec<(String, String, usize)> {
    let query = MessageQuery::of(MessageState::Waiting);
    let page = memory.messages().list(query).await.unwrap();
    let messages = page.messages.into_iter().map(|message| {
        let message = message.content.unwrap();
        let payload = String::from_utf8(message.payload().to_vec()).unwrap();
        (message.name().to_string(), payload, message.headers().len())
    });
    messages.collect()
}

#[tokio::test]
async fn dead_letters_are_replayed_and_deleted() {
    let memory = with_group().await;
    let ids = make_letters(&memory, &[("a", "1"), ("a", "2"), ("b", "3"), ("c", "4")])
        .await
        .unwrap();
    let dashboard = Dashboard::new(memory.clone());
    let form = format!("do=replay&id={}&id={}&{SHOP}", ids[0], ids[1]);
    act(&dashboard, &form)
        .await
        .has(&["Replay 2 dead letters", "2 replayed"]);
    let again = act(&dashboard, &form).await;
    again.has(&["0 replayed; 2 were not there any more"]);
    act(&dashboard, &format!("do=purge&name=b&{SHOP}"))
        .await
        .has(&["1 deleted"]);
    assert_eq!(memory.dead_letters().count().await.unwrap(), 1);
    act(&dashboard, &format!("do=purge&all=1&{SHOP}"))
        .await
        .has(&["1 deleted"]);
    assert_eq!(waiting(&memory).await.len(), 2);
    let all = get(&dashboard, "/actions").await.succeeded();
    all.has(&["Replay 2 dead letters", "Delete all dead letters for good"]);
}

#[tokio::test]
async fn a_dead_letter_is_replayed_as_edited() {
    let memory = with_group().await;
    let ids = make_letters(&memory, &[("mail.send", "{\n\"to\":\"<x>\"}")])
        .await
        .unwrap();
    let dashboard = Dashboard::new(memory.clone());
    let page = get(&dashboard, &format!("/letter?{SHOP}&id={}", ids[0]))
        .await
        .succeeded();
    page.has(&["Edit and replay", "<textarea", "&lt;x&gt;"]);
    // Browsers send lines with carriage returns.
    let edit = format!(
        "do=replay-edited&id={}&name=mail.again&headers=x-a%3A+1%0D%0Ax-b%3A2&payload=%7B%0D%0A%22to%22%3A1%7D&{SHOP}",
        ids[0]
    );
    let confirm = post(&dashboard, "/confirm", &edit).await.succeeded();
    confirm.has(&["as edited", "new payload", "name=\"payload\""]);
    assert_eq!(memory.dead_letters().count().await.unwrap(), 1);
    act(&dashboard, &edit).await.has(&["replayed as edited"]);
    assert_eq!(memory.dead_letters().count().await.unwrap(), 0);
    let found = waiting(&memory).await;
    assert_eq!(
        found,
        [("mail.again".to_owned(), "{\n\"to\":1}".to_owned(), 2)]
    );
    act(&dashboard, &edit)
        .await
        .has(&["failed", "the letter no longer exists"]);
    let bad = edit.replace("x-a%3A+1", "no+header");
    assert_eq!(
        post(&dashboard, "/confirm", &bad).await.status,
        StatusCode::BAD_REQUEST
    );
}

#[tokio::test]
async fn pauses_are_made_and_ended_and_what_waits_is_removed() {
    let memory = with_group().await;
    let client = Client::new(memory.clone());
    for number in 0..5 {
        client.enqueue("a", Json(number)).await.unwrap();
    }
    let dashboard = Dashboard::new(memory.clone());
    for target in ["target=group", "target=stream", "target=name&name=a.b"] {
        act(
            &dashboard,
            &format!("do=pause&{target}&reason=deploy&{SHOP}"),
        )
        .await
        .has(&["paused"]);
    }
    let listed = get(&dashboard, &format!("/pauses?{SHOP}"))
        .await
        .succeeded();
    listed.has(&["the name a.b", "the stream, for all its groups", "deploy"]);
    for target in ["target=group", "target=stream", "target=name&name=a.b"] {
        act(&dashboard, &format!("do=resume&{target}&{SHOP}"))
            .await
            .has(&["resumed"]);
    }
    let confirm = get(&dashboard, &format!("/confirm?do=purge-waiting&{SHOP}"))
        .await
        .succeeded();
    confirm.has(&["5 messages would be removed now"]);
    act(&dashboard, &format!("do=purge-waiting&{SHOP}"))
        .await
        .has(&["5 removed"]);
}

#[tokio::test]
async fn tasks_are_cancelled_and_schedules_are_changed() {
    let memory = with_group().await;
    let client = Client::new(memory.clone());
    let mut ids = Vec::new();
    for _ in 0..3 {
        let receipt = client
            .enqueue("a", "1")
            .tracked(Duration::from_secs(60))
            .await
            .unwrap();
        ids.push(receipt.id().unwrap().clone());
    }
    let dashboard = Dashboard::new(memory.clone());
    act(
        &dashboard,
        &format!("do=cancel&id={}&reason=enough&{SHOP}", ids[0]),
    )
    .await
    .has(&["cancelled"]);
    let status = memory.tasks().status(&ids[0]).await.unwrap().unwrap();
    assert_eq!(
        (status.state, &*status.reason),
        (TaskState::Cancelled, "enough")
    );
    act(&dashboard, &format!("do=cancel-all&state=waiting&{SHOP}"))
        .await
        .has(&["2 tasks cancelled"]);

    let schedule = ScheduledTask::new("nightly", Schedule::cron("0 3 * * *"), "a", ());
    memory.schedules().put(&schedule).await.unwrap();
    let change = async |verb: &str, text: &str| {
        let form = format!("do=schedule-{verb}&schedule=nightly&stream=shop");
        act(&dashboard, &form).await.has(&[text]);
    };
    change("pause", "paused").await;
    get(&dashboard, "/schedules?stream=shop")
        .await
        .has(&["paused", "do=schedule-resume"]);
    change("resume", "resumed").await;
    change("run", "sent the task").await;
    change("remove", "removed").await;
    change("remove", "there is no such schedule").await;
}

#[tokio::test]
async fn an_action_of_many_letters_can_be_stopped() {
    let memory = with_group().await;
    let tasks = vec![("a", "1"); 150];
    make_letters(&memory, &tasks).await.unwrap();
    let dashboard = Dashboard::new(memory.clone());
    let page = act(&dashboard, &format!("do=purge&all=1&{SHOP}")).await;
    page.has(&["150 deleted"]);
    assert_eq!(memory.dead_letters().count().await.unwrap(), 0);
    let actions = get(&dashboard, "/api/actions").await.json();
    let id = actions["actions"][0]["id"].as_str().unwrap().to_owned();
    // It has ended, so a stop changes nothing.
    let stopped = post(&dashboard, "/stop", &format!("id={id}")).await;
    assert_eq!(stopped.status, StatusCode::SEE_OTHER);
    let after = get(&dashboard, &format!("/api/action?id={id}"))
        .await
        .json();
    assert_eq!(
        (&after["state"], &after["done"]),
        (&"done".into(), &150.into())
    );
}

#[tokio::test(start_paused = true)]
async fn one_worker_is_limited_paused_and_drained() {
    let memory = Memory::new().stream("shop").group("mail");
    let app: Router = Router::new().task("mail.send", async || {});
    let worker = serve(memory.clone(), app).service("mailer", "1");
    let worker = tokio::spawn(worker.into_future());
    let list = async || memory.workers().list().await.unwrap();
    while list().await.is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let name = list().await[0].worker.clone();
    let dashboard = Dashboard::new(memory.clone()).user(|_| Some("ann\u{200b}".repeat(100)));
    let order = |order: &str| format!("do=order&worker={name}&order={order}&{SHOP}");
    let confirm = get(&dashboard, &format!("/confirm?{}", order("limit&to=3"))).await;
    confirm
        .succeeded()
        .has(&["Limit to 3 in flight the worker", "cannot raise it"]);
    assert_eq!(list().await[0].limit, None, "it was asked only");
    for (word, shown) in [
        ("limit&to=3", "limit 3"),
        ("pause-name&to=mail.send", "pause-name mail.send"),
        ("pause", "pause"),
    ] {
        act(&dashboard, &order(word)).await.has(&["has the order"]);
        let page = get(&dashboard, &format!("/workers?{SHOP}")).await;
        page.succeeded().has(&[&format!("{shown} by ann")]);
    }
    let worker_now = list().await.remove(0);
    assert_eq!(
        (worker_now.limit, &worker_now.paused[..]),
        (Some(3), &["mail.send".to_owned()][..])
    );
    act(&dashboard, &order("limit&to=")).await;
    assert_eq!(list().await[0].limit, None);
    for wrong in ["limit&to=0", "limit&to=x", "pause-name&to=", "dance"] {
        let refused = get(&dashboard, &format!("/confirm?{}", order(wrong))).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{wrong}");
        refused.has(&["an order is"]);
    }
    act(&dashboard, &order("drain")).await;
    worker.await.unwrap().unwrap();
    act(&dashboard, &order("drain"))
        .await
        .has(&["no live worker"]);
}
