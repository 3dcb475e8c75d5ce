use campanile::{Json, Router, contract::Rpc};

#[derive(serde::Serialize)]
struct Price;

#[derive(serde::Serialize)]
struct Discount;

const PRICE: Rpc<u64, Price> = Rpc::new("orders.price");

async fn price(Json(_): Json<u64>) -> Result<Json<Discount>, std::io::Error> {
    Ok(Json(Discount))
}

fn main() {
    let _ = Router::<()>::new().rpc(PRICE, price);
}
