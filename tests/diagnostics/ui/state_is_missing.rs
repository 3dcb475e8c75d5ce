use campanile::{Router, State, serve, transport::memory::Memory};

#[derive(Clone)]
struct Db;

async fn create(State(db): State<Db>) {
    let _ = db;
}

fn main() {
    let _ = serve(Memory::new(), Router::<Db>::new().task("orders.create", create));
}
