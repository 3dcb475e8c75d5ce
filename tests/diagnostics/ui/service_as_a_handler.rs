use campanile::{Router, transport::memory::Memory};

fn main() {
    let _ = Router::<()>::new().task("orders.create", Memory::new());
}
