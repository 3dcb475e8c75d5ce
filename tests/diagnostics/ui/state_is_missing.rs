use campanile::{IntoService, Router, State};

#[derive(Clone)]
struct Db;

async fn create(State(db): State<Db>) {
    let _ = db;
}

// As `campanile::serve` and `Client::new` take it.
fn serve(app: impl IntoService) {
    let _ = app;
}

fn main() {
    serve(Router::<Db>::new().task("orders.create", create));
}
