//! Tests of constants that name routes and calls.

use bytes::Bytes;
use campanile::{
    Batch, Client, Handler, Json, Message, Name, Reply, Router, State,
    contract::{Event, Rpc, Task},
};
use serde::{Deserialize, Serialize};
use tower::limit::ConcurrencyLimitLayer;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) id: u64,
}

const CREATE: Task<Order> = Task::new("orders.create");
const CREATED: Event<Order> = Event::new("orders.created");
const TOTAL: Rpc<Order, u64> = Rpc::new("orders.total");
const PING: Rpc<(), ()> = Rpc::new("ping");

async fn json(Json(order): Json<Order>) {
    assert_eq!(order.id, 7);
}

#[tokio::test]
async fn a_constant_names_a_route_and_a_call() {
    async fn total(Json(order): Json<Order>) -> Result<Json<u64>, std::io::Error> {
        Ok(Json(order.id * 100))
    }

    let app: Router = Router::new()
        .task(CREATE, json)
        .event(CREATED, json)
        .rpc(TOTAL, total)
        .rpc(PING, async || ());
    let client = Client::new(app);
    let order = Order { id: 7 };
    client.enqueue(CREATE, &order).await.unwrap();
    client.enqueue(CREATE, Json(&order)).await.unwrap();
    client.publish(CREATED, order.clone()).await.unwrap();
    assert_eq!(client.call(TOTAL, Json(order.clone())).await.unwrap(), 700);
    assert_eq!(client.call_fast(TOTAL, order).await.unwrap(), 700);
    client.call(PING, ()).await.unwrap();
}

#[tokio::test]
async fn a_constant_is_joined_with_the_prefixes_of_both_sides() {
    let app: Router = Router::new().nest("shop", Router::new().task(CREATE, json));
    assert_eq!(app.routes()[0].name, "shop.orders.create");
    let client = Client::new(app).nest("shop");
    let payloads = [Order { id: 7 }, Order { id: 7 }];
    for sent in client.enqueue_all(CREATE, &payloads).await {
        sent.unwrap();
    }
}

/// Compiles, and that is the test: each of these handlers fits its constant.
#[test]
fn every_form_of_a_handler_fits_the_constant_of_its_payload() {
    let _: Router = Router::new()
        .task(CREATE, json)
        .task(Task::<Order>::new("1"), async || {})
        .task(Task::<Order>::new("2"), async |_: State<u8>| {})
        .task(
            Task::<Order>::new("3"),
            async |_: Name, _: Option<Json<Order>>| {},
        )
        .task(
            Task::<Order>::new("4"),
            async |_: Result<Json<Order>, _>| {},
        )
        .task(Task::<Order>::new("5"), async |_: Bytes| {})
        .task(Task::<Order>::new("6"), async |_: Message| {})
        .task(
            Task::<Order>::new("7"),
            Batch::new(async |_: State<u8>, _: Vec<Json<Order>>| {}),
        )
        .task(
            Task::<Order>::new("8"),
            json.layer(ConcurrencyLimitLayer::new(1)),
        )
        .task_service(Task::<Order>::new("9"), json.with_state(()))
        .rpc(TOTAL, async || Reply::new("1"))
        .rpc(
            Rpc::<Order, u64>::new("10"),
            Batch::new(async |orders: Vec<Json<Order>>| {
                orders
                    .iter()
                    .map(|order| Json(order.id))
                    .collect::<Vec<_>>()
            }),
        )
        .event_sharded(CREATED, json)
        .with_state(1);
}

#[test]
fn a_constant_shows_its_name_and_types() {
    assert_eq!(
        format!("{TOTAL:?}"),
        format!(
            "Rpc {{ name: \"orders.total\", payload: \"{}\", reply: \"u64\", .. }}",
            std::any::type_name::<Order>()
        )
    );
}

#[tokio::test]
#[should_panic(expected = "the name is empty")]
async fn a_constant_with_an_invalid_name_is_refused_as_any_name() {
    let nameless = Task::<Order>::new("");
    let error = Client::new(Router::new())
        .enqueue(nameless, Order { id: 7 })
        .await
        .unwrap_err();
    assert!(error.is_invalid(), "{error}");
    let _ = Router::<()>::new().task(nameless, json);
}
