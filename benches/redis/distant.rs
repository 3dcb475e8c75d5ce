//! Workers in child processes. This process asks the server whether all messages are done.

use std::{io::Read, process::Stdio};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
};

use crate::{
    Side,
    address::Address,
    clock::Clock,
    open::Arrivals,
    ours,
    probe::Probe,
    raw,
    raw_stream::{EntryWriter, Reader, preload},
    setup::Setup,
    worker::{Sender, Worker, connect},
    workload::{Handler, Job, Round, Work},
};

/// The argument that makes a process a worker. Its [`Order`] follows.
pub(crate) const WORKER_ARG: &str = "--worker";

pub(crate) async fn round(probe: &Probe, side: Side, job: &Job) -> Round {
    let setup = &job.setup;
    let mut handler = Handler::Single;
    let mut is_preloaded = false;
    if let Work::Drain {
        handler: drain_handler,
    } = job.work
    {
        handler = drain_handler;
        is_preloaded = true;
        preload(probe, setup, job.count).await;
    }
    let senders = match job.work {
        Work::Task { senders } => senders,
        _ => 0,
    };
    let writer = EntryWriter::connect(probe, setup).await;
    let redis = connect(probe.address()).await;
    let mut workers = Workers::spawn(Order {
        address: probe.address().clone(),
        side,
        setup: *setup,
        handler,
    })
    .await;
    let clock = Clock::start(probe, &workers.pids()).await;
    workers.start().await;
    match side {
        _ if is_preloaded => {}
        Side::Raw => raw::send(writer, senders, job.count).await,
        Side::Ours => ours::send(Sender::new(&redis, setup), senders, job.count).await,
    }
    probe.wait_until_drained(setup).await;
    let round = clock.stop(job.count, Vec::new()).await;
    workers.stop().await;
    round
}

/// The work of a child process: where to connect, and which side to run.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    address: Address,
    side: Side,
    setup: Setup,
    handler: Handler,
}

/// The child processes. Dropping them without `stop` kills them.
struct Workers(Vec<Child>);

impl Workers {
    /// Starts the processes and waits until all are ready.
    async fn spawn(order: Order) -> Self {
        let program = std::env::current_exe().expect("the bench's own program");
        let words = serde_json::to_string(&order).expect("an order");
        let mut workers = Vec::new();
        for _ in 0..order.setup.processes {
            let mut worker = Command::new(&program)
                .args([WORKER_ARG, &words])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .expect("the bench runs itself");
            let mut output = BufReader::new(worker.stdout.as_mut().expect("a pipe")).lines();
            let line = output.next_line().await.expect("a worker speaks");
            assert_eq!(line.as_deref(), Some("ready"));
            workers.push(worker);
        }
        Self(workers)
    }

    fn pids(&self) -> Vec<u32> {
        self.0.iter().filter_map(Child::id).collect()
    }

    /// Lets the processes begin, by a byte on their inputs.
    async fn start(&mut self) {
        for worker in &mut self.0 {
            let input = worker.stdin.as_mut().expect("a pipe");
            input.write_all(b"\n").await.expect("a worker listens");
        }
    }

    /// Ends the processes by closing their inputs.
    async fn stop(mut self) {
        for worker in &mut self.0 {
            drop(worker.stdin.take());
            let status = worker.wait().await.expect("a worker ends");
            assert!(status.success(), "a worker ended with {status}");
        }
    }
}

/// Runs this process as a worker, from the first byte on its input until the input ends.
pub(crate) async fn run_worker(order: &str) {
    let order: Order = serde_json::from_str(order).expect("an order that the bench wrote");
    let mut reader = Reader::connect(&order.address, &order.setup).await;
    println!("ready");
    if !read_input().await {
        return;
    }
    match order.side {
        Side::Raw => tokio::select! {
            () = reader.handle(order.handler, usize::MAX, |_| {}) => {}
            _ = read_input() => {}
        },
        Side::Ours => {
            let arrivals = Arrivals::new(0);
            let worker =
                Worker::start_with(&order.address, &order.setup, order.handler, arrivals).await;
            read_input().await;
            worker.stop().await;
        }
    }
}

/// Waits for a byte on the standard input, or for its end. Returns `true` for a byte.
async fn read_input() -> bool {
    let read = || std::io::stdin().read(&mut [0]);
    let read = tokio::task::spawn_blocking(read).await;
    read.is_ok_and(|read| read.is_ok_and(|bytes| bytes > 0))
}
