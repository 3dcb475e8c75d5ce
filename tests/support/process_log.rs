//! The log of the test's own process.

use std::{
    io,
    sync::{Mutex, OnceLock},
};

static LINES: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Lines;

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LINES.lock().expect("no writer panics").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps warnings from now on, of all tests of this program together.
pub(crate) fn keep() {
    static KEPT: OnceLock<()> = OnceLock::new();
    KEPT.get_or_init(|| {
        tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
            .with_ansi(false)
            .with_writer(|| Lines)
            .init();
    });
}

/// The warnings that contain all of these words, such as the name of a stream that is used by one
/// test alone.
pub(crate) fn warnings(words: &[&str]) -> Vec<String> {
    let lines = LINES.lock().expect("no writer panics");
    let lines = String::from_utf8_lossy(&lines);
    let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
    lines.lines().filter(has_all).map(str::to_owned).collect()
}
