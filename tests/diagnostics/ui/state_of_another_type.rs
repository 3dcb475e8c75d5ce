use campanile::{Router, State};

#[derive(Clone)]
struct Db;

#[derive(Clone)]
struct Cache;

async fn create(State(db): State<Db>) {
    let _ = db;
}

fn main() {
    let _: Router = Router::new().task("orders.create", create).with_state(Cache);
}
