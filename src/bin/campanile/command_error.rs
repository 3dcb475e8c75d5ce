//! Failures of a command, and their exit codes.

use std::{
    io::{self, Write},
    iter::successors,
    process::ExitCode,
};

use campanile::{Error, RpcError};

use crate::show::text;

/// The reason why a command did not succeed.
#[derive(Debug)]
pub(crate) enum CommandError {
    /// The reader of the output has closed its pipe. This is not a failure.
    OutputClosed,
    /// The command line is invalid, or a confirmation is missing.
    Usage(String),
    /// There is no connection. Nothing was done.
    Connection(Error),
    /// The subject of the command does not exist, such as a stream, a group or a dead letter.
    Missing(String),
    /// The request was answered with an error.
    ErrorReply(RpcError),
    /// The command was interrupted.
    Interrupted(String),
    /// Any other failure.
    Failed(String),
}

impl CommandError {
    fn exit_code(&self) -> u8 {
        match self {
            CommandError::OutputClosed => 0,
            CommandError::Failed(_) => 1,
            CommandError::Usage(_) => 2,
            CommandError::Connection(_) => 3,
            CommandError::Missing(_) => 4,
            CommandError::ErrorReply(_) => 5,
            CommandError::Interrupted(_) => 130,
        }
    }

    fn text(&self) -> String {
        match self {
            CommandError::OutputClosed => String::new(),
            CommandError::Connection(error) => chain(error),
            CommandError::ErrorReply(answer) => answer.to_string(),
            CommandError::Failed(text)
            | CommandError::Usage(text)
            | CommandError::Missing(text)
            | CommandError::Interrupted(text) => text.clone(),
        }
    }

    /// Prints the failure to standard error, and returns the exit code.
    pub(crate) fn report(self) -> ExitCode {
        let text = self.text();
        if !text.is_empty() {
            note(format!("error: {text}"));
        }
        self.exit_code().into()
    }
}

impl From<Error> for CommandError {
    fn from(error: Error) -> Self {
        if let Some(answer) = error.rpc() {
            CommandError::ErrorReply(answer.clone())
        } else if error.is_disconnected() {
            CommandError::Connection(error)
        } else if error.is_invalid() || error.is_config() {
            CommandError::Usage(chain(&error))
        } else {
            CommandError::Failed(chain(&error))
        }
    }
}

impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => CommandError::OutputClosed,
            _ => CommandError::Failed(chain(&error)),
        }
    }
}

/// Formats an error and its sources on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let texts = successors(Some(error), |error| error.source()).map(ToString::to_string);
    // A wrapper may have the same text as its source, so repeated texts are removed.
    let mut texts: Vec<_> = texts.take(16).collect();
    texts.dedup();
    texts.join(": ")
}

/// Prints a note to standard error. Escapes control characters, because a note may contain text
/// from a server.
pub(crate) fn note(text: impl AsRef<str>) {
    // If standard error is closed, the note is lost.
    let _ = writeln!(io::stderr(), "{}", text::line(text.as_ref()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_tells_what_an_error_means() {
        for (error, code) in [
            (Error::timeout("t"), 1),
            (Error::unknown_outcome("t"), 1),
            (Error::refused("t"), 1),
            (Error::invalid("t"), 2),
            (Error::config("t"), 2),
            (Error::disconnected("t"), 3),
            (RpcError::not_found("t").into(), 5),
        ] {
            let text = error.to_string();
            assert_eq!(CommandError::from(error).exit_code(), code, "{text}");
        }
    }

    #[test]
    fn a_closed_pipe_is_not_a_failure() {
        let closed_pipe = CommandError::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(
            (closed_pipe.exit_code(), closed_pipe.text().as_str()),
            (0, "")
        );
        let full_disk = CommandError::from(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full_disk.exit_code(), 1);
    }
}
