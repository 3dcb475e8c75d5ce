//! The programs of the simulated processes: workers and senders.

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
    ledger::{JobId, Ledger, ProcessId, group_name},
    locations::{LIMIT, LIMIT_KEY, STREAMS},
    network::{Dialer, Network},
    rules::HandlerResult,
    scenario::{Behavior, JobSpec, Scenario},
};
use crate::{
    BoxError, Client, Failure, Kind, Message, Outbox, Parts, Reply,
    message::Lease,
    serve,
    sync::lock,
    transport::{
        Limit, Permit, Start, UnknownNames,
        redis::{Redis, server::Connector},
    },
};

/// The environment of a process.
#[derive(Clone)]
pub(super) struct ProcessContext {
    pub(super) id: ProcessId,
    pub(super) network: Arc<Mutex<Network>>,
    pub(super) ledger: Arc<Mutex<Ledger>>,
    pub(super) scenario: Arc<Scenario>,
    /// Becomes `true` when the process must shut down.
    pub(super) stop: watch::Receiver<bool>,
}

/// The time for which records are kept. Longer than a simulation.
const RECORD_LIFETIME: Duration = Duration::from_secs(86_400);
/// The number of messages with the limit that may run at once in a group.
const PERMITS: usize = 2;

/// The timeout of requests.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

impl ProcessContext {
    /// Connects, and retries without limit.
    async fn connect(&self, upkeep: &Handle) -> Redis {
        loop {
            let dialer = Dialer {
                network: self.network.clone(),
                owner: self.id,
                upkeep: upkeep.clone(),
            };
            let url = match self.scenario.is_cluster {
                true => "redis+cluster://simulation/",
                false => "redis://simulation/",
            };
            match Redis::with_connector(Connector::simulated(url, dialer)).await {
                Ok(redis) => return redis,
                Err(_) => sleep(Duration::from_millis(500)).await,
            }
        }
    }

    /// Runs a worker: an application under the real `serve`.
    pub(super) async fn work(self, upkeep: Handle) {
        let group = lock(&self.ledger).workers[&self.id].group;
        let scenario = self.scenario.clone();
        let lease = scenario.lease;
        loop {
            let redis = self.connect(&upkeep).await;
            let redis = match scenario.streams {
                1 => redis.stream(STREAMS[0]),
                several => redis.streams(scenario.policy.stream_set(several)),
            };
            let redis = redis
                .group(group_name(group))
                .start(Start::Beginning)
                .unknown_names(UnknownNames::Fail)
                .lease(lease)
                .max_deliveries(scenario.max_deliveries)
                .max_in_flight(scenario.max_in_flight)
                .backoff(crate::transport::Backoff::exponential(
                    Duration::from_millis(500),
                    Duration::from_secs(4),
                ));
            let context = self.clone();
            let limit = redis.limit(LIMIT).expect("it is a name");
            let app = service_fn(move |message| context.clone().handle(message, limit.clone()));
            let mut stop = self.stop.clone();
            let stop = async move { drop(stop.wait_for(|stop| *stop).await) };
            let served = serve(
                redis,
                crate::WithInterest::new(app, crate::transport::Interest::stream()),
            )
            .with_graceful_shutdown(stop)
            .shutdown_timeout(3 * lease)
            .await;
            if served.is_ok() || *self.stop.borrow() {
                return;
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// Handles a job as the scenario says, and records it in the ledger.
    async fn handle(self, message: Message, limit: Limit) -> Result<Reply, BoxError> {
        let parts = message.parts();
        let job: JobId = std::str::from_utf8(message.payload())?.trim_end().parse()?;
        let spec = &self.scenario.jobs[job as usize];
        let is_request = parts.kind == Kind::Rpc;
        if parts.stream.as_deref() != Some(STREAMS[spec.stream]) {
            let stream = &parts.stream;
            lock(&self.ledger).fail(format_args!("job {job} is delivered as one of {stream:?}"));
        }
        // Without a permit the handler does not start.
        let lease = parts.lease.clone().expect("a delivery has one");
        let _permit = match spec.limited {
            true => Some(self.take_permit(&limit, parts, job, &lease).await?),
            false => None,
        };
        let earlier_starts =
            lock(&self.ledger).handler_started(self.id, job, parts.attempt.0, lease);
        let follow_up = spec.follow_up;
        let handler = &spec.handler;
        let behavior = handler.behavior(earlier_starts);
        if behavior == Behavior::KillsProcess {
            // The simulation kills the process at the process's next turn. The handler must do
            // nothing until then.
            lock(&self.ledger).killed_by_handlers.insert(self.id);
            std::future::pending::<()>().await;
        }
        sleep(handler.duration).await;
        // The result that the ledger records, and the failure that says the same to `serve`.
        let (result, failure) = match behavior {
            Behavior::Succeeds => {
                if let Some(follow_up) = follow_up {
                    self.send_follow_up(parts, follow_up).await?;
                }
                lock(&self.ledger).handler_ended(self.id, job, HandlerResult::Done);
                return Ok(Reply::new(job.to_string()));
            }
            // A request whose handler panics is answered immediately with an error, so it is done.
            Behavior::Panics if is_request => (HandlerResult::Done, Failure::discard()),
            Behavior::Fails | Behavior::Panics | Behavior::KillsProcess => (
                HandlerResult::Redeliver {
                    after: None,
                    counted: true,
                },
                Failure::redeliver(),
            ),
            Behavior::FailsWithDelay(wait) => (
                HandlerResult::Redeliver {
                    after: Some(wait),
                    counted: true,
                },
                Failure::redeliver_after(wait),
            ),
            Behavior::Sheds(wait) => {
                let failure = Failure::redeliver_after(wait).uncounted();
                (
                    HandlerResult::Redeliver {
                        after: Some(wait),
                        counted: false,
                    },
                    failure,
                )
            }
            Behavior::DeadLetters => (HandlerResult::DeadLetter, Failure::dead_letter()),
            Behavior::Discards => (HandlerResult::Discard, Failure::discard()),
        };
        lock(&self.ledger).handler_ended(self.id, job, result);
        if behavior == Behavior::Panics {
            // Does not call the panic hook, which would print a message.
            std::panic::resume_unwind(Box::new("a handler's panic"));
        }
        Err(failure.into())
    }

    /// Takes a permit for a job, or parks the job.
    async fn take_permit(
        &self,
        limit: &Limit,
        parts: &Parts,
        job: JobId,
        lease: &Lease,
    ) -> Result<Permit, Failure> {
        let (result, failure) = match limit.acquire(parts, LIMIT_KEY, PERMITS).await {
            Ok(Ok(permit)) => return Ok(permit),
            Ok(Err(request)) => (HandlerResult::Park, Failure::park(request)),
            Err(_) => {
                let uncounted = HandlerResult::Redeliver {
                    after: None,
                    counted: false,
                };
                (uncounted, Failure::redeliver().uncounted())
            }
        };
        if !lease.is_lost() {
            lock(&self.ledger).handler_refused(self.id, job, result);
        }
        Err(failure)
    }

    /// Adds a follow-up to the outbox of a delivery.
    async fn send_follow_up(&self, parts: &Parts, job: JobId) -> Result<(), BoxError> {
        let spec = &self.scenario.jobs[job as usize];
        let outbox = Outbox::of_delivery(parts).expect("a task has one");
        let call = outbox.enqueue(spec.name(), spec.payload());
        let call = call.delay(spec.delay.unwrap_or_default());
        match spec.tracked {
            true => call.tracked(RECORD_LIFETIME).await?,
            false => call.await?,
        };
        Ok(())
    }

    /// Runs a sender: sends its jobs one after the other, and waits for each.
    ///
    /// The sender never sends two jobs at the same time, because the order in which tokio wakes
    /// several waiters does not follow from the seed.
    pub(super) async fn send(self, upkeep: Handle) {
        let client = self.connect(&upkeep).await.group(group_name(0));
        let client = Client::new(client).request_timeout(REQUEST_TIMEOUT);
        for spec in &self.scenario.jobs {
            if spec.sender != self.id || spec.parent.is_some() {
                continue;
            }
            sleep(spec.pause).await;
            match spec.request {
                true => self.request(&client, spec).await,
                false => self.enqueue(&client, spec).await,
            }
        }
    }

    async fn request(&self, client: &Client<Redis>, spec: &JobSpec) {
        let job = spec.job;
        {
            let mut ledger = lock(&self.ledger);
            let (due, deadline) = (
                ledger.now,
                ledger.now + REQUEST_TIMEOUT.as_millis() as u64 - 1_000,
            );
            ledger.job_sending(job, due, Some(deadline));
        }
        let request = client.request::<String>("job", spec.payload());
        let reply = request.stream(STREAMS[spec.stream]).await;
        let mut ledger = lock(&self.ledger);
        match reply {
            Ok(reply) => ledger.reply_received(job, &reply),
            Err(error) => ledger.request_failed(job, &error),
        }
    }

    async fn enqueue(&self, client: &Client<Redis>, spec: &JobSpec) {
        loop {
            let delay = spec.delay.unwrap_or_default();
            {
                let mut ledger = lock(&self.ledger);
                let due = ledger.now + delay.as_millis() as u64;
                ledger.job_sending(spec.job, due, None);
            }
            let call = client.enqueue(spec.name(), spec.payload());
            let mut call = call.stream(STREAMS[spec.stream]).delay(delay);
            if spec.resends {
                call = call.idempotency_key(format!("job {}", spec.job));
            }
            if spec.tracked {
                call = call.tracked(RECORD_LIFETIME);
            }
            match timeout(Duration::from_secs(60), call).await {
                Ok(Ok(_)) => return lock(&self.ledger).job_accepted(spec.job),
                _ if spec.resends => sleep(Duration::from_millis(200)).await,
                // The job may be on the server nevertheless.
                _ => return,
            }
        }
    }
}
