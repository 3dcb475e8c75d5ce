//! Standard output.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use super::json;
use crate::command_error::CommandError;

/// Writes the results of a command to standard output.
#[derive(Debug)]
pub(crate) struct Out {
    /// `true` if JSON was requested.
    pub(crate) json: bool,
    /// `true` if standard output is a terminal.
    pub(crate) terminal: bool,
}

impl Out {
    pub(crate) fn new(json: bool) -> Self {
        Self {
            json,
            terminal: io::stdout().is_terminal(),
        }
    }

    /// Writes lines. The caller has escaped them, so that they are safe to show on a terminal.
    pub(crate) fn write_lines<L: AsRef<str>>(
        &self,
        lines: impl IntoIterator<Item = L>,
    ) -> Result<(), CommandError> {
        let mut text = String::new();
        for line in lines {
            text.extend([line.as_ref(), "\n"]);
        }
        self.write_raw(text)
    }

    /// Writes a JSON document on one line.
    pub(crate) fn write_document(&self, value: &Value) -> Result<(), CommandError> {
        self.write_lines([json::line(value)])
    }

    /// Writes bytes without escaping.
    pub(crate) fn write_raw(&self, bytes: impl AsRef<[u8]>) -> Result<(), CommandError> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes.as_ref())?;
        Ok(stdout.flush()?)
    }
}
