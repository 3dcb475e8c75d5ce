use campanile::{Json, Router};

async fn create(raw: String, Json(order): Json<u64>) {
    let _ = (raw, order);
}

fn main() {
    let _ = Router::<()>::new().task("orders.create", create);
}
