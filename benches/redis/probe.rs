//! The bench's queries of the server, separate from both sides.

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
    support::{Options, RedisServer, raw, tls::Tls},
};

/// The number of calls of each command at the server, including the calls in scripts.
pub(crate) type Commands = BTreeMap<String, u64>;

/// A server, and a connection whose commands are not counted.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) server: RedisServer,
    address: Address,
    /// The certificate of a server with TLS. Dropping it deletes the files.
    tls: Option<Tls>,
    connection: MultiplexedConnection,
    /// The number of polls for the state of groups.
    polls: AtomicU64,
}

impl Probe {
    pub(crate) async fn start(setup: &Setup) -> Self {
        let mut options = Options::new();
        if setup.aof {
            options = options.args(["--appendonly", "yes", "--appendfsync", "everysec"]);
        }
        let tls = setup.tls.then(Tls::new);
        if let Some(tls) = &tls {
            options = options.args(tls.args("no"));
        }
        let server = RedisServer::with(options).await;
        Self {
            connection: server.connection().await,
            address: match &tls {
                Some(tls) => Address::tls(tls.url(), tls.file("cert.pem")),
                None => Address::plain(server.url()),
            },
            tls,
            server,
            polls: AtomicU64::new(0),
        }
    }

    /// Makes senders and workers connect to this port; the probe still queries the server.
    pub(crate) fn lead_through(&mut self, port: u16) {
        self.address = self.address.by_port(port);
    }

    /// The address that senders and workers connect to.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// The server's port, without a proxy.
    pub(crate) fn port(&self) -> u16 {
        self.tls.as_ref().map_or(self.server.port(), Tls::port)
    }

    pub(crate) async fn query<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::Cmd::new();
        command.arg(words);
        match command.query_async(&mut self.connection.clone()).await {
            Ok(answer) => answer,
            Err(error) => panic!("{}: {error}", words.join(" ")),
        }
    }

    /// Deletes all data except the groups of the workers.
    pub(crate) async fn clear(&self, setup: &Setup) {
        let () = self.query(&["FLUSHALL"]).await;
        for stream in setup.streams() {
            let create = ["XGROUP", "CREATE", &stream, GROUP, "0", "MKSTREAM"];
            let () = self.query(&create).await;
        }
    }

    /// The CPU time that the server has used, and the commands that it has run.
    pub(crate) async fn used(&self) -> (Duration, Commands) {
        let info: String = self.query(&["INFO", "all"]).await;
        let seconds: f64 = ["used_cpu_sys:", "used_cpu_user:"]
            .iter()
            .filter_map(|field| info.lines().find_map(|line| line.strip_prefix(field)))
            .filter_map(|seconds| seconds.parse::<f64>().ok())
            .sum();
        let calls = |line: &str| {
            // cmdstat_xinfo|groups:calls=1,usec=7,…
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((name.to_owned(), rest.split_once(',')?.0.parse().ok()?))
        };
        let mut commands: Commands = info.lines().filter_map(calls).collect();
        commands.remove("info");
        if let Some(polls) = commands.get_mut("xinfo|groups") {
            *polls -= self.polls.load(Ordering::Relaxed);
        }
        (Duration::from_secs_f64(seconds), commands)
    }

    /// Waits until the group of each stream has read and acknowledged everything.
    pub(crate) async fn drained(&self, setup: &Setup) {
        for stream in setup.streams() {
            while self.left(&stream).await != Some((0, 0)) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    /// The group's pending entries of a stream, and its entries not yet read.
    async fn left(&self, stream: &str) -> Option<(i64, i64)> {
        let groups: Vec<HashMap<String, Value>> = self.query(&["XINFO", "GROUPS", stream]).await;
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
            if !raw::drained(&self.server, &stream, GROUP).await {
                return false;
            }
        }
        true
    }

    pub(crate) async fn entries(&self, setup: &Setup) -> usize {
        let mut entries = 0;
        for stream in setup.streams() {
            entries += raw::len(&self.server, &stream).await;
        }
        entries
    }
}
