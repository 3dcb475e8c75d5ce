//! A terminal: a pseudo terminal of the system, and an emulator that computes the visible text.

use std::{
    num::NonZeroU16,
    process::ExitStatus,
    time::{Duration, Instant},
};

use pty_process::{Pty, Size};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Child,
    time::timeout,
};

use super::{
    SOON,
    support::{RedisServer, within},
};

const ROWS: u16 = 24;
const COLUMNS: u16 = 120;

/// The program in a terminal.
pub(super) struct Terminal {
    pty: Pty,
    child: Child,
    emulator: vt100::Parser<Surprises>,
    /// The program's whole output.
    pub(super) written: Vec<u8>,
}

/// Effects on a terminal besides showing text, none of which this program may have.
#[derive(Debug, Default)]
pub(super) struct Surprises(Vec<String>);

impl vt100::Callbacks for Surprises {
    fn audible_bell(&mut self, _: &mut vt100::Screen) {
        self.0.push("it rang".into());
    }

    fn set_window_title(&mut self, _: &mut vt100::Screen, title: &[u8]) {
        self.0
            .push(format!("the title is {}", title.escape_ascii()));
    }

    fn copy_to_clipboard(&mut self, _: &mut vt100::Screen, _: &[u8], data: &[u8]) {
        self.0.push(format!("copied {}", data.escape_ascii()));
    }
}

impl Terminal {
    /// Starts the program with this command line, split at blanks.
    pub(super) fn start(server: &RedisServer, line: &str) -> Self {
        let (pty, pts) = pty_process::open().expect("a pseudo terminal");
        pty.resize(Size::new(ROWS, COLUMNS))
            .expect("the size can be set");
        let child = pty_process::Command::new(env!("CARGO_BIN_EXE_campanile"))
            .args(line.split_whitespace())
            .env("REDIS_URL", server.url())
            .kill_on_drop(true)
            .spawn(pts)
            .expect("the program can be started");
        let size = |size| NonZeroU16::new(size).expect("not zero");
        let surprises = Surprises::default();
        Self {
            pty,
            child,
            emulator: vt100::Parser::new_with_callbacks(size(ROWS), size(COLUMNS), 0, surprises),
            written: Vec::new(),
        }
    }

    pub(super) fn screen(&self) -> String {
        self.emulator.screen().contents()
    }

    /// Returns whether the program shows the terminal's alternate screen.
    pub(super) fn is_on_another_screen(&self) -> bool {
        self.emulator.screen().alternate_screen()
    }

    /// Waits until all these texts are visible at once.
    #[track_caller]
    pub(super) fn sees(&mut self, texts: &[&str]) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let started = Instant::now();
            loop {
                let screen = self.screen();
                if texts.iter().all(|text| screen.contains(text)) {
                    return;
                }
                let goes_on = started.elapsed() < SOON && self.read().await;
                assert!(
                    goes_on,
                    "{caller}: {texts:?} is not on the screen:\n{}",
                    self.screen()
                );
            }
        }
    }

    pub(super) async fn types(&mut self, keys: &str) {
        let typed = self.pty.write_all(keys.as_bytes()).await;
        typed.expect("the terminal takes keys");
    }

    /// Waits until the program has ended.
    pub(super) async fn ends(&mut self) -> ExitStatus {
        while self.read().await {}
        within(SOON, self.child.wait())
            .await
            .expect("the program can be waited for")
    }

    /// The effects on the terminal besides showing text.
    pub(super) fn surprises(&self) -> &[String] {
        &self.emulator.callbacks().0
    }

    /// Reads more output; `false` at the end.
    async fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        match timeout(Duration::from_secs(30), self.pty.read(&mut buffer)).await {
            // On Linux the end of the output is an error, since the other side is closed.
            Ok(Ok(0) | Err(_)) => false,
            Ok(Ok(count)) => {
                self.written.extend_from_slice(&buffer[..count]);
                self.emulator.process(&buffer[..count]);
                true
            }
            Err(_) => panic!("no output for 30 s:\n{}", self.screen()),
        }
    }
}
