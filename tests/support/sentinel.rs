//! Three real Sentinels that watch a primary with two replicas.
//!
//! ```ignore
//! let group = SentinelGroup::start().await;
//! group.url(0);                                     // redis+sentinel://…/mymaster/0
//! let old = group.primary().await;                  // an index of `server`
//! group.server(old).signal(Signal::Kill);
//! let new = group.new_primary(old).await;           // as soon as all Sentinels say so
//! ```

use std::{collections::HashMap, net::Ipv4Addr, path::Path, time::Duration};

use super::{Options, RedisServer, free_port, proxy::Proxy, raw::eventually, tls::Tls};

/// The name of the primary at the Sentinels.
pub(crate) const NAME: &str = "mymaster";
/// The longest wait for the Sentinels to agree, for example about the primary. They repeat a failed
/// attempt to promote a replica after twice the `failover-timeout`.
const AGREEMENT: Duration = Duration::from_secs(30);
/// The source address of the Sentinels and the replicas, by which a proxy distinguishes them from
/// clients.
const THEIRS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// The login of the Sentinels themselves, if they have one.
const LOGIN: (&str, &str) = ("watcher", "sentinel-secret");

/// Running Sentinels and their servers. Dropping the group kills all of them.
#[derive(Debug)]
pub(crate) struct SentinelGroup {
    servers: Vec<RedisServer>,
    sentinels: Vec<RedisServer>,
    /// The port at which the Sentinels announce each server.
    server_ports: Vec<u16>,
    sentinel_ports: Vec<u16>,
    login: String,
    sentinel_login: bool,
    tls: Option<Tls>,
    /// The proxy in front of the first primary; all connections to that server go through it.
    proxy: Option<Proxy>,
}

/// The set-up of a [`SentinelGroup`].
#[derive(Debug, Default)]
pub(crate) struct Setup {
    /// The options of the servers. Sentinels and replicas use their login, too.
    pub(crate) options: Options,
    /// Gives the Sentinels a login that differs from the servers' login.
    pub(crate) sentinel_login: bool,
    /// Has all servers and Sentinels use TLS, with a certificate for `localhost` and for 127.0.0.1.
    pub(crate) tls: bool,
    /// Puts a proxy in front of the first primary: see [`SentinelGroup::isolate_primary`].
    pub(crate) can_isolate: bool,
}

/// The state of a replica, by which a Sentinel decides about its promotion.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) priority: u32,
    /// The position in the primary's writes up to which the replica has received them.
    pub(crate) offset: u64,
}

impl SentinelGroup {
    /// Starts a group with the default settings.
    pub(crate) async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    pub(crate) async fn with(setup: Setup) -> Self {
        let tls = setup
            .tls
            .then(|| Tls::with_names("DNS:localhost,IP:127.0.0.1"));
        let mut group = Self {
            servers: Vec::new(),
            sentinels: Vec::new(),
            server_ports: Vec::new(),
            sentinel_ports: Vec::new(),
            login: setup.options.url_login(),
            sentinel_login: setup.sentinel_login,
            tls,
            proxy: None,
        };
        let mut options = setup
            .options
            .clone()
            .args(["--repl-diskless-sync-delay", "0"]);
        if let Some(password) = &setup.options.password {
            options = options.args(["--masterauth", password]);
        }
        if let Some(user) = &setup.options.user {
            options = options.args(["--masteruser", user]);
        }
        if setup.can_isolate {
            // The protected mode allows connections from 127.0.0.1 alone.
            options = options.args(["--protected-mode", "no"]);
        }
        let (primary, port) = group.start_server(options.clone()).await;
        group.add_server(primary, port);
        if setup.can_isolate {
            let proxy = Proxy::start(port).await;
            group.server_ports[0] = proxy.port();
            group.proxy = Some(proxy);
        }
        let primary = group.server_ports[0].to_string();
        for _ in 0..2 {
            let mut options = options.clone().args(["--replicaof", "127.0.0.1", &primary]);
            if setup.can_isolate {
                options = options
                    .args(["--bind-source-addr", &THEIRS.to_string()])
                    .args(["--replica-announce-ip", "127.0.0.1"]);
            }
            let (replica, port) = group.start_server(options).await;
            group.add_server(replica, port);
        }
        group.are_linked().await;
        let config = group.config(&setup, &primary);
        for _ in 0..3 {
            let mut options = Options::new().sentinel(&config);
            if setup.sentinel_login {
                options = options.login(LOGIN.0, LOGIN.1);
            }
            let (sentinel, port) = group.start_server(options).await;
            group.sentinels.push(sentinel);
            group.sentinel_ports.push(port);
        }
        group.know_each_other().await;
        group
    }

    fn add_server(&mut self, server: RedisServer, port: u16) {
        self.servers.push(server);
        self.server_ports.push(port);
    }

    /// Starts a server. Returns it with the port that it announces.
    async fn start_server(&self, mut options: Options) -> (RedisServer, u16) {
        let mut announced = None;
        if let Some(tls) = &self.tls {
            let port = *announced.insert(free_port());
            options = options
                .args(tls.args_at(port, "no"))
                .args(["--tls-replication", "yes"]);
        }
        let server = RedisServer::with(options).await;
        let port = announced.unwrap_or(server.port());
        (server, port)
    }

    fn config(&self, setup: &Setup, primary: &str) -> String {
        let mut lines = vec![
            format!("sentinel monitor {NAME} 127.0.0.1 {primary} 2"),
            format!("sentinel down-after-milliseconds {NAME} 1000"),
            format!("sentinel failover-timeout {NAME} 5000"),
        ];
        if let Some(user) = &setup.options.user {
            lines.push(format!("sentinel auth-user {NAME} {user}"));
        }
        if let Some(password) = &setup.options.password {
            lines.push(format!("sentinel auth-pass {NAME} {password}"));
        }
        if setup.sentinel_login {
            let (user, password) = LOGIN;
            lines.push("user default off".to_owned());
            lines.push(format!("user {user} on >{password} allchannels +@all"));
            lines.push(format!("sentinel sentinel-user {user}"));
            lines.push(format!("sentinel sentinel-pass {password}"));
        }
        if setup.can_isolate {
            lines.push(format!("bind-source-addr {THEIRS}"));
            lines.push("sentinel announce-ip 127.0.0.1".to_owned());
        }
        lines.join("\n") + "\n"
    }

    /// Waits until both replicas are connected to their primary.
    async fn are_linked(&self) {
        for replica in &self.servers[1..] {
            let linked = async || {
                let info: String = replica.query(&["INFO", "replication"]).await;
                info.contains("master_link_status:up").then_some(())
            };
            eventually(linked, AGREEMENT).await;
        }
    }

    /// Waits until each Sentinel knows the others and both replicas.
    async fn know_each_other(&self) {
        for sentinel in &self.sentinels {
            let knows = async || {
                let info: String = sentinel.query(&["INFO", "sentinel"]).await;
                info.contains("status=ok").then_some(())?;
                info.contains("slaves=2,sentinels=3").then_some(())
            };
            eventually(knows, AGREEMENT).await;
        }
    }

    /// The URL of the group, with this number of a database.
    pub(crate) fn url(&self, database: u32) -> String {
        self.url_of(NAME, database)
    }

    /// The URL of the primary of this name at the Sentinels.
    pub(crate) fn url_of(&self, name: &str, database: u32) -> String {
        let ports = self.sentinel_ports.iter();
        let hosts: Vec<_> = ports.map(|port| format!("127.0.0.1:{port}")).collect();
        let scheme = if self.tls.is_some() {
            "rediss"
        } else {
            "redis"
        };
        let (login, hosts) = (&self.login, hosts.join(","));
        let query = match self.sentinel_login {
            true => format!(
                "?sentinel_username={}&sentinel_password={}",
                LOGIN.0, LOGIN.1
            ),
            false => String::new(),
        };
        format!("{scheme}+sentinel://{login}{hosts}/{name}/{database}{query}")
    }

    /// The certificate of all servers and Sentinels.
    pub(crate) fn certificate(&self) -> Vec<u8> {
        self.tls
            .as_ref()
            .expect("a group with TLS")
            .file("cert.pem")
    }

    /// A directory that lasts as long as the group, and is kept if a test fails.
    pub(crate) fn dir(&self) -> &Path {
        self.servers[0].dir()
    }

    pub(crate) fn server(&self, index: usize) -> &RedisServer {
        &self.servers[index]
    }

    pub(crate) fn sentinel(&self, index: usize) -> &RedisServer {
        &self.sentinels[index]
    }

    /// The index of the primary, as soon as all reachable Sentinels name it.
    pub(crate) async fn primary(&self) -> usize {
        eventually(async || self.named_primary().await, AGREEMENT).await
    }

    /// Waits until all reachable Sentinels name a primary other than `old`, and that server has the
    /// role. Returns its index.
    pub(crate) async fn new_primary(&self, old: usize) -> usize {
        let new = async || {
            let named = self.named_primary().await.filter(|named| *named != old)?;
            self.has_role(named, "master").await.then_some(named)
        };
        eventually(new, AGREEMENT).await
    }

    /// Waits until a server that was the primary is a replica.
    pub(crate) async fn demoted(&self, old: usize) {
        let demoted = async || self.has_role(old, "slave").await.then_some(());
        eventually(demoted, AGREEMENT).await;
    }

    async fn has_role(&self, server: usize, role: &str) -> bool {
        // The Sentinels close the connections of a server whose role they change.
        let asked = self.servers[server]
            .try_command(&["INFO", "replication"])
            .await;
        let info = asked.map(redis::from_redis_value::<String>);
        matches!(info, Ok(Ok(info)) if info.contains(&format!("role:{role}\r\n")))
    }

    async fn named_primary(&self) -> Option<usize> {
        let mut named = Vec::new();
        for sentinel in &self.sentinels {
            // A Sentinel that was killed does not answer.
            let ask = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME];
            if let Ok(address) = sentinel.try_command(&ask).await {
                let (_, port): (String, u16) = redis::from_redis_value(address).ok()?;
                named.push(port);
            }
        }
        let port = named.first()?;
        named.iter().all(|other| other == port).then_some(())?;
        self.server_ports.iter().position(|server| server == port)
    }

    /// Waits until all Sentinels have seen a state of a replica that has this property. They ask
    /// for it every 10 s.
    pub(crate) async fn have_seen(&self, replica: usize, is: impl Fn(&Seen) -> bool) {
        let port = self.server_ports[replica].to_string();
        for sentinel in &self.sentinels {
            let seen = async || {
                let ask = ["SENTINEL", "REPLICAS", NAME];
                let replicas: Vec<HashMap<String, String>> = sentinel.query(&ask).await;
                let replica = replicas.iter().find(|replica| replica["port"] == port)?;
                let seen = Seen {
                    priority: replica["slave-priority"].parse().ok()?,
                    offset: replica["slave-repl-offset"].parse().ok()?,
                };
                is(&seen).then_some(())
            };
            eventually(seen, AGREEMENT).await;
        }
    }

    /// Has the Sentinels promote a replica while the primary works. Returns the indexes of the old
    /// and of the new primary, as soon as all Sentinels name the new one. The Sentinels demote the
    /// old primary some seconds later, and it takes writes until then.
    pub(crate) async fn fail_over(&self) -> (usize, usize) {
        let old = self.primary().await;
        self.sentinels[0]
            .command(&["SENTINEL", "FAILOVER", NAME])
            .await;
        (old, self.new_primary(old).await)
    }

    /// Cuts the first primary off from the Sentinels and the replicas, while clients still reach it
    /// at the address that the Sentinels had named.
    pub(crate) fn isolate_primary(&self) {
        self.proxy().cut_off(THEIRS);
    }

    /// Ends the isolation.
    pub(crate) fn heal(&self) {
        self.proxy().heal();
    }

    fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("`can_isolate` is set")
    }
}
