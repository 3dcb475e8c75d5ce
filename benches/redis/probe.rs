//! The servers, and the bench's own queries, over connections that neither side uses.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use redis::{Value, aio::MultiplexedConnection};

use crate::{
    GROUP,
    address::Address,
    setup::Setup,
    support::{Options, RedisServer, cluster::Cluster, raw, tls::Tls},
};

/// The number of calls of each command at the server, including the calls in scripts.
pub(crate) type Commands = BTreeMap<String, u64>;

/// The work of all servers until now.
#[derive(Debug, Default)]
pub(crate) struct ServerUsage {
    pub(crate) cpu: Duration,
    pub(crate) commands: Commands,
    /// The number of times that the servers have read from a connection.
    pub(crate) reads: u64,
}

/// One server or a cluster, and a connection to each node. The commands on these connections are
/// not counted.
#[derive(Debug)]
pub(crate) struct Probe {
    servers: Servers,
    address: Address,
    /// The certificate of a server with TLS. Dropping it deletes the files.
    tls: Option<Tls>,
    connections: Vec<MultiplexedConnection>,
    /// The number of `XINFO GROUPS` that this probe has sent.
    polls: AtomicU64,
}

#[derive(Debug)]
enum Servers {
    One(RedisServer),
    Cluster(Cluster),
}

impl Probe {
    /// Starts a server.
    pub(crate) async fn start(setup: &Setup) -> Self {
        let tls = setup.tls.then(Tls::new);
        let mut options = options(setup);
        if let Some(tls) = &tls {
            options = options.args(tls.args("no"));
        }
        let server = RedisServer::with(options).await;
        let address = match &tls {
            Some(tls) => Address::tls(tls.url(), tls.file("cert.pem")),
            None => Address::plain(server.url()),
        };
        Self::connect(Servers::One(server), address, tls).await
    }

    /// Starts a cluster of one primary.
    pub(crate) async fn cluster_of_one(setup: &Setup) -> Self {
        let server = RedisServer::with(options(setup).cluster()).await;
        let address = Address::plain(server.url());
        Self::connect(Servers::One(server), address, None).await
    }

    /// Starts a cluster of three primaries.
    pub(crate) async fn cluster_of_three(setup: &Setup) -> Self {
        let cluster = Cluster::with(options(setup), 0).await;
        let address = Address::plain(cluster.url());
        Self::connect(Servers::Cluster(cluster), address, None).await
    }

    async fn connect(servers: Servers, address: Address, tls: Option<Tls>) -> Self {
        let mut connections = Vec::new();
        for node in 0..servers.len() {
            connections.push(servers.node(node).connection().await);
        }
        Self {
            servers,
            address,
            tls,
            connections,
            polls: AtomicU64::new(0),
        }
    }

    /// The server, or the first node of the cluster.
    pub(crate) fn server(&self) -> &RedisServer {
        self.servers.node(0)
    }

    /// Makes senders and workers connect to this port. The probe still queries the server directly.
    pub(crate) fn connect_through(&mut self, port: u16) {
        self.address = self.address.with_port(port);
    }

    /// The address that senders and workers connect to.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// The server's port, without a proxy.
    pub(crate) fn port(&self) -> u16 {
        self.tls.as_ref().map_or(self.server().port(), Tls::port)
    }

    /// Sends a command to the server, or to the first node of the cluster.
    pub(crate) async fn query<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        self.query_node(0, words).await
    }

    async fn query_node<T: redis::FromRedisValue>(&self, node: usize, words: &[&str]) -> T {
        let mut command = redis::Cmd::new();
        command.arg(words);
        let mut connection = self.connections[node].clone();
        match command.query_async(&mut connection).await {
            Ok(answer) => answer,
            Err(error) => panic!("{}: {error}", words.join(" ")),
        }
    }

    /// Deletes all data except the groups of the workers.
    pub(crate) async fn clear(&self, setup: &Setup) {
        for node in 0..self.connections.len() {
            let () = self.query_node(node, &["FLUSHALL"]).await;
        }
        for stream in setup.streams() {
            let create = ["XGROUP", "CREATE", &stream, GROUP, "0", "MKSTREAM"];
            let () = self.query_node(self.node_of(&stream).await, &create).await;
        }
    }

    /// The index of the node that has a stream.
    async fn node_of(&self, stream: &str) -> usize {
        match &self.servers {
            Servers::One(_) => 0,
            Servers::Cluster(cluster) => cluster.owner(stream).await,
        }
    }

    pub(crate) async fn usage(&self) -> ServerUsage {
        let mut usage = ServerUsage::default();
        for node in 0..self.connections.len() {
            let info: String = self.query_node(node, &["INFO", "all"]).await;
            usage.add(&info);
        }
        usage.commands.remove("info");
        if let Some(polls) = usage.commands.get_mut("xinfo|groups") {
            *polls -= self.polls.load(Ordering::Relaxed);
        }
        usage
    }

    /// Waits until the group of each stream has read and acknowledged everything.
    pub(crate) async fn wait_until_drained(&self, setup: &Setup) {
        for stream in setup.streams() {
            while self.pending_and_lag(&stream).await != Some((0, 0)) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    /// The number of the group's pending entries on a stream, and its lag: the number of entries
    /// that it has not read.
    async fn pending_and_lag(&self, stream: &str) -> Option<(i64, i64)> {
        let groups: Vec<HashMap<String, Value>> = {
            let groups = ["XINFO", "GROUPS", stream];
            self.query_node(self.node_of(stream).await, &groups).await
        };
        self.polls.fetch_add(1, Ordering::Relaxed);
        let number = |name| match groups.first()?.get(name)? {
            Value::Int(number) => Some(*number),
            _ => None,
        };
        Some((number("pending")?, number("lag")?))
    }

    /// Returns whether everything was read and acknowledged, according to the entries themselves.
    pub(crate) async fn is_drained(&self, setup: &Setup) -> bool {
        for stream in setup.streams() {
            if !raw::drained(self.server_of(&stream).await, &stream, GROUP).await {
                return false;
            }
        }
        true
    }

    /// The number of entries on all streams.
    pub(crate) async fn entry_count(&self, setup: &Setup) -> usize {
        let mut entries = 0;
        for stream in setup.streams() {
            entries += raw::len(self.server_of(&stream).await, &stream).await;
        }
        entries
    }

    async fn server_of(&self, stream: &str) -> &RedisServer {
        self.servers.node(self.node_of(stream).await)
    }
}

impl Servers {
    fn len(&self) -> usize {
        match self {
            Servers::One(_) => 1,
            Servers::Cluster(cluster) => cluster.len(),
        }
    }

    fn node(&self, node: usize) -> &RedisServer {
        match self {
            Servers::One(server) => server,
            Servers::Cluster(cluster) => cluster.node(node),
        }
    }
}

impl ServerUsage {
    /// Adds the numbers of a node's `INFO all`.
    fn add(&mut self, info: &str) {
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name));
        let seconds: f64 = ["used_cpu_sys:", "used_cpu_user:"]
            .iter()
            .filter_map(|name| field(name)?.parse::<f64>().ok())
            .sum();
        self.cpu += Duration::from_secs_f64(seconds);
        let reads = field("total_reads_processed:").and_then(|reads| reads.parse::<u64>().ok());
        self.reads += reads.unwrap_or_default();
        for line in info.lines() {
            // cmdstat_xinfo|groups:calls=1,usec=7,…
            let calls = || {
                let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
                Some((name, rest.split_once(',')?.0.parse::<u64>().ok()?))
            };
            if let Some((name, calls)) = calls() {
                *self.commands.entry(name.to_owned()).or_default() += calls;
            }
        }
    }
}

fn options(setup: &Setup) -> Options {
    match setup.aof {
        true => Options::new().args(["--appendonly", "yes", "--appendfsync", "everysec"]),
        false => Options::new(),
    }
}
