use std::time::Duration;

use campanile::{BoxError, Client, Error, Failure, Json, Message, Reply, Router, RpcCode, State};
use serde::{Deserialize, Serialize};
use tower::util::BoxCloneSyncService;

/// The client's service, boxed: the same type over every transport.
pub(crate) type Sender = BoxCloneSyncService<Message, Reply, Error>;

#[derive(Clone)]
pub(crate) struct Shop {
    /// A client of the shop's stream.
    pub(crate) own: Client<Sender>,
    /// A client of the bank's stream, which another application serves.
    pub(crate) bank: Client<Sender>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) id: u64,
    pub(crate) cents: u64,
}

async fn pay(State(shop): State<Shop>, Json(order): Json<Order>) -> Result<(), BoxError> {
    let charged = shop.bank.request::<()>("charge", Json(order.cents)).await;
    if let Err(error) = charged {
        let code = error.rpc().map(|answer| answer.code());
        if code == Some(&RpcCode::Invalid) {
            shop.own.publish("orders.declined", Json(order.id)).await?;
            return Err(Failure::dead_letter().because(error).into());
        }
        return Err(error.into()); // so it comes back
    }
    shop.own.enqueue("orders.ship", Json(&order)).await?;
    shop.own
        .enqueue("orders.review", Json(order.id))
        .delay(Duration::from_secs(7 * 24 * 3600))
        .await?;
    Ok(())
}

async fn ship(State(shop): State<Shop>, Json(order): Json<Order>) -> Result<(), BoxError> {
    shop.own.publish("orders.shipped", Json(order.id)).await?;
    Ok(())
}

async fn review(Json(id): Json<u64>) {
    println!("task   orders.review: how do you like order {id}?");
}

async fn shipped(Json(id): Json<u64>) {
    println!("event  orders.shipped: order {id} is on its way");
}

pub(crate) fn app() -> Router<Shop> {
    let orders = Router::new()
        .task("pay", pay)
        .task("ship", ship)
        .task("review", review)
        .event("shipped", shipped);
    Router::new().nest("orders", orders)
}
