use campanile::{Json, Router, contract::Event};

const CREATED: Event<u64> = Event::new("orders.created");

async fn created(Json(_): Json<u64>) {}

fn main() {
    let _ = Router::<()>::new().task(CREATED, created);
}
