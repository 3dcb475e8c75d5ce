use campanile::{Router, State};
use std::sync::{Arc, Mutex};

async fn count(State(total): State<Arc<Mutex<u64>>>) {
    let mut total = total.lock().unwrap();
    tokio::task::yield_now().await;
    *total += 1;
}

fn main() {
    let _: Router = Router::new().task("count", count).with_state(Arc::default());
}
