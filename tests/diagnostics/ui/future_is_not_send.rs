use campanile::Router;

async fn create() {
    let local = std::rc::Rc::new(1);
    tokio::task::yield_now().await;
    drop(local);
}

fn main() {
    let _ = Router::<()>::new().task("orders.create", create);
}
