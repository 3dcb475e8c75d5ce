//! A `redis://` URL whose host name leads to another server after a failover.
//!
//! The client is another process: this test binary, started again, with a look-up of names that
//! the test controls.

use std::{
    io::{self, Read},
    net::Ipv4Addr,
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use crate::{
    FOUND, SECOND, connect,
    load::Load,
    support::{
        RedisServer, Signal,
        ledger::{Account, Ledger, What, now},
        names::HostName,
        proxy::Proxy,
        raw::{self, eventually},
    },
};

/// The environment variables of the client: the directory of its ledger, and its URL.
const DIR: &str = "CAMPANILE_NAMES_DIR";
const URL: &str = "CAMPANILE_NAMES_URL";
/// The addresses of the servers. Both have the same port there, as behind a name.
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)];

/// The limit for work to go on after the name has its new address: the longest back-off, and slack for
/// a loaded machine.
const FOLLOWED: Duration = Duration::from_secs(8);

/// A process with a worker and senders. It is killed when this is dropped.
struct Client {
    process: Child,
    ledger: PathBuf,
}

impl Client {
    fn start(name: &HostName, port: u16, dir: &Path) -> Self {
        let this = std::env::current_exe().expect("this binary");
        let mut command = Command::new(this);
        let test = [
            "names::client_process",
            "--exact",
            "--ignored",
            "--nocapture",
        ];
        command
            .args(test)
            .env(DIR, dir)
            .env(URL, format!("redis://{}:{port}/", HostName::NAME))
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        name.known_to(&mut command);
        Self {
            process: command.spawn().expect("this binary starts"),
            ledger: dir.join("ledger"),
        }
    }

    fn ledger(&self) -> Ledger {
        Ledger::open(&self.ledger)
    }

    /// Waits until tasks that were sent after this time are finished. Returns the time that passed
    /// until the first one was.
    async fn works(&self, after: Duration) -> Duration {
        let ledger = self.ledger();
        let works = async || {
            let account = ledger.read();
            let sent = account.all(What::Sent).filter(|line| line.at > after);
            let sent: std::collections::BTreeSet<_> = sent.map(|line| line.job).collect();
            let done = account
                .all(What::Finished)
                .filter(|line| sent.contains(&line.job));
            let times: Vec<_> = done.map(|line| line.at - after).collect();
            (times.len() >= 10).then(|| times[0])
        };
        eventually(works, FOUND).await
    }

    /// Waits for a moment at which all tasks are finished, except for those that were sent in this
    /// time.
    async fn settles(&self, except: Range<Duration>) -> Account {
        let ledger = self.ledger();
        let settled = async || {
            let account = ledger.read();
            let before = account.lost_of(Duration::ZERO..except.start);
            let after = account.lost_of(except.end..Duration::MAX);
            (before.is_empty() && after.is_empty()).then_some(account)
        };
        eventually(settled, FOUND).await
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a client, which the other test starts"]
async fn client_process() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    // Ends with the process that started it, also if that is killed.
    thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
    let redis = connect(&std::env::var(URL).expect("a URL")).await;
    let _load = Load::start(&redis, &["jobs".to_owned()], Path::new(&dir)).await;
    std::future::pending().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_leads_to_another_server_is_followed_after_a_demotion_and_after_a_death() {
    let first = RedisServer::start().await;
    let second = first.replica().await;
    let proxy = Proxy::start_at((ADDRESSES[0], 0), first.port()).await;
    let port = proxy.port();
    let _proxies = (
        proxy,
        Proxy::start_at((ADDRESSES[1], port), second.port()).await,
    );
    let name = HostName::new(first.dir());
    name.lead_to(Some(ADDRESSES[0]));
    let start = now();
    let client = Client::start(&name, port, first.dir());
    client.works(start).await;

    // The old primary hands over, and the name follows a second later.
    let to = second.port().to_string();
    first.command(&["FAILOVER", "TO", "127.0.0.1", &to]).await;
    let promoted = async || {
        let info: String = second.query(&["INFO", "replication"]).await;
        info.contains("role:master").then_some(())
    };
    eventually(promoted, FOUND).await;
    tokio::time::sleep(SECOND).await;
    let at = now();
    name.lead_to(Some(ADDRESSES[1]));
    let recovered = client.works(at).await;
    let account = client.settles(Duration::ZERO..Duration::ZERO).await;
    account.report("name: primary demoted", recovered, FOLLOWED);
    assert_eq!(account.repeated(), Default::default());

    // The new primary dies. For a while the name has no address.
    let linked = async || {
        let info: String = first.query(&["INFO", "replication"]).await;
        info.contains("master_link_status:up").then_some(())
    };
    eventually(linked, FOUND).await;
    let replicated = raw::replicated(&second, "jobs", 1).await;
    name.lead_to(None);
    second.signal(Signal::Kill);
    first.command(&["REPLICAOF", "NO", "ONE"]).await;
    tokio::time::sleep(SECOND).await;
    let at = now();
    name.lead_to(Some(ADDRESSES[0]));
    let recovered = client.works(at).await;
    let account = client.settles(replicated..at).await;
    account.report("name: primary killed", recovered, FOLLOWED);
}
