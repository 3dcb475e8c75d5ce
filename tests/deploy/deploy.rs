//! A rolling deploy, forwards and back, in which no message is lost: two versions of the library share
//! a server.
//!
//! `CAMPANILE_OLD` names the program of an earlier commit, which `scripts/deploy-test` builds. Without
//! it both versions are this one.

#[path = "../support/mod.rs"]
mod support;

use std::{
    collections::BTreeSet,
    env,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use campanile::Redis;
use support::{RedisServer, Signal, raw::eventually, within};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

const SOON: Duration = Duration::from_secs(60);
/// The number of messages of each sort.
const COUNT: usize = 20;

fn new() -> PathBuf {
    env!("CARGO_BIN_EXE_deploy").into()
}

fn old() -> PathBuf {
    match env::var("CAMPANILE_OLD") {
        Ok(old) => old.into(),
        Err(_) => new(),
    }
}

fn command(program: &Path, server: &RedisServer, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).env("REDIS_URL", server.url());
    command.env_remove("REFUSE").kill_on_drop(true);
    command
}

/// Runs the program to its end, which must be a success. Returns its lines without this first word.
async fn run(program: &Path, server: &RedisServer, args: &[&str], word: &str) -> Vec<String> {
    let mut command = command(program, server, args);
    let output = within(SOON, command.output()).await.expect("it starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    let text = String::from_utf8(output.stdout).expect("text");
    let lines = text.lines().map(|line| {
        let (first, rest) = line.split_once(' ').expect("two words");
        assert_eq!(first, word);
        rest.to_owned()
    });
    lines.collect()
}

/// The tasks that workers have handled.
type Handled = Arc<Mutex<BTreeSet<String>>>;

struct Worker(Child);

impl Worker {
    fn start(mut command: Command, handled: &Handled) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
        let output = child.stdout.take().expect("its output is a pipe");
        let (mut lines, handled) = (BufReader::new(output).lines(), handled.clone());
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let payload = line.strip_prefix("handled ").expect("a handled task");
                handled.lock().expect("not poisoned").insert(payload.into());
            }
        });
        Self(child)
    }

    fn signal(&self, signal: Signal) {
        signal.send(self.0.id().expect("it runs"));
    }

    async fn ended(mut self) {
        within(SOON, self.0.wait()).await.expect("a status");
    }
}

/// The worker of one version is replaced by that of another one, while this version sends.
async fn replace(sender: &Path, before: &Path, after: &Path) {
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url()).await.expect("a handle");
    let redis = redis.stream("deploy");
    let group = async || {
        let stats = redis.stats().await.expect("statistics");
        stats.group("app_group").cloned()
    };
    let handled = Handled::default();

    // No worker runs yet. The first one gives up what the second one can handle.
    let mut sent = run(sender, &server, &["send", "first"], "sent").await;
    let mut refusing = command(before, &server, &["work"]);
    refusing.env("REFUSE", "yes");
    let refusing = Worker::start(refusing, &handled);
    let answered = run(sender, &server, &["request", "first"], "answered").await;
    assert_eq!(answered.len(), COUNT);
    let dead = || async { (group().await?.dead == COUNT as u64).then_some(()) };
    eventually(dead, SOON).await;

    // It is killed among running, delayed and failing tasks.
    sent.extend(run(sender, &server, &["send", "second"], "sent").await);
    refusing.signal(Signal::Kill);
    refusing.ended().await;
    let worker = Worker::start(command(after, &server, &["work"]), &handled);
    let replayed = run(sender, &server, &["replay"], "replayed").await;
    let replayed: usize = replayed[0].parse().expect("a number");
    assert!((COUNT..=2 * COUNT).contains(&replayed), "{replayed}");
    let answered = run(sender, &server, &["request", "second"], "answered").await;
    assert_eq!(answered.len(), COUNT);

    // Both run at once, and one leaves.
    let other = Worker::start(command(before, &server, &["work"]), &handled);
    sent.extend(run(sender, &server, &["send", "third"], "sent").await);
    other.signal(Signal::Term);
    other.ended().await;

    let sent: BTreeSet<_> = sent.into_iter().collect();
    let all = || async {
        let handled = handled.lock().expect("not poisoned").clone();
        (handled == sent).then_some(())
    };
    assert_eq!(sent.len(), 3 * 9 * COUNT);
    eventually(all, SOON).await;
    let empty = || async {
        let group = group().await?;
        let left = group.dead + group.delayed + group.parked + group.pending;
        (left + group.lag.unwrap_or_default() == 0).then_some(())
    };
    eventually(empty, SOON).await;
    worker.signal(Signal::Term);
    worker.ended().await;
}

#[tokio::test]
async fn a_new_worker_finishes_the_work_of_an_old_one_for_an_old_sender() {
    replace(&old(), &old(), &new()).await;
}

#[tokio::test]
async fn a_new_worker_finishes_the_work_of_an_old_one_for_a_new_sender() {
    replace(&new(), &old(), &new()).await;
}

#[tokio::test]
async fn an_old_worker_finishes_the_work_of_a_new_one_for_an_old_sender() {
    replace(&old(), &new(), &old()).await;
}

#[tokio::test]
async fn an_old_worker_finishes_the_work_of_a_new_one_for_a_new_sender() {
    replace(&new(), &new(), &old()).await;
}
