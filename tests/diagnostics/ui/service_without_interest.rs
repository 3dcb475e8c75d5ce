use campanile::{Router, serve, transport::memory::Memory};
use tower::ServiceBuilder;

async fn heard() {}

fn main() {
    let router: Router = Router::new().event("orders.created", heard);
    let app = ServiceBuilder::new().concurrency_limit(10).service(router);
    let _ = serve(Memory::new(), app);
}
