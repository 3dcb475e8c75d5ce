//! Helpers for checks: a new stream, its workers, and assertions.

use std::{collections::HashMap, fmt::Debug, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{task::JoinHandle, time::timeout};
use tower::ServiceExt;
use uuid::Uuid;

use super::Factory;
use crate::{
    error::{Error, RpcError},
    message::{Message, MessageId, Name},
    reply::Reply,
    transport::{
        Backoff, DeadLetter, DeadLetters, Delivery, Interest, Page, Settings, SettleDelivery,
        Source, Start, Transport, UnknownNames, Verdict, WorkerMonitor,
    },
};

/// The maximum time that a check waits for one operation.
const MAX_WAIT: Duration = Duration::from_secs(20);
/// If nothing happens for this time, a check concludes that nothing will happen.
pub(super) const QUIET: Duration = Duration::from_millis(300);
/// A short lease, for checks that wait until a lease ends.
pub(super) const LEASE: Duration = Duration::from_secs(1);

/// A worker of a factory's transport.
pub(super) type WorkerOf<F> = OpenSource<<<F as Factory>::Handle as Transport>::Source>;

/// The stream of one check, and the settings of its workers. No other check uses the stream.
pub(super) struct Scene<'a, F> {
    factory: &'a F,
    pub(super) settings: Settings,
}

impl<'a, F: Factory> Scene<'a, F> {
    pub(super) fn new(factory: &'a F) -> Self {
        let settings = Settings {
            stream: Name::from(format!("conformance-{}", Uuid::new_v4().simple())),
            group: Name::from_static("workers"),
            unknown_names: Some(UnknownNames::Fail),
            backoff: Backoff::exponential(Duration::from_millis(10), Duration::from_millis(50)),
            ..Settings::default()
        };
        Self { factory, settings }
    }

    /// Changes the settings.
    pub(super) fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// Returns a scene on the same stream with another group.
    pub(super) fn with_group(&self, group: &str, start: Start) -> Self {
        let mut settings = self.settings.clone();
        settings.group = group.into();
        settings.start = start;
        Self {
            factory: self.factory,
            settings,
        }
    }

    /// Returns a name that no other check uses.
    pub(super) fn name(&self, name: &str) -> Name {
        Name::from(format!("{}.{name}", self.settings.stream))
    }

    /// Connects a new handle with the settings of the scene.
    pub(super) async fn handle(&self) -> F::Handle {
        let connecting = self.factory.connect(self.settings.clone());
        must("connecting", connecting).await
    }

    /// Returns a worker for the stream.
    pub(super) async fn worker(&self) -> WorkerOf<F> {
        self.worker_for(Interest::stream()).await
    }

    /// Returns a worker for the messages of this interest.
    pub(super) async fn worker_for(&self, interest: Interest) -> WorkerOf<F> {
        let opening = self.handle().await.open(interest);
        OpenSource(must("opening the source", opening).await)
    }

    /// Asserts that opening a source fails, and returns the error.
    pub(super) async fn refused_worker(&self) -> Error {
        match in_time(
            "opening the source",
            self.handle().await.open(Interest::stream()),
        )
        .await
        {
            Ok(_) => panic!("opening the source should have failed"),
            Err(error) => error,
        }
    }

    /// Sends a task with this payload.
    pub(super) async fn send_task(&self, payload: impl Into<Bytes>) -> MessageId {
        let handle = self.handle().await;
        send(&handle, Message::task("task", payload)).await
    }

    /// Adds an entry with these fields to the stream, as a program without this library would.
    pub(super) async fn add_raw(&self, fields: &[(&str, &[u8])]) {
        let fields = fields
            .iter()
            .map(|(field, value)| {
                (
                    Bytes::copy_from_slice(field.as_bytes()),
                    Bytes::copy_from_slice(value),
                )
            })
            .collect();
        must(
            "adding a raw entry",
            self.factory.add_raw(&self.settings.stream, fields),
        )
        .await;
    }

    /// Cancels a delayed task. Returns `false` if there is no delayed task with this id.
    pub(super) async fn cancel(&self, handle: &F::Handle, id: &MessageId) -> bool {
        let tasks = self.factory.tasks(handle);
        let tasks = tasks.expect("the factory declares `delayed_tasks` and gives no `tasks`");
        must("cancelling", tasks.cancel(id, "")).await
    }

    /// Returns the group's dead letters, if the transport has the capability.
    pub(super) async fn dead_letters(&self) -> Option<DeadLetters> {
        if !self.factory.capabilities().dead_letters {
            return None;
        }
        let dead = self.factory.dead_letters(&self.handle().await);
        Some(dead.expect(
            "with the capability `dead_letters` the factory's method `dead_letters` must return `Some`",
        ))
    }

    /// Lists the dead letters, if the transport has the capability.
    pub(super) async fn list_dead_letters(&self) -> Option<Vec<DeadLetter>> {
        let list = self.dead_letters().await?;
        let page = must("listing the dead letters", list.list(Page::first(1_000))).await;
        Some(page.letters)
    }
}

/// An open source, with assertions on its deliveries.
pub(super) struct OpenSource<S>(S);

impl<S: Source> OpenSource<S> {
    /// Returns at least one and at most `max` deliveries.
    pub(super) async fn batch(&mut self, max: usize) -> Vec<Delivery<S::Settle>> {
        let batch = must("waiting for a delivery", self.0.next(max)).await;
        assert!(!batch.is_empty(), "`next` returned without a delivery");
        assert!(
            batch.len() <= max,
            "`next({max})` returned {} deliveries",
            batch.len()
        );
        batch
    }

    /// Returns the next delivery.
    pub(super) async fn one(&mut self) -> Delivery<S::Settle> {
        self.batch(1).await.remove(0)
    }

    /// Returns exactly `count` deliveries, from any number of calls of `next`.
    pub(super) async fn exactly(&mut self, count: usize) -> Vec<Delivery<S::Settle>> {
        let mut deliveries = Vec::new();
        while deliveries.len() < count {
            deliveries.extend(self.batch(count - deliveries.len()).await);
        }
        deliveries
    }

    /// Returns the next delivery, or `None` if there is none within this time.
    pub(super) async fn within(&mut self, time: Duration) -> Option<Delivery<S::Settle>> {
        let next = timeout(time, self.0.next(1)).await.ok()?;
        let mut batch = next.unwrap_or_else(|error| panic!("`next` failed: {}", error.chain()));
        batch.pop()
    }

    /// Asserts that there is no delivery within this time. `why` is the text of the panic.
    pub(super) async fn nothing_for(&mut self, time: Duration, why: &str) {
        if let Some(delivery) = self.within(time).await {
            panic!("{why}: {:?}", delivery.content);
        }
    }

    /// Announces the source's worker, as `serve` does, and returns its monitor.
    pub(super) fn announce(&mut self, service: &str, routes: &[&str]) -> Arc<WorkerMonitor> {
        let monitor = WorkerMonitor::new(
            self.0
                .consumer()
                .expect("a source that is announced has a name"),
            self.0.settings(),
            &Interest::stream(),
            (service.to_owned(), "1.2.3".to_owned()),
            routes.iter().map(|route| route.to_string()).collect(),
        );
        let description = format!("routes of {service}");
        let monitor = Arc::new(monitor.described_as(Some(description)));
        self.0.monitor(monitor.clone());
        monitor
    }

    pub(super) async fn stop(&mut self) {
        in_time("stopping the source", self.0.stop()).await;
    }

    pub(super) async fn close(self) {
        must("closing the source", self.0.close()).await;
    }

    /// Drops the source without closing it, as a crash would.
    pub(super) fn vanish(self) {
        drop(self);
    }
}

/// Returns the message of a delivery.
pub(super) fn message<H>(delivery: &Delivery<H>) -> &Message {
    match &delivery.content {
        Ok(message) => message,
        Err(undecodable) => panic!(
            "a message was delivered as undecodable: {}",
            undecodable.reason
        ),
    }
}

/// Returns the name of the stream of a delivery.
pub(super) fn stream_of<H>(delivery: &Delivery<H>) -> Name {
    let stream = message(delivery).parts().stream.clone();
    stream.expect("a delivery names its stream")
}

pub(super) fn id<H>(delivery: &Delivery<H>) -> &MessageId {
    let id = message(delivery).parts().id.as_ref();
    id.expect("a delivery from the stream has an id")
}

pub(super) fn attempt<H>(delivery: &Delivery<H>) -> u32 {
    message(delivery).parts().attempt.0
}

pub(super) async fn settle<H: SettleDelivery>(delivery: Delivery<H>, verdict: Verdict) {
    must("settling", delivery.settle(verdict)).await;
}

/// Settles a delivery as done, with an empty reply.
pub(super) async fn done<H: SettleDelivery>(delivery: Delivery<H>) {
    settle(delivery, Verdict::Done(Ok(Reply::default()))).await;
}

/// Settles a request with this reply or error.
pub(super) async fn answer<H: SettleDelivery>(
    delivery: Delivery<H>,
    answer: Result<Reply, RpcError>,
) {
    settle(delivery, Verdict::Done(answer)).await;
}

/// Returns a verdict that redelivers after this time and counts the attempt.
pub(super) fn redeliver_after(after: Duration) -> Verdict {
    Verdict::Redeliver {
        after: Some(after),
        counted: true,
        reason: "it failed in a check".into(),
    }
}

pub(super) async fn call<S>(handle: &S, message: Message) -> Result<Reply, Error>
where
    S: tower::Service<Message, Response = Reply, Error = Error> + Clone,
{
    in_time("a call", handle.clone().oneshot(message)).await
}

/// Sends a task and returns its receipt.
pub(super) async fn send<S>(handle: &S, message: Message) -> MessageId
where
    S: tower::Service<Message, Response = Reply, Error = Error> + Clone,
{
    let reply = must("sending", call(handle, message)).await;
    let receipt = reply.receipt().cloned();
    receipt.expect("the reply to a task carries its receipt")
}

/// Sends a request, and waits for its reply in a new tokio task.
pub(super) fn spawn_request<S>(handle: &S, message: Message) -> JoinHandle<Result<Reply, Error>>
where
    S: tower::Service<Message, Response = Reply, Error = Error, Future: Send>
        + Clone
        + Send
        + 'static,
{
    tokio::spawn(handle.clone().oneshot(message))
}

/// Returns the outcome of a request.
pub(super) async fn outcome(request: JoinHandle<Result<Reply, Error>>) -> Result<Reply, Error> {
    in_time("waiting for a reply", request)
        .await
        .expect("a call does not panic")
}

/// Returns the value of an operation that must succeed in time. `what` names it in the panic.
pub(super) async fn must<T>(what: &str, work: impl Future<Output = Result<T, Error>>) -> T {
    in_time(what, work)
        .await
        .unwrap_or_else(|error| panic!("{what} failed: {}", error.chain()))
}

/// Returns the output of a future that must end within [`MAX_WAIT`]. `what` names it in the panic.
pub(super) async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    timeout(MAX_WAIT, work)
        .await
        .unwrap_or_else(|_| panic!("{what} took longer than {MAX_WAIT:?}"))
}

/// Asserts that `got` and `expected` have the same items, in any order. Repeated items must be
/// repeated equally often.
pub(super) fn assert_same<T: std::hash::Hash + Eq + Debug>(
    got: impl IntoIterator<Item = T>,
    expected: impl IntoIterator<Item = T>,
) {
    let mut balance = HashMap::<T, i64>::new();
    for item in got {
        *balance.entry(item).or_default() += 1;
    }
    for item in expected {
        *balance.entry(item).or_default() -= 1;
    }
    let missing: Vec<_> = balance.iter().filter(|(_, n)| **n < 0).collect();
    let surplus: Vec<_> = balance.iter().filter(|(_, n)| **n > 0).collect();
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "missing: {missing:?}, delivered too often: {surplus:?}"
    );
}
