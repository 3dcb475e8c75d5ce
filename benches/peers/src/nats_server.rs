//! A real `nats-server`, started like the Redis servers of `tests/support`: on a free loopback port
//! and with a fresh directory. Dropping it kills the server.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// The maximum time that a server may take to start. It is long, since loaded machines are slow.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running `nats-server` with JetStream. The environment variable `NATS_SERVER` replaces the
/// `nats-server` of the `PATH`.
#[derive(Debug)]
pub(crate) struct NatsServer {
    url: String,
    process: Child,
    dir: Option<TempDir>,
}

impl NatsServer {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("campanile-nats-")
            .tempdir()
            .expect("a temporary directory");
        let log = File::create(dir.path().join("nats.log")).expect("the log is created");
        let program = std::env::var_os("NATS_SERVER").unwrap_or_else(|| "nats-server".into());
        let process = Command::new(&program)
            // Port -1 means any free port. The server writes the chosen port to a file.
            .args(["--addr", "127.0.0.1", "--port", "-1", "--jetstream"])
            .arg("--store_dir")
            .arg(dir.path().join("store"))
            .arg("--ports_file_dir")
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log can be shared"))
            .stderr(log)
            .spawn();
        let process = match process {
            Ok(process) => process,
            Err(error) if error.kind() == ErrorKind::NotFound => panic!(
                "{} is missing; install it: apt-get install nats-server",
                Path::new(&program).display()
            ),
            Err(error) => panic!("{} does not run: {error}", Path::new(&program).display()),
        };
        let mut server = Self {
            url: String::new(),
            process,
            dir: Some(dir),
        };
        let started = Instant::now();
        while server.url.is_empty() {
            let ended = server.process.try_wait().ok().flatten();
            if ended.is_some() || started.elapsed() > START_TIMEOUT {
                let log = fs::read_to_string(server.dir().join("nats.log")).unwrap_or_default();
                panic!("nats-server did not start ({ended:?}):\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            server.url = server.written_url().unwrap_or_default();
        }
        server
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The process id of the server.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The URL in the file that the server wrote: `{"nats":["nats://127.0.0.1:…"]}`.
    fn written_url(&self) -> Option<String> {
        let name = format!("nats-server_{}.ports", self.process.id());
        let ports = fs::read(self.dir().join(name)).ok()?;
        let ports: serde_json::Value = serde_json::from_slice(&ports).ok()?;
        Some(ports["nats"][0].as_str()?.to_owned())
    }

    fn dir(&self) -> &Path {
        self.dir
            .as_ref()
            .expect("the directory exists until the drop")
            .path()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        // Errors are ignored: the server may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("nats-server's log is kept in {}", dir.keep().display());
        }
    }
}
