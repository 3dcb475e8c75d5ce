use campanile::{Client, Router};

struct Order;

fn main() {
    let _ = Client::new(Router::new()).enqueue("orders.create", Order);
}
