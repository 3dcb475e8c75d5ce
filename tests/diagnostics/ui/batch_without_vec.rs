use campanile::{Batch, Json, Router};

async fn create(Json(order): Json<u64>) {
    let _ = order;
}

fn main() {
    let _ = Router::<()>::new().task("orders.create", Batch::new(create));
}
