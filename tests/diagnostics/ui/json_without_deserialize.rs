use campanile::{Json, Router};

struct Order;

async fn create(Json(order): Json<Order>) {
    let _ = order;
}

fn main() {
    let _ = Router::<()>::new().task("orders.create", create);
}
