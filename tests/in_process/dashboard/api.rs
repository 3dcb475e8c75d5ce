//! The JSON API.

use std::time::Duration;

use serde_json::json;

use super::*;

async fn document(dashboard: &Dashboard, target: &str) -> Value {
    let answer = get(dashboard, &format!("/api/{target}")).await.succeeded();
    assert_eq!(answer.headers["content-type"], "application/json");
    answer.json()
}

async fn post_json(dashboard: &Dashboard, target: &str, body: &Value) -> (u16, Value) {
    let request =
        Request::post(format!("/api/{target}")).header("content-type", "application/json");
    let answer = send(dashboard, request.body(body.to_string()).unwrap()).await;
    (answer.status.as_u16(), answer.json())
}

#[tokio::test]
async fn each_page_is_a_document_too() {
    let memory = with_group().await;
    let ids = make_letters(&memory, &[("a", "{\"x\":1}"), ("a", "\u{0}")])
        .await
        .unwrap();
    let client = Client::new(memory.clone());
    let receipt = client
        .enqueue("b", "1")
        .tracked(Duration::from_secs(60))
        .await
        .unwrap();
    let dashboard = Dashboard::new(memory);
    let streams = document(&dashboard, "streams").await;
    assert_eq!(streams["streams"][0]["stream"], "shop");
    assert_eq!(streams["streams"][0]["groups"][0]["dead"], 2);
    assert_eq!(document(&dashboard, "overview").await["dead"], 2);
    let stream = document(&dashboard, &format!("stream?{SHOP}")).await;
    assert_eq!(stream["groups"][0]["waiting"], 1);
    let dead = document(&dashboard, &format!("dead?{SHOP}&max=1")).await;
    assert_eq!(
        (&dead["letters"][0]["id"], &dead["count"]),
        (&json!(ids[0]), &json!(2))
    );
    let next = dead["next"].as_str().unwrap();
    let more = document(&dashboard, &format!("dead?{SHOP}&after={next}")).await;
    assert_eq!(
        (&more["letters"][0]["id"], &more["next"]),
        (&json!(ids[1]), &Value::Null)
    );
    let letter = document(&dashboard, &format!("letter?{SHOP}&id={}", ids[0])).await;
    assert_eq!(
        (&letter["payload"], &letter["kind"]),
        (&json!("{\"x\":1}"), &json!("task"))
    );
    let waiting = document(&dashboard, &format!("messages?{SHOP}&state=waiting")).await;
    assert_eq!(waiting["messages"][0]["name"], "b");
    let tasks = document(&dashboard, &format!("tasks?{SHOP}&state=waiting")).await;
    assert_eq!(
        tasks["tasks"][0]["id"],
        json!(receipt.id().unwrap().as_str())
    );
    let task = document(
        &dashboard,
        &format!("task?{SHOP}&id={}", receipt.id().unwrap()),
    )
    .await;
    assert_eq!(
        (
            &task["record"]["state"],
            task["changes"].as_array().unwrap().len()
        ),
        (&json!("waiting"), 1)
    );
    let history = document(&dashboard, &format!("history?{SHOP}")).await;
    assert_eq!(history["minutes"].as_array().unwrap().len(), 60);
    for target in [
        "consumers",
        "workers",
        "workers?stats=1",
        "parked",
        "schedules",
        "pauses",
    ] {
        let separator = if target.contains('?') { '&' } else { '?' };
        document(&dashboard, &format!("{target}{separator}{SHOP}")).await;
    }
}

#[tokio::test]
async fn a_change_by_json_says_what_it_has_done() {
    let memory = with_group().await;
    let ids = make_letters(&memory, &[("a", "1"), ("a", "2")])
        .await
        .unwrap();
    let dashboard = Dashboard::new(memory.clone());
    let replay = json!({"do": "replay", "stream": "shop", "group": "mail", "id": ids});
    let (status, document) = post_json(&dashboard, "act", &replay).await;
    assert_eq!(status, 200);
    assert_eq!(
        (&document["state"], &document["done"]),
        (&json!("done"), &json!(2))
    );
    let pause = json!({"do": "pause", "target": "group", "reason": "deploy", "stream": "shop", "group": "mail"});
    assert_eq!(
        post_json(&dashboard, "act", &pause).await.1["text"],
        "paused"
    );
    let pauses = get(&dashboard, &format!("/api/pauses?{SHOP}")).await.json();
    assert_eq!(pauses["pauses"][0]["reason"], "deploy");
    for (target, body) in [
        ("act", json!({"do": "explode"})),
        ("act", json!({"do": {"a": 1}})),
        ("stop", json!({})),
    ] {
        let (status, document) = post_json(&dashboard, target, &body).await;
        assert_eq!(
            (status, document["status"].as_u64()),
            (400, Some(400)),
            "{document}"
        );
    }
    let request = Request::post("/api/act").header("content-type", "application/json");
    let answer = send(&dashboard, request.body("[1]".into()).unwrap()).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(answer.headers["content-type"], "application/problem+json");
}
