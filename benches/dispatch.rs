//! The cost of a message in this process: from the service that `serve` calls to the handler and
//! back, through three layers and a router, with no transport.
//!
//! ```sh
//! cargo bench --bench dispatch
//! # The instructions of 10,000 messages over 100 routes: "Collected" by callgrind.
//! valgrind --tool=callgrind --toggle-collect='*counted*' --callgrind-out-file=/dev/null \
//!     target/release/deps/dispatch-<hash> --count 100 10000
//! ```
//!
//! *Ours* is a router of N tasks with a `Json` handler, inside three layers of tower: a concurrency
//! limit, a timeout and a mapping. *Raw* is the smallest replacement of this router: a `HashMap`
//! from names to functions that read the JSON and return a boxed future. Figures are medians of
//! alternating rounds. Allocations are counted, not sampled. The cost of a message must not depend
//! on the number of routes.

mod cost;

use std::{collections::HashMap, future::Future, hint::black_box, pin::Pin, time::Duration};

use bytes::Bytes;
use campanile::{BoxError, Json, Kind, Message, Reply, Router};
use cost::{Cost, measure, median};
use serde::Deserialize;
use tokio::runtime::Runtime;
use tower::{Service, ServiceBuilder, ServiceExt};

const ROUTES: [usize; 3] = [10, 100, 10_000];
const PAYLOAD: &[u8] = br#"{"id":7,"user_id":42,"title":"a title"}"#;

#[derive(Debug, Deserialize)]
struct Order {
    id: u64,
    user_id: u64,
    title: String,
}

async fn create(Json(order): Json<Order>) {
    black_box((order.id, order.user_id, order.title));
}

fn name(route: usize) -> String {
    format!("orders.create-{route}")
}

fn app(routes: usize) -> Router {
    let layers = ServiceBuilder::new()
        .concurrency_limit(1024)
        .timeout(Duration::from_secs(30))
        .map_request(|message: Message| message);
    (0..routes)
        .fold(Router::new(), |router, route| {
            router.task(name(route), create)
        })
        .layer(layers)
}

type HandlerFuture = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;
type Handler = Box<dyn Fn(Bytes) -> HandlerFuture>;

fn table(routes: usize) -> HashMap<String, Handler> {
    (0..routes)
        .map(|route| {
            let handler: Handler = Box::new(|payload| {
                Box::pin(async move {
                    create(Json(serde_json::from_slice(&payload)?)).await;
                    Ok(())
                })
            });
            (name(route), handler)
        })
        .collect()
}

fn main() {
    let runtime = cost::runtime();
    let words: Vec<_> = std::env::args().collect();
    if let [_, option, routes, messages] = &words[..]
        && option == "--count"
    {
        let number = |word: &str| word.parse().expect("two numbers follow --count");
        return count(&runtime, number(routes), number(messages));
    }
    let (rounds, messages) = cost::extent();

    println!(
        "{:>7} {:>9} {:>11} {:>9} {:>11} {:>7}",
        "routes", "raw ns", "raw allocs", "ours ns", "ours allocs", "ratio"
    );
    for routes in ROUTES {
        // The messages use all routes in turn, so that the branch predictor and the cache cannot
        // adapt to one route.
        let names = names(routes, messages);
        let (mut raw, mut ours) = (Vec::new(), Vec::new());
        let (table, app) = (table(routes), runtime.block_on(async { app(routes) }));
        for _ in 0..rounds {
            raw.push(baseline(&runtime, &table, &names));
            ours.push(dispatch(&runtime, &app, &names));
        }
        let (raw, ours) = (median(raw), median(ours));
        println!(
            "{routes:>7} {:>9.0} {:>11.1} {:>9.0} {:>11.1} {:>7.2}",
            raw.nanoseconds,
            raw.allocations,
            ours.nanoseconds,
            ours.allocations,
            ours.nanoseconds / raw.nanoseconds,
        );
    }
}

fn names(routes: usize, messages: usize) -> Vec<String> {
    (0..messages).map(|n| name(n * 7919 % routes)).collect()
}

/// Handles `messages` messages once, for a tool that counts instructions.
fn count(runtime: &Runtime, routes: usize, messages: usize) {
    let app = runtime.block_on(async { app(routes) });
    let names = names(routes, messages);
    counted(runtime, &app, self::messages(&names));
}

/// The function whose instructions valgrind counts, with the command above.
#[inline(never)]
fn counted<S>(runtime: &Runtime, app: &S, messages: Vec<Message>)
where
    S: Service<Message, Response = Reply, Error = BoxError> + Clone,
{
    runtime.block_on(async {
        for message in messages {
            handle(app, message).await;
        }
    });
}

fn baseline(runtime: &Runtime, table: &HashMap<String, Handler>, names: &[String]) -> Cost {
    let messages: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), Bytes::from_static(PAYLOAD)))
        .collect();
    measure(runtime, messages, async |(name, payload)| {
        table[name](payload).await.expect("the message is handled");
    })
}

fn dispatch<S>(runtime: &Runtime, app: &S, names: &[String]) -> Cost
where
    S: Service<Message, Response = Reply, Error = BoxError> + Clone,
{
    measure(runtime, messages(names), async |message| {
        handle(app, message).await;
    })
}

fn messages(names: &[String]) -> Vec<Message> {
    let message = |name: &String| Message::new(Kind::Task, &**name, Bytes::from_static(PAYLOAD));
    names.iter().map(message).collect()
}

/// The steps of `serve` for each message: clone the service, await its readiness, call it.
async fn handle<S>(app: &S, message: Message)
where
    S: Service<Message, Response = Reply, Error = BoxError> + Clone,
{
    black_box(
        app.clone()
            .oneshot(message)
            .await
            .expect("the message is handled"),
    );
}
