//! Describes the causes of lost and refused connections, for log lines.

use crate::message::EscapedText;

/// The maximum length of an error's text in a log line, in bytes.
const MAX_LOGGED: usize = 1024;

/// Pairs of a substring of an error's text and a description of the error's cause. The first match
/// is used.
///
/// The texts come from the server, the operating system and this library. Texts are matched, not
/// error codes, because a failed name resolution has no code.
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
    /// The description of the cause, or the error's text if the cause is unknown.
    pub(super) description: String,
    /// The error's text, unless `description` contains it.
    pub(super) error: Option<String>,
}

impl Cause {
    /// Finds the cause of an error by its text, which includes the texts of its sources.
    pub(super) fn of(error: String) -> Self {
        let error = EscapedText::new(&error).at_most(MAX_LOGGED).to_string();
        match describe(&error) {
            Some(description) => Self {
                description: description.to_owned(),
                error: Some(error),
            },
            None => Self {
                description: error,
                error: None,
            },
        }
    }
}

fn describe(error: &str) -> Option<&'static str> {
    let found = CAUSES.iter().find(|(part, _)| error.contains(part));
    found.map(|(_, description)| *description)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn errors_of_the_operating_system_have_descriptions() {
        for (kind, description) in [
            (io::ErrorKind::UnexpectedEof, "it was closed"),
            (
                io::ErrorKind::NetworkUnreachable,
                "the network does not reach it",
            ),
        ] {
            assert_eq!(
                describe(&io::Error::from(kind).to_string()),
                Some(description)
            );
        }
        #[cfg(target_os = "linux")]
        for (code, description) in [
            (32, "it was closed"),
            (104, "it was closed"),
            (110, "the server has not answered in time"),
            (111, "nothing listens there (connection refused)"),
            (113, "the network does not reach it"),
        ] {
            let text = io::Error::from_raw_os_error(code).to_string();
            assert_eq!(describe(&text), Some(description), "{text}");
        }
    }

    #[test]
    fn the_first_matching_cause_is_used() {
        let text =
            "cannot reach Redis at h:1; is a server running there?: LOADING: Redis is loading";
        assert_eq!(describe(text), Some("Redis is loading its data (LOADING)"));
        assert_eq!(describe("something else"), None);
    }
}
