//! What runs in the processes: workers that serve, and a sender.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::watch,
    time::{sleep, timeout},
};
use tower::service_fn;

use super::{
    book::{Book, Job, WorkerId, group_name},
    network::{Dialer, Network},
    places::STREAM,
    plan::{Order, Trouble},
    rules::Said,
};
use crate::{
    BoxError, Client, Failure, Kind, Message, Reply, serve,
    sync::lock,
    transport::{
        Start, UnknownNames,
        redis::{Redis, server::Connector},
    },
};

/// What a process is given.
#[derive(Clone)]
pub(super) struct Surroundings {
    pub(super) me: WorkerId,
    pub(super) network: Arc<Mutex<Network>>,
    pub(super) book: Arc<Mutex<Book>>,
    pub(super) orders: Arc<Vec<Order>>,
    pub(super) max_in_flight: usize,
    /// Whether it is to end.
    pub(super) stop: watch::Receiver<bool>,
}

/// How long a request waits for its reply.
const REPLIED: Duration = Duration::from_secs(30);

impl Surroundings {
    /// Connects, however long that takes.
    async fn connect(&self, upkeep: &Handle) -> Redis {
        loop {
            let dialer = Dialer {
                network: self.network.clone(),
                owner: self.me,
                upkeep: upkeep.clone(),
            };
            match Redis::over(Connector::simulated(dialer)).await {
                Ok(redis) => return redis.stream(STREAM),
                Err(_) => sleep(Duration::from_millis(500)).await,
            }
        }
    }

    /// A worker: what an application does, with the real serving half.
    pub(super) async fn work(self, upkeep: Handle) {
        let group = lock(&self.book).workers[&self.me].group;
        let (lease, most) = {
            let book = lock(&self.book);
            (Duration::from_millis(book.lease), book.most)
        };
        loop {
            let redis = self.connect(&upkeep).await;
            let redis = redis
                .group(group_name(group))
                .start(Start::Beginning)
                .unknown_names(UnknownNames::Fail)
                .lease(lease)
                .max_deliveries(most)
                .max_in_flight(self.max_in_flight)
                .backoff(Duration::from_millis(500), Duration::from_secs(4));
            let surroundings = self.clone();
            let app = service_fn(move |message| surroundings.clone().handle(message));
            let mut stop = self.stop.clone();
            let stop = async move { drop(stop.wait_for(|stop| *stop).await) };
            let served = serve(redis, app)
                .with_graceful_shutdown(stop)
                .shutdown_deadline(3 * lease)
                .await;
            if served.is_ok() || *self.stop.borrow() {
                return;
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// The handler: does what the plan says of the job, and writes it into the book.
    async fn handle(self, message: Message) -> Result<Reply, BoxError> {
        let parts = message.parts();
        let job: Job = std::str::from_utf8(message.payload())?.trim_end().parse()?;
        let is_request = parts.kind == Kind::Rpc;
        let lease = parts.lease.clone().expect("a delivery has one");
        let before = lock(&self.book).start(self.me, job, parts.attempt.0, lease);
        let work = &self.orders[job as usize].work;
        let trouble = work.end(before);
        if trouble == Trouble::Dies {
            // What a process does in its last milliseconds is nothing.
            lock(&self.book).doomed.insert(self.me);
            std::future::pending::<()>().await;
        }
        sleep(work.takes).await;
        let (said, failure) = match trouble {
            Trouble::None => {
                lock(&self.book).end(self.me, job, Said::Done);
                return Ok(Reply::new(job.to_string()));
            }
            // Whoever waits is told so at once.
            Trouble::Panics if is_request => (Said::Done, Failure::discard()),
            Trouble::Fails | Trouble::Panics | Trouble::Dies => (
                Said::Again {
                    after: None,
                    counted: true,
                },
                Failure::redeliver(),
            ),
            Trouble::FailsFor(wait) => (
                Said::Again {
                    after: Some(wait),
                    counted: true,
                },
                Failure::redeliver_after(wait),
            ),
            Trouble::Shed(wait) => {
                let failure = Failure::redeliver_after(wait).uncounted();
                (
                    Said::Again {
                        after: Some(wait),
                        counted: false,
                    },
                    failure,
                )
            }
            Trouble::DeadLetter => (Said::Dead, Failure::dead_letter()),
            Trouble::Discards => (Said::Discard, Failure::discard()),
        };
        lock(&self.book).end(self.me, job, said);
        if trouble == Trouble::Panics {
            // Without the message that a panic prints.
            std::panic::resume_unwind(Box::new("a handler's panic"));
        }
        Err(failure.into())
    }

    /// A sender: sends its orders one after the other, and waits for each.
    ///
    /// Of several that wait at once tokio wakes any, by dice that are not the seed's.
    pub(super) async fn send(self, upkeep: Handle) {
        let client = Client::new(self.connect(&upkeep).await).request_timeout(REPLIED);
        for order in self.orders.iter() {
            if order.sender != self.me {
                continue;
            }
            sleep(order.pause).await;
            match order.request {
                true => self.request(&client, order).await,
                false => self.enqueue(&client, order).await,
            }
        }
    }

    async fn request(&self, client: &Client<Redis>, order: &Order) {
        let job = order.job;
        {
            let mut book = lock(&self.book);
            let (due, deadline) = (book.now, book.now + REPLIED.as_millis() as u64 - 1_000);
            book.sending(job, due, Some(deadline));
        }
        let reply = client.request::<String>("job", order.payload()).await;
        let mut book = lock(&self.book);
        match reply {
            Ok(reply) => book.replied(job, &reply),
            Err(error) => book.not_replied(job, &error),
        }
    }

    async fn enqueue(&self, client: &Client<Redis>, order: &Order) {
        loop {
            let delay = order.delay.unwrap_or_default();
            {
                let mut book = lock(&self.book);
                let due = book.now + delay.as_millis() as u64;
                book.sending(order.job, due, None);
            }
            let mut call = client.enqueue("job", order.payload()).delay(delay);
            if order.insists {
                call = call.idempotency_key(format!("job {}", order.job));
            }
            match timeout(Duration::from_secs(60), call).await {
                Ok(Ok(_)) => return lock(&self.book).accepted(order.job),
                _ if order.insists => sleep(Duration::from_millis(200)).await,
                // It may be there all the same.
                _ => return,
            }
        }
    }
}
