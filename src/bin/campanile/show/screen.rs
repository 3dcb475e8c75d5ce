//! A live view.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use super::Out;
use crate::failure::Failure;

/// The terminal's other screen, without lines that wrap. What was on the terminal before is there
/// again when this is dropped.
///
/// The sequences are those of xterm, which every terminal of today knows:
/// <https://invisible-island.net/xterm/ctlseqs/ctlseqs.html>
#[derive(Debug)]
pub(crate) struct Screen<'a>(&'a Out);

impl<'a> Screen<'a> {
    pub(crate) fn enter(out: &'a Out) -> Result<Self, Failure> {
        let screen = Self(out);
        out.raw("\x1b[?1049h\x1b[?7l")?;
        Ok(screen)
    }

    /// Shows these lines and no others. They are written in one piece, so that it does not flicker.
    pub(crate) fn draw(&self, lines: &[String]) -> Result<(), Failure> {
        let mut frame = String::from("\x1b[H\x1b[2J");
        for (row, line) in (1..).zip(lines) {
            // To a row, and not by a line break: one at the end of the screen would move all of it.
            let _ = write!(frame, "\x1b[{row};1H\x1b[2K{line}");
        }
        self.0.raw(frame)
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(b"\x1b[?7h\x1b[?1049l");
        let _ = stdout.flush();
    }
}
