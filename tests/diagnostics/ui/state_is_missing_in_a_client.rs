use campanile::{Client, Router, State};

#[derive(Clone)]
struct Db;

async fn create(State(db): State<Db>) {
    let _ = db;
}

fn main() {
    let _ = Client::new(Router::<Db>::new().task("orders.create", create));
}
