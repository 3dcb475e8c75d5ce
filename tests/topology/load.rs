//! A load during faults: tasks are sent to streams at a steady rate, workers handle them, and a
//! ledger records both.

use std::{
    ops::Range,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use campanile::{Client, Json, Redis, Router};
use tokio::{sync::watch, task::JoinHandle, time::sleep};

use crate::{
    FOUND, SECOND, scaled,
    support::{
        RedisServer,
        cluster::Cluster,
        ledger::{Account, Ledger, What, now},
        raw::{self, eventually},
        sentinel::SentinelGroup,
        worker::Worker,
    },
};

/// The group of the workers.
pub(crate) const GROUP: &str = "workers";
/// The number of job numbers that each sender may use.
const JOBS: u64 = 1_000_000;
/// The number of senders of each stream. A sender waits for the result of each send.
const SENDERS: u64 = 2;
/// The longest time until all tasks are settled: a lease of 10 s, another lease for which the
/// claiming worker must be healthy, and slack.
const SETTLED: Duration = Duration::from_secs(60);

/// A topology of servers, which finds the primary of a stream.
pub(crate) trait Servers {
    /// The primary of this stream.
    async fn primary_of(&self, stream: &str) -> &RedisServer;
}

impl Servers for Cluster {
    async fn primary_of(&self, stream: &str) -> &RedisServer {
        self.node(self.owner(stream).await)
    }
}

impl Servers for RedisServer {
    async fn primary_of(&self, _: &str) -> &RedisServer {
        self
    }
}

impl Servers for SentinelGroup {
    async fn primary_of(&self, _: &str) -> &RedisServer {
        self.server(self.primary().await)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Send,
    Pause,
    Stop,
}

/// A running load. There is one worker for each stream; all use one handle.
pub(crate) struct Load {
    ledger: Ledger,
    streams: Vec<String>,
    workers: Vec<Worker>,
    senders: Vec<JoinHandle<()>>,
    phase: watch::Sender<Phase>,
    failures: Arc<Mutex<Vec<String>>>,
}

impl Load {
    /// Starts the senders and the workers. Returns when tasks of every stream are handled. The
    /// ledger is written to `dir`.
    pub(crate) async fn start(redis: &Redis, streams: &[String], dir: &Path) -> Self {
        let (phase, phases) = watch::channel(Phase::Send);
        let mut load = Self {
            ledger: Ledger::open(&dir.join("ledger")),
            streams: streams.to_vec(),
            workers: Vec::new(),
            senders: Vec::new(),
            phase,
            failures: Arc::default(),
        };
        for (index, stream) in streams.iter().enumerate() {
            let redis = redis.clone().stream(stream.as_str()).group(GROUP);
            let worker = Worker::start(redis.clone(), app(load.ledger.clone()));
            load.workers.push(worker);
            for sender in 0..SENDERS {
                let jobs = jobs_of_stream(index).start + sender * JOBS;
                load.senders.push(tokio::spawn(send(
                    Client::new(redis.clone()),
                    jobs..jobs + JOBS,
                    load.ledger.clone(),
                    phases.clone(),
                    load.failures.clone(),
                )));
            }
        }
        load.until_work_goes_on(now()).await;
        load
    }

    /// Waits until a number of tasks of each stream that were sent after `after` are finished.
    pub(crate) async fn until_work_goes_on(&self, after: Duration) {
        let started = tokio::time::Instant::now();
        loop {
            let account = self.ledger.read();
            let sent = account.all(What::Sent).filter(|line| line.at > after);
            let sent: std::collections::BTreeSet<_> = sent.map(|line| line.job).collect();
            let done = &sent & &account.jobs(What::Finished);
            let stands = self.streams.iter().enumerate();
            let stands =
                stands.filter(|(index, _)| done.range(jobs_of_stream(*index)).count() < 10);
            let stands: Vec<_> = stands.map(|(_, stream)| stream).collect();
            if stands.is_empty() {
                return;
            }
            let failures = self.failures.lock().unwrap();
            assert!(
                started.elapsed() < FOUND,
                "within {FOUND:?} the work does not go on on {stands:?}; {} sends failed, the last \
                 with {:?}",
                failures.len(),
                failures.last()
            );
            drop(failures);
            sleep(SECOND / 10).await;
        }
    }

    /// Stops sending until [`resume`](Self::resume), and waits for the sends that have begun.
    pub(crate) async fn pause(&self) {
        self.phase.send_replace(Phase::Pause);
        sleep(SECOND / 2).await;
    }

    pub(crate) fn resume(&self) {
        self.phase.send_replace(Phase::Send);
    }

    /// Stops sending, waits until all tasks are settled, and stops the workers. Prints the figures
    /// of the fault that began at `since`. Asserts that no stream went without a finished task for
    /// longer than [`FOUND`].
    pub(crate) async fn finish(
        self,
        servers: &impl Servers,
        fault: &str,
        since: Duration,
    ) -> Account {
        let until = now();
        self.phase.send_replace(Phase::Stop);
        for sender in self.senders {
            sender.await.expect("the sender ends");
        }
        for stream in &self.streams {
            let server = servers.primary_of(stream).await;
            let settled = async || (left(server, stream).await == 0).then_some(());
            eventually(settled, SETTLED).await;
        }
        for worker in self.workers {
            worker.stop().await.expect("the worker stops");
        }
        let account = self.ledger.read();
        let pauses = (0..self.streams.len()).map(|index| {
            let jobs = jobs_of_stream(index);
            account.longest_pause(|job| jobs.contains(&job), since, until)
        });
        account.report(fault, pauses.max().expect("at least one stream"), FOUND);
        account
    }
}

fn jobs_of_stream(index: usize) -> Range<u64> {
    let first = index as u64 * SENDERS * JOBS;
    first..first + SENDERS * JOBS
}

fn app(ledger: Ledger) -> Router {
    Router::new().task(
        "work",
        async move |attempt: campanile::Attempt, Json(n): Json<u64>| {
            ledger.write(What::Started, n, attempt.0);
            sleep(Duration::from_millis(5)).await;
            ledger.write(What::Finished, n, attempt.0);
        },
    )
}

async fn send(
    client: Client<Redis>,
    jobs: Range<u64>,
    ledger: Ledger,
    mut phase: watch::Receiver<Phase>,
    failures: Arc<Mutex<Vec<String>>>,
) {
    for n in jobs {
        let phase = phase.wait_for(|phase| *phase != Phase::Pause).await;
        if phase.is_ok_and(|phase| *phase == Phase::Stop) {
            return;
        }
        match client.enqueue("work", Json(n)).await {
            Ok(_) => ledger.write(What::Sent, n, 0),
            Err(error) => {
                if error.is_unknown_outcome() {
                    ledger.write(What::Unsure, n, 0);
                }
                failures.lock().unwrap().push(format!("{error:?}"));
            }
        }
        sleep(Duration::from_millis(scaled(20, 4))).await;
    }
}

/// The number of entries of a stream that are not settled.
async fn left(server: &RedisServer, stream: &str) -> usize {
    let retry = format!("{{{stream}}}:retry:{GROUP}");
    let due: usize = server
        .query(&["ZCARD", &format!("{{{stream}}}:due:{GROUP}")])
        .await;
    let unread = usize::from(!raw::drained(server, stream, GROUP).await);
    unread + raw::pending(server, &retry, GROUP).await + raw::len(server, &retry).await + due
}
