//! Parses server URLs.

use redis::{ConnectionInfo, IntoConnectionInfo};

use crate::error::Error;

/// Parses connection settings from a URL. Errors do not quote the URL, so that passwords are not
/// logged.
pub(super) fn parse(url: &str) -> Result<ConnectionInfo, Error> {
    let is_tls = url.starts_with("rediss:") || url.starts_with("valkeys:");
    if is_tls && cfg!(not(feature = "redis-rustls")) {
        return Err(no_tls());
    }
    let info = url.into_connection_info().map_err(|error| {
        Error::config(
            "the Redis URL cannot be read; it looks like redis://user:password@host:port/db, \
             or redis+unix:///path/to/redis.sock?db=0",
        )
        .with_source(error)
    })?;
    let (address, fragment) = url.split_once('#').unwrap_or((url, ""));
    let query = address.split_once('?').map_or("", |(_, query)| query);
    if query
        .split('&')
        .any(|it| it.split('=').next() == Some("insecure"))
    {
        return Err(Error::config(
            "`insecure` is no parameter of a Redis URL; to accept any certificate, let the URL \
             begin with rediss:// and end with #insecure",
        ));
    }
    if !fragment.is_empty() && !is_tls {
        return Err(Error::config(
            "a Redis URL ends with a fragment (`#…`) under TLS only; write `#` in a password as %23",
        ));
    }
    Ok(info)
}

/// The error for TLS when it is not built in.
pub(super) fn no_tls() -> Error {
    Error::config("TLS is not built in; enable the feature `redis-rustls` of `campanile`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_cannot_be_read_is_not_repeated() {
        for url in [
            "redis://user:hunter2@",
            "http://user:hunter2@localhost/",
            "redis://user:hunter2@localhost/zero",
            "hunter2",
            "redis://user:hunter2@localhost/?insecure",
            "redis://user:hunter2@localhost/#insecure",
            "rediss://user:hunter2@localhost/#other",
        ] {
            let error = parse(url).expect_err(url);
            assert!(error.is_config());
            let shown = format!("{error:?} {}", error.chain());
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn a_switch_that_would_have_no_effect_is_refused_with_the_one_that_has() {
        for url in [
            "redis://localhost/?db=1&insecure=true",
            "redis://localhost?insecure",
        ] {
            let error = parse(url).expect_err(url).to_string();
            assert!(error.contains("#insecure"), "{error}");
        }
        let error = parse("redis://localhost/#insecure")
            .unwrap_err()
            .to_string();
        assert!(error.contains("under TLS only"), "{error}");
    }

    #[test]
    #[cfg(not(feature = "redis-rustls"))]
    fn a_tls_url_without_tls_names_the_feature() {
        let error = parse("rediss://localhost").unwrap_err();
        assert!(error.to_string().contains("redis-rustls"), "{error}");
    }
}
