//! Tests of the examples' applications in the test kit, without a server and without waiting.

use std::{sync::Arc, time::Duration};

use campanile::{
    Json, RpcCode,
    testing::{Harness, event, rpc, task},
};
use serde_json::json;

#[allow(dead_code, reason = "its main is not called")]
#[path = "../../examples/layers.rs"]
mod layers;
#[allow(dead_code, reason = "its main is not called")]
#[path = "../../examples/worker.rs"]
mod worker;

#[tokio::test(start_paused = true)]
async fn the_worker_takes_what_the_client_sends_and_nothing_else() {
    let mut harness = Harness::start(worker::app()).await;
    let client = harness.client();
    let orders = client.nest("orders");
    let order = json!({ "id": 101, "user_id": 42, "title": "first" });
    orders.enqueue("create", Json(&order)).await.unwrap();
    orders.enqueue("create", "no order").await.unwrap();
    orders.publish("events", "created").await.unwrap();
    let user = client.request("user.get", Json(json!({ "id": 42 }))).await;
    let Json(user): Json<serde_json::Value> = user.unwrap();
    assert_eq!(user["name"], "Alice");
    let nobody = client.request::<()>("user.get", Json(json!({ "id": 7 })));
    let error = nobody.await.unwrap_err();
    assert_eq!(error.rpc().unwrap().code(), &RpcCode::NotFound);

    harness.settled().await;
    harness.assert_acknowledged(task("orders.create").json(&order).once());
    harness.assert_dead_lettered(task("orders.create").payload("no order").once());
    harness.assert_acknowledged(event("orders.events").payload("created").once());
    harness.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn the_layers_run_two_handlers_at_a_time_and_end_slow_ones() {
    let app = layers::app().with_state(Arc::default());
    let harness = Harness::start(app).await;
    let client = harness.client();
    for receipt in client.enqueue_all("work", [(); 10]).await {
        receipt.unwrap();
    }
    harness.settled().await;
    let done = harness.assert_acknowledged(task("work").times(10));
    assert_eq!(done[9].at, Duration::from_millis(5 * 20), "two at a time");

    let error = client.request::<()>("never", ()).await.unwrap_err();
    assert_eq!(error.rpc().unwrap().code(), &RpcCode::Deadline);
    harness.assert_failed(rpc("never").because("took too long").once());
    client.request::<()>("moody", ()).await.unwrap_err();
    harness.assert_failed(rpc("moody").because("not now").once());
}
