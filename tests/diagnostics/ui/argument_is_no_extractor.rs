use campanile::{Json, Router};

struct Order;

async fn create(order: Order, number: Json<u64>) {
    let _ = (order, number);
}

fn main() {
    let _ = Router::<()>::new().rpc("orders.create", create);
}
