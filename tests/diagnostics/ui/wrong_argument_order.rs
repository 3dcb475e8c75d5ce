use campanile::{Json, Router, State};

#[derive(Clone)]
struct Db;

async fn create(Json(order): Json<u64>, State(db): State<Db>) {
    let _ = (order, db);
}

fn main() {
    let _: Router = Router::new().task("orders.create", create).with_state(Db);
}
