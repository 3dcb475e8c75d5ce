//! Real Redis servers for tests and benches.
//!
//! ```ignore
//! mod support;
//! use support::{Options, RedisServer, Signal, raw::eventually};
//!
//! let server = RedisServer::start().await;                                // default settings
//! let server = RedisServer::with(Options::new().password("secret")).await; // customised
//! server.url();                                                           // redis://:secret@127.0.0.1:<port>/
//! server.command(&["XLEN", "app_stream"]).await;                          // redis::Value; panics on an error
//! server.signal(Signal::Stop);
//! server.restart().await;                                                 // same port, same data directory
//! ```
//!
//! Each server has a free loopback port and a fresh data directory, writes nothing to disk by
//! default, and is killed when it is dropped. If a panic drops it, its data and log stay and their
//! path is printed. `REDIS_SERVER` names another binary than the one on the `PATH`.

// Every test program includes the whole module, and uses only a part of it.
#![allow(dead_code)]

mod clock;
pub(crate) mod cluster;
pub(crate) mod ledger;
pub(crate) mod names;
pub(crate) mod proxy;
pub(crate) mod raw;
pub(crate) mod rights;
pub(crate) mod sentinel;
mod shim;
pub(crate) mod tls;
pub(crate) mod work;
pub(crate) mod worker;

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{BufRead, BufReader, ErrorKind, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use redis::{AsyncConnectionConfig, RedisResult, Value, aio::MultiplexedConnection};
use tempfile::TempDir;

/// Waits for a future. Panics if it takes longer than `limit`.
pub(crate) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(output) => output,
        Err(_) => panic!("not done within {limit:?}"),
    }
}

/// The longest time that a server may take to answer after its start. Loaded machines are slow.
const START: Duration = Duration::from_secs(30);

/// The name of a Sentinel's configuration file in its data directory.
const SENTINEL: &str = "sentinel.conf";

/// The options of a server.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    args: Vec<String>,
    user: Option<String>,
    password: Option<String>,
    acl: Option<String>,
    sentinel: Option<String>,
    cluster: bool,
    unix_socket: bool,
    own_clock: bool,
}

impl Options {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Further arguments of `redis-server`, such as `["--maxmemory", "10mb"]`.
    pub(crate) fn args<A: Into<String>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Requires this password.
    pub(crate) fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self.args(["--requirepass", password])
    }

    /// Loads an ACL file with these lines, such as `user worker on >pw ~* &* +@all`. The default
    /// user stays unchanged unless a line changes it.
    pub(crate) fn acl(mut self, lines: &str) -> Self {
        self.acl = Some(format!("{lines}\n"));
        self
    }

    /// Sets the user that [`RedisServer::url`] and the assertions log in as. Needed if the default
    /// user is off.
    pub(crate) fn login(mut self, user: &str, password: &str) -> Self {
        self.user = Some(user.to_owned());
        self.password = Some(password.to_owned());
        self
    }

    /// Makes the server a cluster of one node, which owns all slots.
    pub(crate) fn cluster(mut self) -> Self {
        self.cluster = true;
        self.args(["--cluster-enabled", "yes"])
    }

    /// Makes the server a Sentinel with these lines of configuration. A Sentinel rewrites them.
    pub(crate) fn sentinel(mut self, lines: &str) -> Self {
        self.sentinel = Some(lines.to_owned());
        self
    }

    /// Listens on a unix socket, too.
    pub(crate) fn unix_socket(mut self) -> Self {
        self.unix_socket = true;
        self
    }

    /// Gives the server a separate wall clock, which [`RedisServer::step_clock`] sets. Needs a C
    /// compiler.
    pub(crate) fn own_clock(mut self) -> Self {
        self.own_clock = true;
        self
    }

    /// Keeps the data over a [`RedisServer::restart`], by an append-only file that is written at
    /// each command.
    pub(crate) fn persistent(self) -> Self {
        self.args(["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// The login as a part of a URL, with its `@`. Empty without a password.
    fn url_login(&self) -> String {
        match (&self.user, &self.password) {
            (Some(user), Some(password)) => format!("{user}:{password}@"),
            (None, Some(password)) => format!(":{password}@"),
            _ => String::new(),
        }
    }
}

/// A signal to a server or to another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Freezes the process: connections stay open and nothing is answered.
    Stop,
    /// Ends the freeze.
    Cont,
    /// Kills the process.
    Kill,
    /// Asks the process to shut down.
    Term,
    /// Asks the process to shut down, as a terminal does.
    Int,
}

impl Signal {
    /// Sends the signal to a process. Waits until a freeze has taken effect.
    pub(crate) fn send(self, pid: u32) {
        let name = match self {
            Signal::Stop => "STOP",
            Signal::Cont => "CONT",
            Signal::Kill => "KILL",
            Signal::Term => "TERM",
            Signal::Int => "INT",
        };
        // Uses the `kill` of the shell: small systems lack the program.
        let sent = Command::new("sh")
            .args(["-c", &format!("kill -s {name} {pid}")])
            .status()
            .expect("sh runs");
        assert!(sent.success(), "SIG{name} was not delivered: {sent}");
        if self == Signal::Stop {
            // The delivery of a signal takes time, in which the process goes on.
            let given_up = Instant::now() + Duration::from_secs(10);
            while cfg!(target_os = "linux") && !is_stopped(pid) {
                assert!(Instant::now() < given_up, "{pid} goes on after SIGSTOP");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Returns whether every thread of a process is stopped or has ended.
/// <https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html>
fn is_stopped(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process is there");
    threads.flatten().all(|thread| {
        let Ok(stat) = fs::read_to_string(thread.path().join("stat")) else {
            return true;
        };
        // The state follows the name, which is in parentheses and may contain parentheses.
        let state = stat.rsplit_once(") ").map(|(_, rest)| &rest[..1]);
        matches!(state, Some("T" | "Z" | "X"))
    })
}

/// A running `redis-server`.
#[derive(Debug)]
pub(crate) struct RedisServer {
    options: Options,
    port: u16,
    process: Mutex<Child>,
    starts: AtomicU32,
    /// The data directory. `None` only in the drop, after the directory was kept for inspection.
    dir: Option<TempDir>,
}

impl RedisServer {
    /// Starts a server with the default settings.
    pub(crate) async fn start() -> Self {
        Self::with(Options::new()).await
    }

    /// Starts a server with these options.
    pub(crate) async fn with(options: Options) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("campanile-redis-")
            .tempdir()
            .expect("a temporary directory");
        if let Some(acl) = &options.acl {
            fs::write(dir.path().join("users.acl"), acl).expect("the ACL file is written");
        }
        if let Some(lines) = &options.sentinel {
            fs::write(dir.path().join(SENTINEL), lines).expect("the configuration is written");
        }
        let mut tries = 0;
        let (port, process) = loop {
            let port = free_port();
            match launch(&options, dir.path(), port, 0).await {
                Ok(process) => break (port, process),
                // Another process took the port in between.
                Err(log) if tries < 5 && log.contains("in use") => tries += 1,
                Err(log) => panic!("redis-server did not start on port {port}:\n{log}"),
            }
        };
        let server = Self {
            options,
            port,
            process: Mutex::new(process),
            starts: AtomicU32::new(1),
            dir: Some(dir),
        };
        if server.options.cluster {
            server.join_slots().await;
        }
        server
    }

    /// Starts a replica of this server, with the same options. On return the replica has all data,
    /// and it acknowledges new data at once.
    pub(crate) async fn replica(&self) -> Self {
        self.replica_through(self.port).await
    }

    /// Like [`replica`](Self::replica), over a proxy on this port.
    pub(crate) async fn replica_through(&self, port: u16) -> Self {
        // The default delay waits 5 s for further replicas before the first copy.
        let at_once = ["CONFIG", "SET", "repl-diskless-sync-delay", "0"];
        self.command(&at_once).await;
        let replica = Self::with(self.options.clone()).await;
        replica.follow(port).await;
        // A link that is up is not enough: this server sends new commands only after the replica's
        // first acknowledgement.
        let has_all = || async {
            let info: String = self.query(&["INFO", "replication"]).await;
            let offset = info.split("master_repl_offset:").nth(1)?.lines().next()?;
            let has = info.contains(&format!("state=online,offset={offset},"));
            has.then_some(())
        };
        raw::eventually(has_all, START).await;
        replica
    }

    /// Makes this server a replica of the server on this port.
    pub(crate) async fn follow(&self, port: u16) {
        let port = port.to_string();
        self.command(&["REPLICAOF", "127.0.0.1", &port]).await;
    }

    /// Ends this replica's link to its primary, and keeps it from a new one, until it is promoted:
    /// its login is refused. It keeps its data, and other servers and clients still reach it.
    pub(crate) async fn lose_primary(&self) {
        // A user without a password refuses every password.
        self.command(&["CONFIG", "SET", "masterauth", "refused"])
            .await;
        self.command(&["CLIENT", "KILL", "TYPE", "master"]).await;
        let lost = || async {
            let info: String = self.query(&["INFO", "replication"]).await;
            info.contains("master_link_status:down").then_some(())
        };
        raw::eventually(lost, START).await;
    }

    /// The URL of the server, with the login of the [`Options`]. For a cluster of one node it is
    /// the URL of the cluster.
    pub(crate) fn url(&self) -> String {
        let url = self.server_url();
        match self.options.cluster {
            true => url.replacen("redis", "redis+cluster", 1),
            false => url,
        }
    }

    /// The URL of the server itself, also if it is a node of a cluster.
    pub(crate) fn server_url(&self) -> String {
        format!(
            "redis://{}127.0.0.1:{}/",
            self.options.url_login(),
            self.port
        )
    }

    /// The URL of the server's unix socket. Needs [`Options::unix_socket`].
    pub(crate) fn unix_url(&self) -> String {
        assert!(self.options.unix_socket, "no unix socket was asked for");
        format!("redis+unix://{}", socket(self.dir()).display())
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the server.
    pub(crate) fn pid(&self) -> u32 {
        self.process().id()
    }

    /// The directory of its data and logs.
    pub(crate) fn dir(&self) -> &Path {
        self.dir
            .as_ref()
            .expect("the directory exists until the drop")
            .path()
    }

    /// A client of bare redis-rs.
    pub(crate) fn client(&self) -> redis::Client {
        redis::Client::open(self.server_url()).expect("the URL is valid")
    }

    /// A connection of bare redis-rs. Answers may take 30 s instead of the driver's 500 ms, so that
    /// blocking commands work.
    pub(crate) async fn connection(&self) -> MultiplexedConnection {
        match self.try_connection().await {
            Ok(connection) => connection,
            Err(error) => panic!(
                "no connection to redis-server on port {}: {error}",
                self.port
            ),
        }
    }

    async fn try_connection(&self) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(10)))
            .set_response_timeout(Some(Duration::from_secs(30)));
        self.client()
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }

    /// Sends a command, as `redis-cli` does, and panics if it is refused.
    pub(crate) async fn command<A: AsRef<[u8]>>(&self, parts: &[A]) -> Value {
        self.query(parts).await
    }

    /// Like [`command`](Self::command), with the answer read as a `T`.
    pub(crate) async fn query<T: redis::FromRedisValue>(&self, parts: &[impl AsRef<[u8]>]) -> T {
        match self
            .try_command(parts)
            .await
            .and_then(|value| redis::from_redis_value::<T>(value).map_err(Into::into))
        {
            Ok(answer) => answer,
            Err(error) => {
                let words: Vec<_> = parts
                    .iter()
                    .map(|part| String::from_utf8_lossy(part.as_ref()))
                    .collect();
                panic!("{}: {error}", words.join(" "))
            }
        }
    }

    /// Sends a command, which may fail.
    pub(crate) async fn try_command(&self, parts: &[impl AsRef<[u8]>]) -> RedisResult<Value> {
        let mut command = redis::Cmd::new();
        for part in parts {
            command.arg(part.as_ref());
        }
        command.query_async(&mut self.try_connection().await?).await
    }

    /// Sends a signal to the server's process. After [`Signal::Kill`] the process has ended.
    pub(crate) fn signal(&self, signal: Signal) {
        match signal {
            Signal::Kill => self.kill(),
            signal => signal.send(self.pid()),
        }
    }

    /// Closes every other connection to the server, as an operator or a failing network would.
    pub(crate) async fn kill_connections(&self) {
        for kind in ["normal", "pubsub"] {
            self.command(&["CLIENT", "KILL", "TYPE", kind]).await;
        }
    }

    /// Kills the server if it runs, and starts it again on its port and its data directory. Only
    /// the data in that directory survives: see [`Options::persistent`].
    pub(crate) async fn restart(&self) {
        self.kill();
        let start = self.starts.fetch_add(1, Ordering::Relaxed);
        match launch(&self.options, self.dir(), self.port, start).await {
            Ok(process) => *self.process() = process,
            Err(log) => panic!("redis-server did not start again:\n{log}"),
        }
        if self.options.cluster {
            self.join_slots().await;
        }
    }

    /// Sets the server's wall clock this many seconds ahead of the machine's (behind, if negative).
    /// Needs [`Options::own_clock`]. The server's monotonic clock does not change.
    pub(crate) fn step_clock(&self, seconds: i64) {
        assert!(self.options.own_clock, "no clock of its own was asked for");
        clock::set(self.dir(), seconds * 1000);
    }

    fn kill(&self) {
        let mut process = self.process();
        // Errors are ignored: the process may have ended by itself.
        let _ = process.kill();
        let _ = process.wait();
    }

    fn process(&self) -> std::sync::MutexGuard<'_, Child> {
        // A panic may drop the server, so a poisoned lock must not panic again.
        self.process
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    async fn join_slots(&self) {
        let info: String = self.query(&["CLUSTER", "INFO"]).await;
        if info.contains("cluster_slots_assigned:0") {
            // The oldest supported server has no ADDSLOTSRANGE.
            let mut command = vec!["CLUSTER".to_owned(), "ADDSLOTS".to_owned()];
            command.extend((0..16384).map(|slot: u32| slot.to_string()));
            self.command(&command).await;
        }
        raw::eventually(
            || async {
                let info: String = self.query(&["CLUSTER", "INFO"]).await;
                info.contains("cluster_state:ok").then_some(())
            },
            START,
        )
        .await;
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            let path = dir.keep();
            eprintln!("redis-server's data and log are kept in {}", path.display());
        }
    }
}

/// A free port below the range of outgoing connections, so that it is still free at a restart. The
/// port 10,000 above it is free too: a node of a cluster uses it for the cluster bus.
fn free_port() -> u16 {
    let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    (0..1000)
        .map(|_| fastrand::u16(10_000..22_000))
        .find(|port| is_free(*port) && is_free(port + 10_000))
        .expect("a free port")
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("redis.sock")
}

/// The program of the servers.
fn program() -> OsString {
    std::env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into())
}

/// The version of the servers, such as `(7, 0)`.
pub(crate) fn version() -> (u32, u32) {
    static VERSION: OnceLock<(u32, u32)> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let told = Command::new(program()).arg("--version").output();
        let told = String::from_utf8(told.expect("the server runs").stdout);
        let told = told.expect("the version is a text");
        // Redis server v=7.0.15 sha=00000000:0 …
        let version = told.split("v=").nth(1).and_then(|version| {
            let mut numbers = version.split('.').map(|number| number.parse().ok());
            Some((numbers.next()??, numbers.next()??))
        });
        version.unwrap_or_else(|| panic!("no version in {told}"))
    })
}

/// Starts the process and waits until it answers. The error is the server's log.
async fn launch(options: &Options, dir: &Path, port: u16, start: u32) -> Result<Child, String> {
    let program = program();
    let path = dir.join(format!("redis-{start}.log"));
    let log = File::create(&path).expect("the log is created");
    let mut command = Command::new(&program);
    if options.sentinel.is_some() {
        command.arg(dir.join(SENTINEL)).arg("--sentinel");
    }
    command
        .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
        .args(["--save", "", "--appendonly", "no"])
        .args([OsString::from("--dir"), dir.into()]);
    if options.acl.is_some() {
        command.arg("--aclfile").arg(dir.join("users.acl"));
        // The default since Redis 7.0.
        command.args(["--acl-pubsub-default", "resetchannels"]);
    }
    if options.unix_socket {
        command.arg("--unixsocket").arg(socket(dir));
    }
    if options.own_clock {
        clock::preload(&mut command, dir);
    }
    let process = command
        .args(&options.args)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("the log can be shared"))
        .stderr(log)
        .spawn();
    let mut process = match process {
        Ok(process) => process,
        Err(error) if error.kind() == ErrorKind::NotFound => panic!(
            "{} is missing; install it: apt-get install redis-server",
            Path::new(&program).display()
        ),
        Err(error) => panic!("{} does not run: {error}", Path::new(&program).display()),
    };

    let started = Instant::now();
    loop {
        let log = fs::read_to_string(&path).unwrap_or_default();
        if let Ok(Some(status)) = process.try_wait() {
            return Err(format!("{log}it ended: {status}"));
        }
        // The log shows that this server answers, and no other process on the same port.
        let is_started = match options.sentinel {
            Some(_) => log.contains("Sentinel ID is"),
            None => log.contains("eady to accept connections"),
        };
        if is_started && answers(port) {
            return Ok(process);
        }
        if started.elapsed() > START {
            let _ = process.kill();
            let _ = process.wait();
            return Err(format!("{log}no answer within {START:?}"));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Returns whether the server on this port answers a `PING`. An error that asks for a password is
/// an answer too.
fn answers(port: u16) -> bool {
    let ping = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"PING\r\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line)
    };
    ping().is_ok_and(|line| line.starts_with("+PONG") || line.starts_with("-NOAUTH"))
}
