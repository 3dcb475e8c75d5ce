//! The arguments that give the name and the payload of a message to send.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use campanile::Name;
use clap::Args;

use crate::command_error::{CommandError, chain};

#[derive(Debug, Args)]
pub(super) struct MessageArgs {
    /// The name of the message, such as `orders.create`.
    name: String,
    /// The payload; `-` reads it from standard input. Empty unless given.
    payload: Option<OsString>,
    /// Reads the payload from this file; `-` is standard input.
    #[arg(long, short, value_name = "PATH", conflicts_with = "payload")]
    file: Option<PathBuf>,
}

impl MessageArgs {
    /// Returns the name, and the bytes of the payload. A line break at the end of the payload
    /// stays.
    pub(super) fn read(&self) -> Result<(Name, Vec<u8>), CommandError> {
        let payload = match (&self.payload, &self.file) {
            (None, None) => Ok(Vec::new()),
            (Some(payload), _) if payload != "-" => Ok(payload.as_encoded_bytes().to_vec()),
            (None, Some(path)) if path.as_os_str() != OsStr::new("-") => read_file(path),
            _ => read_standard_input(),
        }?;
        Ok((self.name.as_str().into(), payload))
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, CommandError> {
    fs::read(path).map_err(|error| {
        let path = path.display();
        CommandError::Failed(format!("cannot read {path}: {}", chain(&error)))
    })
}

fn read_standard_input() -> Result<Vec<u8>, CommandError> {
    let mut payload = Vec::new();
    let read = io::stdin().lock().read_to_end(&mut payload);
    read.map_err(|error| {
        CommandError::Failed(format!("cannot read standard input: {}", chain(&error)))
    })?;
    Ok(payload)
}
