//! Why a command did not succeed, and what its exit code says about that.

use std::{
    io::{self, Write},
    iter::successors,
    process::ExitCode,
};

use campanile::{Error, RpcError};

use crate::show::text;

/// Why a command ends without having done what it was asked for.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Whoever reads the output has enough: no failure at all.
    Unread,
    /// It was used in a wrong way.
    Usage(String),
    /// There is no connection, so nothing was done.
    Connection(Error),
    /// There is no such thing.
    Missing(String),
    /// The request was answered with an error.
    Answered(RpcError),
    /// It was ended before it was done.
    Interrupted(String),
    /// Something else.
    Failed(String),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Failure::Unread => 0,
            Failure::Failed(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Connection(_) => 3,
            Failure::Missing(_) => 4,
            Failure::Answered(_) => 5,
            Failure::Interrupted(_) => 130,
        }
    }

    fn text(&self) -> String {
        match self {
            Failure::Unread => String::new(),
            Failure::Connection(error) => chain(error),
            Failure::Answered(answer) => answer.to_string(),
            Failure::Failed(text)
            | Failure::Usage(text)
            | Failure::Missing(text)
            | Failure::Interrupted(text) => text.clone(),
        }
    }

    /// Says it where people look, and gives the exit code.
    pub(crate) fn tell(self) -> ExitCode {
        let text = self.text();
        if !text.is_empty() {
            note(format!("error: {text}"));
        }
        self.code().into()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if let Some(answer) = error.rpc() {
            Failure::Answered(answer.clone())
        } else if error.is_disconnected() {
            Failure::Connection(error)
        } else if error.is_invalid() || error.is_config() {
            Failure::Usage(chain(&error))
        } else {
            Failure::Failed(chain(&error))
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::Unread,
            _ => Failure::Failed(chain(&error)),
        }
    }
}

/// An error and what was behind it, on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let texts = successors(Some(error), |error| error.source()).map(ToString::to_string);
    // A wrapper that has nothing to add repeats what it wraps.
    let mut texts: Vec<_> = texts.take(16).collect();
    texts.dedup();
    texts.join(": ")
}

/// Tells people something beside the output. What comes from a server may stand in it: it is made
/// safe to show.
pub(crate) fn note(text: impl AsRef<str>) {
    // Where nobody can be told there is nothing to be done about it.
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
            assert_eq!(Failure::from(error).code(), code, "{text}");
        }
    }

    #[test]
    fn a_reader_that_has_gone_is_no_failure() {
        let gone = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((gone.code(), gone.text().as_str()), (0, ""));
        let full = Failure::from(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full.code(), 1);
    }
}
