use campanile::{Client, Router, contract::Task};

#[derive(serde::Serialize)]
struct Order;

#[derive(serde::Serialize)]
struct Invoice;

const CREATE: Task<Order> = Task::new("orders.create");

fn main() {
    let _ = Client::new(Router::new()).enqueue(CREATE, &Invoice);
}
