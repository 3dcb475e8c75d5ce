//! A worker process: this test binary, started again to run its only ignored test.

use std::{
    fs::File,
    io::{self, Read},
    path::PathBuf,
    pin::pin,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use campanile::{
    Attempt, BoxError, Handler, Json, Lease, Outbox, Redis, Router, State, serve,
    transport::{Start, Streams, UnknownNames},
};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::{
    SECOND,
    ledger::{Ledger, What},
    support::{Signal, raw::eventually},
};

/// The environment variable that turns this binary into a worker.
const SETUP: &str = "CAMPANILE_FAULTS_WORKER";

/// The exit code of a worker whose shutdown was forced.
pub(crate) const FORCED: i32 = 3;

/// The beginning of the line in which a worker that ends says how many leases it has lost.
const LOST_LEASES: &str = "lost leases:";

/// The payload of a job.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) n: u64,
    /// The time that the handler takes, in milliseconds.
    pub(crate) ms: u64,
}

/// The set-up of a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) url: String,
    pub(crate) group: String,
    pub(crate) lease: Duration,
    pub(crate) max_in_flight: usize,
    pub(crate) max_deliveries: u32,
    /// True if the handler runs one job at a time, and other fetched jobs wait for it.
    pub(crate) one_at_a_time: bool,
    /// True if the stream has other groups.
    pub(crate) beside_others: bool,
    /// The period of a schedule. `None` if the process serves, and otherwise only runs the schedule.
    pub(crate) schedule: Option<Duration>,
    /// The number of partitions of the stream, which workers own. `None` if it has none.
    pub(crate) partitions: Option<usize>,
    pub(crate) ledger: PathBuf,
    pub(crate) log: PathBuf,
}

impl Setup {
    /// The number of leases that an ended worker had lost.
    pub(crate) fn lost_leases(&self, pid: u32) -> usize {
        let log = std::fs::read_to_string(&self.log).expect("the log is there");
        let start = format!("{LOST_LEASES} {pid} ");
        let said = log.lines().find_map(|line| line.strip_prefix(&start));
        let said = said.expect("the worker has ended well");
        said.parse().expect("a number")
    }

    /// A handle of the server.
    pub(crate) async fn redis(&self) -> Redis {
        let redis = Redis::connect(&self.url).await;
        let redis = redis
            .expect("the server is there")
            .stream("jobs")
            .group(self.group.clone())
            .lease(self.lease)
            .max_in_flight(self.max_in_flight)
            .max_deliveries(self.max_deliveries)
            .backoff(campanile::transport::Backoff::exponential(
                SECOND / 10,
                SECOND,
            ));
        let redis = match self.partitions {
            Some(partitions) => redis.streams(Streams::partitioned("jobs", partitions).owned()),
            None => redis,
        };
        match self.beside_others {
            true => redis
                .start(Start::Beginning)
                .unknown_names(UnknownNames::Ignore),
            false => redis,
        }
    }

    /// The worker's router.
    pub(crate) fn app(&self) -> Router {
        let permits = if self.one_at_a_time { 1 } else { 10_000 };
        let limit = tower::limit::ConcurrencyLimitLayer::new(permits);
        Router::new()
            .task("work", work.layer(limit))
            .task("block", block)
            .task("flaky", flaky)
            .task("poison", poison)
            .task("chain", chain)
            .task("once", once)
            .rpc("double", double)
            .with_state(Ledger::open(&self.ledger))
    }
}

/// Runs for the job's duration, or fails when its lease is lost.
async fn work(
    State(ledger): State<Ledger>,
    attempt: Attempt,
    lease: Lease,
    Json(job): Json<Job>,
) -> Result<(), BoxError> {
    ledger.write(What::Started, job.n, attempt.0);
    let told = lease.token();
    tokio::select! {
        () = sleep(Duration::from_millis(job.ms)) => {}
        () = told.cancelled() => {
            ledger.write(What::Told, job.n, attempt.0);
            // This verdict comes too late, and must have no effect.
            return Err("the lease is lost".into());
        }
    }
    ledger.write(What::Finished, job.n, attempt.0);
    Ok(())
}

/// Fails on the first attempt.
async fn flaky(
    State(ledger): State<Ledger>,
    attempt: Attempt,
    Json(job): Json<Job>,
) -> Result<(), BoxError> {
    ledger.write(What::Started, job.n, attempt.0);
    sleep(Duration::from_millis(job.ms)).await;
    if attempt.0 == 1 {
        return Err("the first attempt always fails".into());
    }
    ledger.write(What::Finished, job.n, attempt.0);
    Ok(())
}

/// Blocks the runtime's thread for the job's duration.
async fn block(State(ledger): State<Ledger>, attempt: Attempt, Json(job): Json<Job>) {
    ledger.write(What::Started, job.n, attempt.0);
    thread::sleep(Duration::from_millis(job.ms));
    ledger.write(What::Finished, job.n, attempt.0);
}

/// Adds a follow-up for a stream without workers, and counts itself.
async fn chain(
    State(ledger): State<Ledger>,
    attempt: Attempt,
    outbox: Outbox,
    Json(job): Json<Job>,
) -> Result<(), BoxError> {
    ledger.write(What::Started, job.n, attempt.0);
    outbox
        .enqueue("next", job.n.to_string())
        .stream("next")
        .await?;
    outbox.increment("count", 1)?;
    sleep(Duration::from_millis(job.ms)).await;
    ledger.write(What::Finished, job.n, attempt.0);
    Ok(())
}

/// Takes the job's duration at the first attempt, and no time later. Goes on when it has lost its
/// lease. Adds a follow-up for a stream without workers, which shows whether its verdict had effect.
async fn once(
    State(ledger): State<Ledger>,
    attempt: Attempt,
    lease: Lease,
    outbox: Outbox,
    Json(job): Json<Job>,
) -> Result<(), BoxError> {
    ledger.write(What::Started, job.n, attempt.0);
    outbox
        .enqueue("next", job.n.to_string())
        .stream("next")
        .await?;
    if attempt.0 == 1 {
        let told = lease.token();
        let mut runs = pin!(sleep(Duration::from_millis(job.ms)));
        tokio::select! {
            () = &mut runs => {}
            () = told.cancelled() => {
                ledger.write(What::Told, job.n, attempt.0);
                runs.await;
            }
        }
    }
    ledger.write(What::Finished, job.n, attempt.0);
    Ok(())
}

/// Aborts the process.
async fn poison(State(ledger): State<Ledger>, attempt: Attempt, Json(job): Json<Job>) {
    ledger.write(What::Started, job.n, attempt.0);
    sleep(Duration::from_millis(job.ms)).await;
    std::process::abort();
}

/// Replies with the doubled number.
async fn double(State(ledger): State<Ledger>, attempt: Attempt, Json(job): Json<Job>) -> Json<u64> {
    ledger.write(What::Started, job.n, attempt.0);
    sleep(Duration::from_millis(job.ms)).await;
    ledger.write(What::Finished, job.n, attempt.0);
    Json(2 * job.n)
}

/// The worker process.
#[test]
#[ignore = "a worker process, which the other tests start"]
fn worker_process() {
    let Ok(setup) = std::env::var(SETUP) else {
        return;
    };
    let setup: Setup = serde_json::from_str(&setup).expect("a set-up");
    // This process ends with the process that started it, also if that is killed.
    thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
    let log = File::options().append(true).open(&setup.log);
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(log.expect("the log is there"))
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let redis = setup.redis().await;
        #[cfg(feature = "schedule")]
        if let Some(period) = setup.schedule {
            crate::schedules::run(&redis, period).await;
        }
        let served = serve(redis.clone(), setup.app()).with_signals().await;
        // A test finds this line in the worker's log, as the one below.
        let (pid, lost) = (std::process::id(), redis.counts().lost_leases);
        eprintln!("{LOST_LEASES} {pid} {lost}");
        if let Err(error) = &served
            && error.is_forced_shutdown()
        {
            // Standard error goes to the worker's log, where a test finds this line.
            eprintln!("serve ended: {error}");
            std::process::exit(FORCED);
        }
        served.expect("the worker ends well");
    });
}

/// A running worker process. Dropping this value kills it.
#[derive(Debug)]
pub(crate) struct WorkerProcess(Child);

impl WorkerProcess {
    pub(crate) fn start(setup: &Setup) -> Self {
        let log = File::options().create(true).append(true).open(&setup.log);
        let log = log.expect("the log can be opened");
        let this = std::env::current_exe().expect("this binary");
        let child = Command::new(this)
            .args([
                "worker::worker_process",
                "--exact",
                "--ignored",
                "--nocapture",
            ])
            .env(SETUP, serde_json::to_string(setup).expect("valid JSON"))
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn();
        Self(child.expect("this binary starts"))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        signal.send(self.pid());
    }

    /// The exit status, if the process has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().expect("a child process")
    }

    /// Waits until the process has ended.
    pub(crate) async fn end(&mut self, limit: Duration) -> ExitStatus {
        let ended = std::cell::RefCell::new(self);
        eventually(|| async { ended.borrow_mut().ended() }, limit).await
    }

    /// Sends SIGTERM, and waits until the process has ended.
    pub(crate) async fn terminate(mut self) {
        self.signal(Signal::Term);
        let status = self.end(40 * SECOND).await;
        assert!(status.success(), "the worker ended with {status}");
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        // Errors are ignored: the process may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
