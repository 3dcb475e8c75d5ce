//! The causes of lost and refused connections, in words for the log.

use crate::message::Shown;

/// The most bytes of an error's text in a log line.
const MAX_LOGGED: usize = 1024;

/// Parts of the texts of errors, and the causes that they show. The first entry that matches
/// counts.
///
/// The texts are the server's, the operating system's and this library's. An error of the operating
/// system has no code that tells a failed look-up of a name from others.
const CAUSES: [(&str, &str); 17] = [
    (
        "WRONGPASS",
        "Redis does not accept the user name or the password (WRONGPASS)",
    ),
    ("NOAUTH", "Redis asks for a password (NOAUTH)"),
    ("NOPERM", "the Redis user lacks a right (NOPERM)"),
    ("LOADING", "Redis is loading its data (LOADING)"),
    (
        "max number of clients",
        "Redis takes no more connections (maxclients)",
    ),
    (
        "become a replica",
        "the server has become a replica and takes no writes",
    ),
    ("no TLS with", "the TLS handshake failed"),
    (
        "failed to lookup address",
        "the host name cannot be resolved (DNS)",
    ),
    (
        "Connection refused",
        "nothing listens there (connection refused)",
    ),
    ("No such file", "its socket does not exist"),
    ("No route to host", "the network does not reach it"),
    ("unreachable", "the network does not reach it"),
    ("end of file", "it was closed"),
    ("reset by peer", "it was closed"),
    ("Broken pipe", "it was closed"),
    ("timed out", "the server has not answered in time"),
    ("in time", "the server has not answered in time"),
];

/// The cause of a failure.
#[derive(Debug)]
pub(super) struct Cause {
    /// The cause in words, or the error's text if the cause is unknown.
    pub(super) words: String,
    /// The error's text, unless it is in `words`.
    pub(super) error: Option<String>,
}

impl Cause {
    /// The cause that the text of an error and of its sources shows.
    pub(super) fn of(error: String) -> Self {
        let error = Shown::new(&error).at_most(MAX_LOGGED).to_string();
        match in_words(&error) {
            Some(words) => Self {
                words: words.to_owned(),
                error: Some(error),
            },
            None => Self {
                words: error,
                error: None,
            },
        }
    }
}

fn in_words(error: &str) -> Option<&'static str> {
    let found = CAUSES.iter().find(|(part, _)| error.contains(part));
    found.map(|(_, words)| *words)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn errors_of_the_operating_system_have_words() {
        for (kind, words) in [
            (io::ErrorKind::UnexpectedEof, "it was closed"),
            (
                io::ErrorKind::NetworkUnreachable,
                "the network does not reach it",
            ),
        ] {
            assert_eq!(in_words(&io::Error::from(kind).to_string()), Some(words));
        }
        #[cfg(target_os = "linux")]
        for (code, words) in [
            (32, "it was closed"),
            (104, "it was closed"),
            (110, "the server has not answered in time"),
            (111, "nothing listens there (connection refused)"),
            (113, "the network does not reach it"),
        ] {
            let text = io::Error::from_raw_os_error(code).to_string();
            assert_eq!(in_words(&text), Some(words), "{text}");
        }
    }

    #[test]
    fn the_first_cause_of_an_error_counts() {
        let text =
            "cannot reach Redis at h:1; is a server running there?: LOADING: Redis is loading";
        assert_eq!(in_words(text), Some("Redis is loading its data (LOADING)"));
        assert_eq!(in_words("something else"), None);
    }
}
