//! The log lines of tests. A program that needs them includes this file by its path, since not
//! every package has `tracing-subscriber`.

// Every test program includes the whole module, and uses only a part of it.
#![allow(dead_code)]

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, OnceLock},
};

use tracing::{
    Level,
    level_filters::LevelFilter,
    subscriber::{DefaultGuard, set_default, set_global_default},
};
use tracing_subscriber::fmt::writer::MakeWriterExt;

/// Collects the lines that the current thread logs at INFO and above, until this value is dropped.
/// On a runtime of one thread these are the lines of the test's own worker, and of no other test.
pub(crate) struct Logs {
    written: Buffer,
    _guard: DefaultGuard,
}

impl Logs {
    pub(crate) fn start() -> Self {
        let written = Buffer::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        Self {
            written,
            _guard: set_default(subscriber),
        }
    }

    pub(crate) fn text(&self) -> String {
        self.written.text()
    }

    /// The lines that contain all of these texts.
    pub(crate) fn lines(&self, texts: &[&str]) -> Vec<String> {
        self.written.lines(texts)
    }
}

static WARNINGS: OnceLock<Buffer> = OnceLock::new();

/// Collects the warnings of all tests of this program from now on.
pub(crate) fn keep() {
    WARNINGS.get_or_init(|| {
        let written = Buffer::default();
        let writer = written.clone();
        // It also takes the lines of INFO that `Logs` collects, and drops them: where no subscriber of
        // any thread wants a line, `tracing` may remember that, and `Logs` would not get the line. A
        // test that shares its lines with other tests calls this first.
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(LevelFilter::INFO)
            .with_ansi(false)
            .with_writer((move || writer.clone()).with_max_level(Level::WARN))
            .finish();
        set_global_default(subscriber).expect("no other subscriber is global");
        written
    });
}

/// The collected warnings that contain all of these texts, such as the name of a stream that only
/// one test uses.
pub(crate) fn warnings(texts: &[&str]) -> Vec<String> {
    WARNINGS.get().expect("`keep` was called").lines(texts)
}

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    fn lines(&self, texts: &[&str]) -> Vec<String> {
        let text = self.text();
        let all = |line: &&str| texts.iter().all(|text| line.contains(text));
        text.lines().filter(all).map(str::to_owned).collect()
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
