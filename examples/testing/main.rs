//! An application that sends messages to itself, and requests to another application.
//!
//! ```text
//! cargo run --example testing
//! ```
//!
//! The shop is in `app.rs`; `docs/testing.md` shows how it is tested.

mod app;

use app::{Order, Sender, Shop, app};
use campanile::{BoxError, Client, Json, Name, Router, RpcError, serve, transport::memory::Memory};
use tokio::sync::mpsc;

/// The bank, which is another application on another stream.
async fn charge(Json(cents): Json<u64>) -> Result<(), RpcError> {
    println!("rpc    charge: {cents} cents");
    match cents {
        0..=10_000 => Ok(()),
        _ => Err(RpcError::invalid("so much is not in the account")),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let memory = Memory::new();
    let bank = memory.clone().stream("bank");
    let charges: Router = Router::new().rpc("charge", charge);
    let charging = tokio::spawn(serve(bank.clone(), charges).into_future());

    let shop = Shop {
        own: Client::new(Sender::new(memory.clone())),
        bank: Client::new(Sender::new(bank)),
    };
    let (news_sender, mut news) = mpsc::unbounded_channel();
    let customer =
        Router::new().event_pattern("orders.*", async move |name: Name, Json(id): Json<u64>| {
            let _ = news_sender.send(format!("{name}, order {id}"));
        });
    let app = app().merge(customer).with_state(shop);
    let selling = tokio::spawn(serve(memory.clone(), app).into_future());

    let client = Client::new(memory);
    for (id, cents) in [(1, 1_999), (2, 1_000_000)] {
        let order = Json(Order { id, cents });
        client.enqueue("orders.pay", order).await?;
    }
    for _ in 0..2 {
        println!("event  {}", news.recv().await.ok_or("the shop has ended")?);
    }
    selling.abort();
    charging.abort();
    Ok(())
}
