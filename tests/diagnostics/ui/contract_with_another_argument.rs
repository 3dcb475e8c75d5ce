use campanile::{Json, Router, contract::Task};

#[derive(serde::Deserialize)]
struct Order;

#[derive(serde::Deserialize)]
struct Invoice;

const CREATE: Task<Order> = Task::new("orders.create");

async fn create(Json(invoice): Json<Invoice>) {
    let _ = invoice;
}

fn main() {
    let _ = Router::<()>::new().task(CREATE, create);
}
