//! Users with the documented rights, and databases of one server, on a cluster and behind Sentinels,
//! before and after a failover.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use campanile::{Client, Redis, Router, transport::UnknownNames};

use crate::{
    FOUND, SECOND, connect,
    support::{
        Options,
        cluster::Cluster,
        raw::eventually,
        rights::{ON_A_CLUSTER, assert_refused, documented, with_user},
        sentinel::{SentinelGroup, Setup},
        worker::Worker,
    },
};

/// The commands on the stream that a requester would need to read or to remove the tasks of others.
const OTHERS_TASKS: &[&str] = &[
    "XREAD STREAMS s 0",
    "XRANGE s - +",
    "XTRIM s MAXLEN 0",
    "UNLINK s",
];

/// The users `worker`, `sender` and `requester` with the documented rights and `more`, and a default
/// user for the servers themselves.
fn acl(more: &str) -> String {
    let user = |name: &str, rows: &[&str]| {
        let rights = documented(rows);
        format!("user {name} on >pw resetchannels {rights} {more}\n")
    };
    [
        user("worker", &["serves tasks"]),
        user("sender", &["sends tasks", "… with a delay"]),
        user("requester", &["requests"]),
        "user default on nopass ~* &* +@all".to_owned(),
    ]
    .concat()
}

/// A worker, a sender and a requester with their own users.
struct Users {
    sender: Client<Redis>,
    requester: Client<Redis>,
    ran: Arc<AtomicUsize>,
    _worker: Worker,
}

impl Users {
    async fn start(url: &str) -> Self {
        let handle = async |user| connect(&with_user(url, user)).await.stream("s");
        let ran = Arc::<AtomicUsize>::default();
        let runs = ran.clone();
        let app = Router::new()
            .task("n", async move || {
                runs.fetch_add(1, Ordering::SeqCst);
            })
            .rpc("ask", async || "here");
        let requester = Client::new(handle("requester").await);
        Self {
            sender: Client::new(handle("sender").await),
            requester: requester.request_timeout(2 * SECOND),
            ran,
            _worker: Worker::start(handle("worker").await.group("g"), app),
        }
    }

    /// Asserts that a task, a delayed task and requests of both kinds work, each within [`FOUND`].
    async fn work(&self) {
        let before = self.ran.load(Ordering::SeqCst);
        let sent = async || self.sender.enqueue("n", "").await.ok();
        eventually(sent, FOUND).await;
        let delayed = async || self.sender.enqueue("n", "").delay(SECOND / 10).await.ok();
        eventually(delayed, FOUND).await;
        let ran = async || (self.ran.load(Ordering::SeqCst) >= before + 2).then_some(());
        eventually(ran, FOUND).await;
        let reliable = async || self.requester.request::<String>("ask", "").await.ok();
        assert_eq!(eventually(reliable, FOUND).await, "here");
        let fast = async || self.requester.request_fast::<String>("ask", "").await.ok();
        assert_eq!(eventually(fast, FOUND).await, "here");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_rights_are_enough_on_a_cluster_and_no_requester_reads_tasks() {
    let cluster = Cluster::with(Options::new().acl(&acl(ON_A_CLUSTER)), 1).await;
    let users = Users::start(&cluster.url()).await;
    users.work().await;
    let (old, new) = cluster.fail_over("s").await;
    users.work().await;
    for node in [old, new] {
        let url = cluster.node(node).url();
        assert_refused(&with_user(&url, "requester"), OTHERS_TASKS).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_rights_are_enough_behind_sentinels_and_no_requester_reads_tasks() {
    let group = SentinelGroup::with(Setup {
        options: Options::new().acl(&acl("+info")),
        ..Setup::default()
    })
    .await;
    let users = Users::start(&group.url(0)).await;
    users.work().await;
    let (old, new) = group.fail_over().await;
    users.work().await;
    for server in [old, new] {
        let url = group.server(server).url();
        assert_refused(&with_user(&url, "requester"), OTHERS_TASKS).await;
    }
}

/// Redis publishes to the listeners of all databases.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_keep_the_events_of_two_databases_apart_behind_sentinels() {
    let group = SentinelGroup::start().await;
    let mut handles = Vec::new();
    for database in [0, 1] {
        // The events of this database, and those of the other one.
        let heard = [(); 2].map(|()| Arc::<AtomicUsize>::default());
        let hears = heard.clone();
        let app = Router::new().event("news", async move |sender: String| {
            let is_own = sender == database.to_string();
            hears[usize::from(!is_own)].fetch_add(1, Ordering::SeqCst);
        });
        let redis = connect(&group.url(database)).await;
        let redis = redis.namespace(format!("db{database}"));
        let served = redis.clone().unknown_names(UnknownNames::Fail);
        handles.push((Client::new(redis), heard, Worker::start(served, app)));
    }
    for failed_over in [false, true] {
        if failed_over {
            group.fail_over().await;
        }
        for (database, (client, [own, _], _)) in handles.iter().enumerate() {
            let before = own.load(Ordering::SeqCst);
            let arrives = async || {
                client.publish("news", database.to_string()).await.ok()?;
                (own.load(Ordering::SeqCst) > before).then_some(())
            };
            eventually(arrives, FOUND).await;
        }
    }
    for (database, (_, [_, others], _)) in handles.iter().enumerate() {
        assert_eq!(others.load(Ordering::SeqCst), 0, "database {database}");
    }
}
