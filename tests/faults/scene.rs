//! A server, its workers, a sender and the ledger.

use std::{collections::HashMap, ops::Range, time::Duration};

use campanile::{Client, Error, Json, Redis};
use redis::Value;

use crate::{
    SECOND,
    ledger::{Account, Ledger, What},
    support::{Options, RedisServer, raw},
    worker::{Job, Setup, WorkerProcess},
};

pub(crate) struct Scene {
    pub(crate) server: RedisServer,
    pub(crate) ledger: Ledger,
    /// The set-up of the workers.
    pub(crate) setup: Setup,
    /// The sender's handle.
    pub(crate) redis: Redis,
}

impl Scene {
    pub(crate) async fn new() -> Self {
        Self::with(Options::new()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let server = RedisServer::with(options).await;
        // The files are beside the server's data, so that a failed test leaves them in one place.
        let setup = Setup {
            url: server.url(),
            group: "workers".to_owned(),
            lease: SECOND,
            max_in_flight: 16,
            max_deliveries: 10,
            one_at_a_time: false,
            beside_others: false,
            schedule: None,
            partitions: None,
            ledger: server.dir().join("ledger"),
            log: server.dir().join("workers.log"),
        };
        Self {
            ledger: Ledger::open(&setup.ledger),
            redis: setup.redis().await,
            setup,
            server,
        }
    }

    /// Starts worker processes, and waits until they have joined the group.
    pub(crate) async fn workers(&self, count: usize) -> Vec<WorkerProcess> {
        let before = self.consumers().await.len();
        let workers: Vec<_> = (0..count)
            .map(|_| WorkerProcess::start(&self.setup))
            .collect();
        let joined = || async { (self.consumers().await.len() >= before + count).then_some(()) };
        raw::eventually(joined, 30 * SECOND).await;
        workers
    }

    /// The names of the group's consumers.
    pub(crate) async fn consumers(&self) -> Vec<String> {
        let command = ["XINFO", "CONSUMERS", "jobs", &self.setup.group];
        let Ok(found) = self.server.try_command(&command).await else {
            return Vec::new();
        };
        let found: Vec<HashMap<String, Value>> =
            redis::from_redis_value(found).expect("a list of consumers");
        let name = |mut consumer: HashMap<String, Value>| {
            redis::from_redis_value(consumer.remove("name")?).ok()
        };
        found.into_iter().filter_map(name).collect()
    }

    /// The stream's groups, and the number of entries that each has not finished. Before Redis 7.0,
    /// which does not know it, that is the length of the stream.
    pub(crate) async fn groups(&self) -> HashMap<String, usize> {
        let found: Vec<HashMap<String, Value>> =
            self.server.query(&["XINFO", "GROUPS", "jobs"]).await;
        let length = raw::len(&self.server, "jobs").await;
        let read = |mut group: HashMap<String, Value>| {
            let mut count = |field| redis::from_redis_value::<usize>(group.remove(field)?).ok();
            let backlog = match count("lag") {
                Some(lag) => count("pending")? + lag,
                None => length,
            };
            Some((
                redis::from_redis_value(group.remove("name")?).ok()?,
                backlog,
            ))
        };
        found.into_iter().filter_map(read).collect()
    }

    pub(crate) fn client(&self) -> Client<Redis> {
        Client::new(self.redis.clone())
    }

    /// Sends jobs, and records each of them. Returns the errors of those that the server did not
    /// confirm.
    pub(crate) async fn send(&self, name: &str, jobs: Range<u64>, ms: u64) -> Vec<Error> {
        let payloads = jobs.clone().map(|n| Json(Job { n, ms }));
        let results = self.client().enqueue_all(name.to_owned(), payloads).await;
        let mut failed = Vec::new();
        for (job, result) in jobs.zip(results) {
            match result {
                Ok(_) => self.ledger.write(What::Sent, job, 0),
                Err(error) => {
                    if error.is_unknown_outcome() {
                        self.ledger.write(What::Unsure, job, 0);
                    }
                    failed.push(error);
                }
            }
        }
        failed
    }

    /// Sends jobs. The server must accept all of them.
    pub(crate) async fn send_all(&self, name: &str, jobs: Range<u64>, ms: u64) {
        let failed = self.send(name, jobs, ms).await;
        assert!(failed.is_empty(), "{failed:?}");
    }

    /// Waits until the ledger meets a condition.
    #[track_caller]
    pub(crate) fn until(
        &self,
        limit: Duration,
        said: impl Fn(&Account) -> bool,
    ) -> impl Future<Output = Account> {
        let caller = std::panic::Location::caller();
        async move {
            let started = std::time::Instant::now();
            loop {
                let account = self.ledger.read();
                if said(&account) {
                    return account;
                }
                assert!(
                    started.elapsed() < limit,
                    "the condition at {caller} was not met within {limit:?}; unfinished: {:?}",
                    account.lost()
                );
                tokio::time::sleep(SECOND / 20).await;
            }
        }
    }

    /// Waits until `count` jobs are finished.
    #[track_caller]
    pub(crate) fn finished(&self, count: usize, limit: Duration) -> impl Future<Output = Account> {
        self.until(limit, move |account| {
            account.jobs(What::Finished).len() >= count
        })
    }

    /// Waits until all jobs that were sent are finished, and nothing is left on the server.
    #[track_caller]
    pub(crate) fn all_done(&self, limit: Duration) -> impl Future<Output = Account> {
        let finished = self.until(limit, |account| account.lost().is_empty());
        async move {
            finished.await;
            let settled = || async { (self.left().await == 0).then_some(()) };
            raw::eventually(settled, limit).await;
            self.ledger.read()
        }
    }

    /// The number of deliveries that are pending, or will be redelivered.
    pub(crate) async fn left(&self) -> usize {
        let group = &self.setup.group;
        let (retry, due) = (
            format!("{{jobs}}:retry:{group}"),
            format!("{{jobs}}:due:{group}"),
        );
        let due: usize = self.server.query(&["ZCARD", &due]).await;
        raw::pending(&self.server, "jobs", group).await
            + raw::pending(&self.server, &retry, group).await
            + raw::len(&self.server, &retry).await
            + due
    }

    /// The payloads of the follow-ups on the stream `next`, in the order in which they were stored.
    pub(crate) async fn follow_ups(&self) -> Vec<u64> {
        let entries: Vec<(String, Vec<(String, String)>)> =
            self.server.query(&["XRANGE", "next", "-", "+"]).await;
        let payload = |(_, fields): (String, Vec<(String, String)>)| {
            let payload = fields.into_iter().find(|(field, _)| field == "payload");
            let (_, number) = payload.expect("a task has a payload");
            number.parse().expect("the payload is a number")
        };
        entries.into_iter().map(payload).collect()
    }
}
