//! A real Redis Cluster, made by `redis-cli --cluster create`.
//!
//! ```ignore
//! let cluster = Cluster::start().await;             // three primaries with a replica each
//! cluster.url();                                    // redis+cluster://127.0.0.1:<port>,…
//! let owner = cluster.owner("jobs").await;          // an index of `nodes`
//! cluster.node(owner).command(&["XLEN", "jobs"]).await;
//! cluster.fail_over("jobs").await;                  // CLUSTER FAILOVER
//! cluster.move_slot(slot, to, SECOND / 10).await;   // key by key, with pauses
//! ```

use std::{path::Path, process::Command, time::Duration};

use redis::{FromRedisValue, RedisResult, Value};

use super::{Options, RedisServer, free_port, raw::eventually, tls::Tls};

/// The longest wait for the nodes to agree, for example about the owner of a slot.
const AGREEMENT: Duration = Duration::from_secs(30);
/// The time after which a silent node counts as failed.
pub(crate) const NODE_TIMEOUT: Duration = Duration::from_secs(2);

/// A running cluster. Dropping it kills its nodes.
#[derive(Debug)]
pub(crate) struct Cluster {
    options: Options,
    nodes: Vec<Node>,
    tls: Option<Tls>,
}

#[derive(Debug)]
struct Node {
    server: RedisServer,
    id: String,
    /// The port that the node announces.
    port: u16,
}

impl Cluster {
    /// Starts three primaries with a replica each.
    pub(crate) async fn start() -> Self {
        Self::with(Options::new(), 1).await
    }

    /// Starts three primaries without replicas, which takes half the time.
    pub(crate) async fn of_primaries() -> Self {
        Self::with(Options::new(), 0).await
    }

    /// Starts three primaries with these options and this number of replicas each. If the options
    /// have a login, the nodes use it among themselves, too.
    pub(crate) async fn with(options: Options, replicas: usize) -> Self {
        Self::make(options, replicas, None).await
    }

    /// Starts three primaries that use TLS among themselves and with clients. Their certificate is
    /// for `localhost` and for 127.0.0.1, the address that the nodes announce.
    pub(crate) async fn with_tls() -> Self {
        let tls = Tls::with_names("DNS:localhost,IP:127.0.0.1");
        Self::make(Options::new(), 0, Some(tls)).await
    }

    async fn make(mut options: Options, replicas: usize, tls: Option<Tls>) -> Self {
        let timeout = NODE_TIMEOUT.as_millis().to_string();
        options = options
            .args(["--cluster-enabled", "yes"])
            .args(["--cluster-node-timeout", &timeout])
            .args(["--repl-diskless-sync-delay", "0"]);
        if let Some(password) = options.password.clone() {
            options = options.args(["--masterauth", &password]);
        }
        if let Some(user) = options.user.clone() {
            options = options.args(["--masteruser", &user]);
        }
        let mut cluster = Self {
            options,
            nodes: Vec::new(),
            tls,
        };
        for _ in 0..3 * (1 + replicas) {
            let node = cluster.start_node().await;
            cluster.nodes.push(node);
        }
        cluster.create(replicas);
        cluster.agree(cluster.nodes.len()).await;
        if replicas > 0 {
            for primary in 0..3 {
                cluster.replica_of(primary).await;
            }
        }
        cluster
    }

    async fn start_node(&self) -> Node {
        let mut options = self.options.clone();
        let mut tls_port = None;
        if let Some(tls) = &self.tls {
            let port = *tls_port.insert(free_port());
            options = options.args(tls.args_at(port, "no")).args([
                "--tls-cluster",
                "yes",
                "--tls-replication",
                "yes",
            ]);
        }
        let server = RedisServer::with(options).await;
        Node {
            id: server.query(&["CLUSTER", "MYID"]).await,
            port: tls_port.unwrap_or(server.port()),
            server,
        }
    }

    fn create(&self, replicas: usize) {
        let mut cli = Command::new("redis-cli");
        if let Some(tls) = &self.tls {
            cli.args(["--tls", "--cacert"])
                .arg(tls.dir().join("cert.pem"));
        }
        if let Some(user) = &self.options.user {
            cli.args(["--user", user]);
        }
        if let Some(password) = &self.options.password {
            cli.args(["--no-auth-warning", "-a", password]);
        }
        cli.args(["--cluster", "create"]);
        cli.args(
            self.nodes
                .iter()
                .map(|node| format!("127.0.0.1:{}", node.port)),
        );
        cli.args(["--cluster-replicas", &replicas.to_string(), "--cluster-yes"]);
        let made = cli
            .output()
            .expect("redis-cli is missing; install it: apt-get install redis-tools");
        let said = String::from_utf8_lossy(&made.stdout);
        assert!(made.status.success(), "the cluster was not made:\n{said}");
    }

    /// Waits until all nodes know this number of nodes, and all slots are served.
    async fn agree(&self, count: usize) {
        let known = format!("cluster_known_nodes:{count}\r\n");
        for node in &self.nodes {
            let knows = async || {
                let info: String = node.server.query(&["CLUSTER", "INFO"]).await;
                (info.contains("cluster_state:ok") && info.contains(&known)).then_some(())
            };
            eventually(knows, AGREEMENT).await;
        }
    }

    /// The URL of the cluster, with all of its nodes and the login of its options.
    pub(crate) fn url(&self) -> String {
        self.url_of(&self.nodes.iter().map(|node| node.port).collect::<Vec<_>>())
    }

    /// The URL of the cluster with these ports as seeds.
    pub(crate) fn url_of(&self, ports: &[u16]) -> String {
        let seeds: Vec<_> = ports
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect();
        let scheme = if self.tls.is_some() {
            "rediss"
        } else {
            "redis"
        };
        format!(
            "{scheme}+cluster://{}{}",
            self.options.url_login(),
            seeds.join(",")
        )
    }

    /// The certificate of the nodes.
    pub(crate) fn certificate(&self) -> Vec<u8> {
        self.tls
            .as_ref()
            .expect("a cluster with TLS")
            .file("cert.pem")
    }

    /// A directory that lasts as long as the cluster, and is kept if a test fails.
    pub(crate) fn dir(&self) -> &Path {
        self.nodes[0].server.dir()
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn node(&self, index: usize) -> &RedisServer {
        &self.nodes[index].server
    }

    /// The slot of a key.
    pub(crate) async fn slot(&self, key: &str) -> u16 {
        self.ask(&["CLUSTER", "KEYSLOT", key]).await
    }

    /// A stream name for each of the first three nodes. Each begins with `prefix`, and its slot is
    /// on that node from the start.
    pub(crate) async fn a_name_on_each(&self, prefix: &str) -> [String; 3] {
        let mut names = [const { None }; 3];
        for n in 0.. {
            let name = format!("{prefix}-{n}");
            let owner = self.owner(&name).await;
            names[owner].get_or_insert(name);
            if names.iter().all(Option::is_some) {
                break;
            }
        }
        names.map(|name| name.expect("all are set"))
    }

    /// The index of the primary of a key, as soon as all reachable nodes agree about it.
    pub(crate) async fn owner(&self, key: &str) -> usize {
        let slot = self.slot(key).await;
        eventually(async || self.owner_of(slot).await, AGREEMENT).await
    }

    /// Waits until all reachable nodes agree that a node other than `old` is the primary of a key.
    /// Returns the index of that node.
    pub(crate) async fn new_owner(&self, key: &str, old: usize) -> usize {
        let slot = self.slot(key).await;
        let new = async || self.owner_of(slot).await.filter(|owner| *owner != old);
        eventually(new, AGREEMENT).await
    }

    /// The index of the slot's primary; `None` while the reachable nodes disagree.
    async fn owner_of(&self, slot: u16) -> Option<usize> {
        let mut owners = Vec::new();
        for node in &self.nodes {
            // A node that was killed does not answer.
            let Ok(ranges) = node.server.try_command(&["CLUSTER", "SLOTS"]).await else {
                continue;
            };
            let ranges = Vec::<Vec<Value>>::from_redis_value(ranges).expect("a list of ranges");
            owners.push(ranges.iter().find_map(|range| owner_in(range, slot))?);
        }
        self.agreed_node(&owners)
    }

    /// The index of the node with this id, if all ids are the same.
    fn agreed_node(&self, ids: &[String]) -> Option<usize> {
        let first = ids.first()?;
        ids.iter().all(|id| id == first).then_some(())?;
        self.nodes.iter().position(|node| node.id == *first)
    }

    /// The index of the only replica of a node, as soon as all reachable nodes know it and both are
    /// connected. Before that a replica cannot be promoted: a node that takes it for a primary
    /// denies it its vote.
    pub(crate) async fn replica_of(&self, primary: usize) -> usize {
        let known = async || {
            let replica = self.known_replica_of(primary).await?;
            let info: String = self.node(replica).query(&["INFO", "replication"]).await;
            info.contains("master_link_status:up").then_some(replica)
        };
        eventually(known, AGREEMENT).await
    }

    /// The index of the only replica of a node; `None` while the reachable nodes disagree.
    async fn known_replica_of(&self, primary: usize) -> Option<usize> {
        let ask = ["CLUSTER", "REPLICAS", &self.nodes[primary].id];
        let mut replicas = Vec::new();
        for node in &self.nodes {
            let lines = match node.server.try_command(&ask).await {
                Ok(lines) => Vec::<String>::from_redis_value(lines).expect("a list of lines"),
                // The node takes the primary for a replica.
                Err(refusal) if refusal.code().is_some() => return None,
                // A node that was killed does not answer.
                Err(_) => continue,
            };
            let [line] = &lines[..] else { return None };
            replicas.push(line.split(' ').next()?.to_owned());
        }
        let first = replicas.first()?;
        replicas
            .iter()
            .all(|replica| replica == first)
            .then_some(())?;
        self.nodes.iter().position(|node| node.id == *first)
    }

    /// Promotes the replica of the key's primary, by `CLUSTER FAILOVER`. Returns the indexes of the
    /// old and of the new primary when all nodes agree.
    pub(crate) async fn fail_over(&self, key: &str) -> (usize, usize) {
        let old = self.owner(key).await;
        let replica = self.replica_of(old).await;
        self.node(replica).command(&["CLUSTER", "FAILOVER"]).await;
        assert_eq!(self.new_owner(key, old).await, replica);
        (old, replica)
    }

    /// Adds a primary without slots. Returns its index.
    pub(crate) async fn add_node(&mut self) -> usize {
        let node = self.start_node().await;
        let port = self.nodes[0].port.to_string();
        node.server
            .command(&["CLUSTER", "MEET", "127.0.0.1", &port])
            .await;
        self.nodes.push(node);
        self.agree(self.nodes.len()).await;
        self.nodes.len() - 1
    }

    /// Moves a slot to another primary, key by key, with a pause before the first key, after each,
    /// and before the end. The slot is migrating for the whole time.
    pub(crate) async fn move_slot(&self, slot: u16, to: usize, pause: Duration) {
        let from = eventually(async || self.owner_of(slot).await, AGREEMENT).await;
        let text = slot.to_string();
        let set = async |node: usize, state: &str, id: usize| {
            let id = &self.nodes[id].id;
            let command = ["CLUSTER", "SETSLOT", &text, state, id];
            self.node(node).command(&command).await;
        };
        set(to, "IMPORTING", from).await;
        set(from, "MIGRATING", to).await;
        loop {
            tokio::time::sleep(pause).await;
            let one = ["CLUSTER", "GETKEYSINSLOT", &text, "1"];
            let keys: Vec<String> = self.node(from).query(&one).await;
            let Some(key) = keys.first() else { break };
            self.migrate(key, from, to).await;
        }
        // The new owner is set first, so that no key is added to the slot at a node that does not
        // own it. The other nodes are set too: a node that knows a later epoch of the old owner
        // would ignore the new owner.
        let others = (0..self.nodes.len()).filter(|node| *node != to && *node != from);
        for node in [to, from].into_iter().chain(others) {
            set(node, "NODE", to).await;
        }
        let moved = async || (self.owner_of(slot).await == Some(to)).then_some(());
        eventually(moved, AGREEMENT).await;
    }

    /// Returns whether [`move_slot_at_once`](Self::move_slot_at_once) works. Valkey 9 has it.
    pub(crate) async fn moves_slots_at_once(&self) -> bool {
        let help: Vec<String> = self.ask(&["CLUSTER", "HELP"]).await;
        help.iter().any(|line| line.starts_with("MIGRATESLOTS "))
    }

    /// Moves a slot to another primary with all of its keys at once: the keys are copied while the
    /// old primary serves them.
    /// <https://valkey.io/commands/cluster-migrateslots/>
    pub(crate) async fn move_slot_at_once(&self, slot: u16, to: usize) {
        let from = eventually(async || self.owner_of(slot).await, AGREEMENT).await;
        let (text, id) = (slot.to_string(), &self.nodes[to].id);
        let command = [
            "CLUSTER",
            "MIGRATESLOTS",
            "SLOTSRANGE",
            &text,
            &text,
            "NODE",
            id,
        ];
        self.node(from).command(&command).await;
        let moved = async || (self.owner_of(slot).await == Some(to)).then_some(());
        eventually(moved, AGREEMENT).await;
    }

    async fn migrate(&self, key: &str, from: usize, to: usize) {
        let port = self.nodes[to].port.to_string();
        let mut command = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000"];
        match (&self.options.user, &self.options.password) {
            (Some(user), Some(password)) => command.extend(["AUTH2", user, password]),
            (None, Some(password)) => command.extend(["AUTH", password]),
            _ => {}
        }
        command.extend(["KEYS", key]);
        self.node(from).command(&command).await;
    }

    /// Asks the first node that can be reached.
    async fn ask<T: FromRedisValue>(&self, parts: &[&str]) -> T {
        let mut last: Option<RedisResult<Value>> = None;
        for node in &self.nodes {
            match node.server.try_command(parts).await {
                Ok(answer) => {
                    return redis::from_redis_value(answer).expect("an answer of this type");
                }
                error => last = Some(error),
            }
        }
        panic!("no node answers {parts:?}: {last:?}");
    }
}

/// The id of the primary in an element of `CLUSTER SLOTS`, if the slot is in its range.
/// <https://redis.io/docs/latest/commands/cluster-slots/>
fn owner_in(range: &[Value], slot: u16) -> Option<String> {
    let [
        Value::Int(first),
        Value::Int(last),
        Value::Array(primary),
        ..,
    ] = range
    else {
        panic!("CLUSTER SLOTS has another form: {range:?}");
    };
    (*first..=*last).contains(&slot.into()).then_some(())?;
    redis::from_redis_value(primary[2].clone()).ok()
}
