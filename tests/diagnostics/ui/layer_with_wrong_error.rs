use campanile::{Message, Reply, Router, routing::Route};
use std::task::{Context, Poll};
use tower::{Service, layer::layer_fn};

async fn create() {}

/// It implements no `std::error::Error`.
struct Problem;

#[derive(Clone)]
struct Checked(Route);

impl Service<Message> for Checked {
    type Response = Reply;
    type Error = Problem;
    type Future = std::future::Ready<Result<Reply, Problem>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Problem>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Message) -> Self::Future {
        std::future::ready(Err(Problem))
    }
}

fn main() {
    let _ = Router::<()>::new().task("orders.create", create).layer(layer_fn(Checked));
}
