//! Tests of the application, without a server.

use campanile::{
    Json,
    testing::{Harness, event, task},
};

#[tokio::test(start_paused = true)]
async fn an_order_is_created_and_announced() {
    let mut orders = Harness::new();
    orders.serve(my_app::app()).await;
    let client = orders.client();
    client.enqueue("orders.create", Json("Emma")).await.unwrap();
    orders.settled().await;
    orders.assert_acknowledged(task("orders.create").once());
    orders.assert_sent(event("orders.created").json("Emma").once());

    let Json(title): Json<String> = client.request("orders.title", Json(7)).await.unwrap();
    assert_eq!(title, "Emma");
}
