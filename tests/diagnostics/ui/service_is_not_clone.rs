use campanile::Router;
use std::time::Duration;
use tower::limit::RateLimitLayer;

async fn create() {}

fn main() {
    let one_a_second = RateLimitLayer::new(1, Duration::from_secs(1));
    let _ = Router::<()>::new().task("orders.create", create).layer(one_a_second);
}
