//! A shop whose work is done by jobs. The page `docs/jobs.md` explains each of them.

use std::time::Duration;

use campanile::{
    Attempt, BoxError, Checkpoint, Client, Error, Json, Lease, MessageService, Outbox, Progress,
    Receipt, Router,
    contract::{Event, Task},
    schedule::{Schedule, ScheduledTask},
    transport::{Limit, Tasks},
};
use campanile_middleware::{SharedLimitLayer, key};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

const HOUR: Duration = Duration::from_secs(3600);
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
const CANCELLED: &str = "the customer has cancelled it";

/// Starts all that an order needs.
pub const PLACE: Task<Order> = Task::new("orders.place")
    .about("Starts all that an order needs.")
    .with_schema();
/// An order is placed.
pub const PLACED: Event<u64> = Event::new("orders.placed");
/// Takes the money.
pub const PAY: Task<Order> = Task::new("orders.pay")
    .about("Takes the money, once at a time for each customer.")
    .with_schema();
/// Packs an order.
pub const PACK: Task<u64> = Task::new("orders.pack")
    .about("Packs an order, unless it is cancelled.")
    .with_schema();
/// Asks the customer for a review.
pub const REVIEW: Task<u64> = Task::new("orders.review")
    .about("Asks the customer for a review.")
    .with_schema();
/// Makes the invoice of an order.
pub const INVOICE: Task<u64> = Task::new("invoices.make")
    .about("Makes the invoice of an order.")
    .with_schema();
/// Imports this number of pages.
pub const IMPORT: Task<u32> = Task::new("catalogue.import")
    .about("Imports this number of pages of the supplier's catalogue.")
    .with_schema();

/// An order of a customer.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
pub struct Order {
    /// The number of the order.
    pub id: u64,
    /// The number of the customer.
    pub customer: u64,
}

/// Starts all that an order needs. The outbox is sent in one step with the acknowledgement: all of
/// it once, or nothing.
async fn place(outbox: Outbox, Json(order): Json<Order>) -> Result<(), Error> {
    let id = order.id;
    let payment = outbox.enqueue(PAY, order);
    payment
        .header("x-customer", order.customer)
        .unique(format!("pay {id}"))
        .await?;
    request_invoice(&Client::new(outbox.clone()), id).await?;
    let review = outbox.enqueue(REVIEW, id);
    review.unique(format!("review {id}")).delay(WEEK).await?;
    outbox.publish(PLACED, id).await?;
    outbox.increment("orders", 1)?;
    println!("order {id}: placed by customer {}", order.customer);
    Ok(())
}

/// Asks for the invoice of an order. While the invoice is being made, a further request is a
/// duplicate.
///
/// # Errors
/// If the task cannot be stored.
pub async fn request_invoice<S>(client: &Client<S>, id: u64) -> Result<Receipt, Error>
where
    S: MessageService + Clone,
{
    let invoice = client.enqueue(INVOICE, id);
    invoice.unique(format!("invoice {id}")).await
}

async fn make_invoice(Json(id): Json<u64>) {
    sleep(Duration::from_millis(300)).await;
    println!("order {id}: its invoice is made");
}

/// Runs once at a time for each customer, over all workers: see [`app`].
async fn pay(outbox: Outbox, Json(order): Json<Order>) -> Result<(), Error> {
    sleep(Duration::from_millis(300)).await;
    println!("order {}: paid", order.id);
    let packing = outbox.enqueue(PACK, order.id);
    packing.unique(format!("pack {}", order.id)).await?;
    Ok(())
}

/// Packs an order. If the order is cancelled, this handler ends by itself, so that it can put the
/// items back first.
async fn pack(lease: Lease, Json(id): Json<u64>) {
    let cancelled = lease.token();
    for item in 1..=3 {
        tokio::select! {
            () = sleep(Duration::from_millis(500)) => {}
            () = cancelled.cancelled() => {
                let reason = lease.cancelled().unwrap_or("another worker packs it");
                return println!("order {id}: not packed, stopped at item {item}: {reason}");
            }
        }
    }
    println!("order {id}: packed");
}

async fn ask_for_a_review(Json(id): Json<u64>) {
    println!("order {id}: please review it");
}

/// Cancels an order that is not packed yet. Returns `false` if there is no such order.
///
/// # Errors
/// If the tasks cannot be reached.
pub async fn cancel_order(tasks: &Tasks, id: u64) -> Result<bool, Error> {
    let mut cancelled = None;
    // Cancels the tasks in the order in which they are sent. So no task is sent after this function
    // has looked for it.
    for step in ["pay", "pack"] {
        let key = format!("{step} {id}").into();
        cancelled = cancelled.or(tasks.cancel_key(&key, CANCELLED).await?);
    }
    if cancelled.is_some() {
        let key = format!("review {id}").into();
        tasks.cancel_key(&key, CANCELLED).await?;
    }
    Ok(cancelled.is_some())
}

/// Imports the pages of the supplier's catalogue. An attempt starts at the page where the previous
/// attempt failed. Returns the number of pages that the last attempt has imported.
async fn import(
    attempt: Attempt,
    progress: Progress,
    checkpoint: Checkpoint,
    Json(pages): Json<u32>,
) -> Result<Json<u32>, BoxError> {
    let first: u32 = checkpoint.load().await?.unwrap_or_default();
    for page in first..pages {
        fetch_page(page, attempt).await?;
        checkpoint.save(page + 1).await?;
        progress.set((page + 1, pages))?;
    }
    Ok(Json(pages - first))
}

/// Stands for a supplier whose server fails once, at the third page.
async fn fetch_page(page: u32, attempt: Attempt) -> Result<(), BoxError> {
    sleep(Duration::from_millis(50)).await;
    match (page, attempt) {
        (2, Attempt(1)) => Err("the supplier's server is restarted".into()),
        _ => Ok(()),
    }
}

async fn report() {
    println!("report: made");
}

async fn clean_up() {
    sleep(Duration::from_millis(300)).await;
    println!("clean-up: done");
}

/// The schedules, which send tasks again and again. Run them beside each worker.
pub fn schedules() -> [ScheduledTask; 2] {
    let nightly = Schedule::cron("0 3 * * *").in_zone("Europe/Berlin");
    let hourly = Schedule::every(HOUR);
    [
        ScheduledTask::new("nightly report", nightly, "report", ()),
        ScheduledTask::new("clean up", hourly, "clean_up", ()).skip_while_running(),
    ]
}

/// The application. All its workers share the limit of payments.
pub fn app(payments: Limit) -> Router {
    let one_payment = SharedLimitLayer::concurrency(payments, 1, key::header("x-customer"));
    Router::new()
        .task(PLACE, place)
        .merge(Router::new().task(PAY, pay).layer(one_payment))
        .task(PACK, pack)
        .task(REVIEW, ask_for_a_review)
        .task(INVOICE, make_invoice)
        .task(IMPORT, import)
        .task("report", report)
        .task("clean_up", clean_up)
}
