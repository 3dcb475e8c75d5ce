//! Draws a live view on the terminal.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use super::Out;
use crate::command_error::CommandError;

/// The alternate screen of the terminal, without line wrapping. Dropping this value restores the
/// terminal.
///
/// The control sequences are those of xterm, which all current terminals support:
/// <https://invisible-island.net/xterm/ctlseqs/ctlseqs.html>
#[derive(Debug)]
pub(crate) struct Screen<'a>(&'a Out);

impl<'a> Screen<'a> {
    pub(crate) fn enter(out: &'a Out) -> Result<Self, CommandError> {
        let screen = Self(out);
        out.write_raw("\x1b[?1049h\x1b[?7l")?;
        Ok(screen)
    }

    /// Replaces the screen by these lines, in a single write, so that it does not flicker.
    pub(crate) fn draw(&self, lines: &[String]) -> Result<(), CommandError> {
        let mut frame = String::from("\x1b[H\x1b[2J");
        for (row, line) in (1..).zip(lines) {
            // Positions each row, because a line break in the last row would scroll the screen.
            let _ = write!(frame, "\x1b[{row};1H\x1b[2K{line}");
        }
        self.0.write_raw(frame)
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(b"\x1b[?7h\x1b[?1049l");
        let _ = stdout.flush();
    }
}
