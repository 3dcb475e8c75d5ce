//! Parses the URLs of servers. A URL may contain a password, so errors never quote it.

use std::borrow::Cow;

use redis::{ConnectionInfo, IntoConnectionInfo};

use super::address::Address;
use crate::{error::Error, transport::redis::namespace::Namespace};

/// The default port of a Sentinel, with the `:` before it.
const SENTINEL_PORT: &str = ":26379";

/// The parts of a parsed URL.
pub(super) struct ParsedUrl {
    /// The login and the settings of connections to Redis servers. With [`UrlTopology::Server`],
    /// the address is that of the server. With other topologies, the address is a placeholder.
    pub(super) info: ConnectionInfo,
    pub(super) topology: UrlTopology,
    /// The value of the parameter `namespace`.
    pub(super) namespace: Namespace,
}

/// The topology that a URL names.
pub(super) enum UrlTopology {
    /// One server, at the address in [`ParsedUrl::info`].
    Server,
    /// A primary that Sentinels watch.
    Sentinel {
        /// The login and the settings of connections to Sentinels, with a placeholder as the
        /// address.
        info: Box<ConnectionInfo>,
        addresses: Vec<Address>,
        /// The name of the primary.
        name: String,
    },
    /// A cluster. Its map is first read from these nodes.
    Cluster(Vec<Address>),
}

impl ParsedUrl {
    /// Sets the user and the password for Sentinels. Fails if the URL names no Sentinels, or
    /// already has a password for them.
    pub(super) fn set_sentinel_credentials(
        &mut self,
        user: &str,
        password: &str,
    ) -> Result<(), Error> {
        let UrlTopology::Sentinel { info, .. } = &mut self.topology else {
            return Err(Error::config(
                "credentials for Sentinels have a meaning with Sentinels only; let the URL begin \
                 with redis+sentinel:// or rediss+sentinel://",
            ));
        };
        let settings = info.redis_settings().clone();
        if settings.password().is_some() {
            return Err(Error::config(
                "the credentials for Sentinels are in the URL, and `sentinel_credentials` has them \
                 too; leave them out of the URL",
            ));
        }
        let settings = settings.set_username(user).set_password(password);
        **info = info.as_ref().clone().set_redis_settings(settings);
        Ok(())
    }
}

/// Parses a URL of any topology.
pub(super) fn parse(url: &str) -> Result<ParsedUrl, Error> {
    let (url, namespace) = split_namespace(url)?;
    let parsed = parse_without_namespace(&url)?;
    Ok(ParsedUrl {
        namespace,
        ..parsed
    })
}

/// Removes the parameter `namespace` from a URL. Returns the remaining URL and the namespace.
fn split_namespace(url: &str) -> Result<(Cow<'_, str>, Namespace), Error> {
    const PARAMETER: &str = "namespace=";
    let (rest, fragment) = url.split_at(url.find('#').unwrap_or(url.len()));
    let Some((address, query)) = rest.split_once('?') else {
        return Ok((url.into(), Namespace::NONE));
    };
    let is_namespace = |it: &&str| it.starts_with(PARAMETER);
    let (namespaces, others): (Vec<_>, Vec<_>) = query.split('&').partition(is_namespace);
    let namespace = match namespaces[..] {
        [] => return Ok((url.into(), Namespace::NONE)),
        [only] => Namespace::new(&only[PARAMETER.len()..])?,
        _ => return Err(Error::config("the URL has several namespaces; keep one")),
    };
    let query = others.join("&");
    Ok((format!("{address}?{query}{fragment}").into(), namespace))
}

/// Parses a URL without the parameter `namespace`.
fn parse_without_namespace(url: &str) -> Result<ParsedUrl, Error> {
    for (scheme, tls_scheme, parse) in [
        (
            "redis+sentinel://",
            "rediss+sentinel://",
            parse_sentinel as fn(&MultiHostUrl<'_>) -> _,
        ),
        ("redis+cluster://", "rediss+cluster://", parse_cluster),
    ] {
        let plain = url.strip_prefix(scheme).map(|rest| ("redis", rest));
        let tls = || url.strip_prefix(tls_scheme).map(|rest| ("rediss", rest));
        if let Some((scheme, rest)) = plain.or_else(tls) {
            return parse(&MultiHostUrl::split(scheme, rest));
        }
    }
    Ok(ParsedUrl {
        info: parse_server(url)?,
        topology: UrlTopology::Server,
        namespace: Namespace::NONE,
    })
}

/// The parts of a URL with several hosts.
struct MultiHostUrl<'a> {
    scheme: &'static str,
    /// The user and the password, with the `@` after them. Empty if there are none.
    login: &'a str,
    hosts: Vec<&'a str>,
    path: &'a str,
    query: &'a str,
    /// The fragment, with the `#` before it. Empty if there is none.
    fragment: &'a str,
}

impl<'a> MultiHostUrl<'a> {
    fn split(scheme: &'static str, rest: &'a str) -> Self {
        let (rest, fragment) = rest.split_at(rest.find('#').unwrap_or(rest.len()));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (servers, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = servers.split_at(servers.rfind('@').map_or(0, |at| at + 1));
        Self {
            scheme,
            login,
            hosts: hosts.split(',').collect(),
            path,
            query,
            fragment,
        }
    }

    /// Returns the addresses of the hosts. A host without a port gets `default_port`, which
    /// includes the `:`.
    fn addresses(&self, default_port: &str) -> Result<Vec<Address>, Error> {
        let address = |host: &&str| {
            let port = match host.rsplit(']').next().is_some_and(|end| end.contains(':')) {
                true => "",
                false => default_port,
            };
            let host = host.trim();
            let info = parse_server(&format!("{}://{host}{port}/", self.scheme))?;
            Ok(Address::from(info.addr()))
        };
        self.hosts.iter().map(address).collect()
    }

    /// Makes the settings of connections with this login, this database and these parameters. The
    /// address in the settings is a placeholder.
    fn info(&self, login: &str, database: &str, query: &str) -> Result<ConnectionInfo, Error> {
        let Self {
            scheme, fragment, ..
        } = self;
        parse_server(&format!(
            "{scheme}://{login}host/{database}?{query}{fragment}"
        ))
    }
}

fn parse_sentinel(url: &MultiHostUrl<'_>) -> Result<ParsedUrl, Error> {
    let (name, database) = url.path.split_once('/').unwrap_or((url.path, ""));
    if name.is_empty() {
        return Err(Error::config(
            "the URL names no primary; it looks like \
             redis+sentinel://host1,host2,host3/mymaster/0, with the name that the Sentinels know",
        ));
    }
    let parameters = || url.query.split('&').filter(|it| !it.is_empty());
    let sentinel_parameter =
        |key: &str| parameters().find_map(|it| it.strip_prefix(key)?.strip_prefix('='));
    // The login to the Sentinels. The login in the URL is for the Redis servers.
    let sentinel_login = match (
        sentinel_parameter("sentinel_username"),
        sentinel_parameter("sentinel_password"),
    ) {
        (None, None) => String::new(),
        (user, Some(password)) => format!("{}:{password}@", user.unwrap_or_default()),
        (Some(_), None) => {
            return Err(Error::config(
                "the URL has a `sentinel_username` without a `sentinel_password`",
            ));
        }
    };
    let others: Vec<_> = parameters()
        .filter(|it| !it.starts_with("sentinel_"))
        .collect();
    Ok(ParsedUrl {
        info: url.info(url.login, database, &others.join("&"))?,
        topology: UrlTopology::Sentinel {
            info: Box::new(url.info(&sentinel_login, "", "")?),
            addresses: url.addresses(SENTINEL_PORT)?,
            name: name.to_owned(),
        },
        namespace: Namespace::NONE,
    })
}

fn parse_cluster(url: &MultiHostUrl<'_>) -> Result<ParsedUrl, Error> {
    // `parse_server` would refuse `db` with advice for single servers. So a query with `db` is left
    // out here, and the check below refuses `db` with advice for clusters.
    let has_database = url.query.split('&').any(|it| it.starts_with("db="));
    let info = url.info(
        url.login,
        url.path,
        if has_database { "" } else { url.query },
    )?;
    if has_database || info.redis_settings().db() != 0 {
        return Err(Error::config(
            "a Redis Cluster has the database 0 only; leave the number out of the URL, and tell \
             environments apart by `?namespace=staging`",
        ));
    }
    Ok(ParsedUrl {
        info,
        topology: UrlTopology::Cluster(url.addresses("")?),
        namespace: Namespace::NONE,
    })
}

/// Parses the URL of one server.
pub(super) fn parse_server(url: &str) -> Result<ConnectionInfo, Error> {
    let is_tls = url.starts_with("rediss:") || url.starts_with("valkeys:");
    if is_tls && cfg!(not(feature = "redis-rustls")) {
        return Err(no_tls());
    }
    let info = url.into_connection_info().map_err(|error| {
        Error::config(
            "the Redis URL cannot be read; it looks like redis://user:password@host:port/db, \
             redis+unix:///path/to/redis.sock?db=0, redis+sentinel://host1,host2/mymaster/db or \
             redis+cluster://host1,host2",
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
    let is_unix = url.split(':').next().is_some_and(|it| it.ends_with("unix"));
    if !is_unix && query.split('&').any(|it| it.starts_with("db=")) {
        return Err(Error::config(
            "the database stands in the path of a Redis URL, as in redis://host:6379/1; `db` is a \
             parameter of the URL of a unix socket only",
        ));
    }
    if !fragment.is_empty() && !is_tls {
        return Err(Error::config(
            "a Redis URL ends with a fragment (`#…`) under TLS only; write `#` in a password as %23",
        ));
    }
    Ok(info)
}

/// Returns the error for a URL with TLS when TLS is not built in.
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
            "redis+cluster://user:hunter2@one,two/1",
            "redis+cluster://user:hunter2@one,two?db=1",
            "redis://user:hunter2@localhost?db=1",
            "redis+cluster://user:hunter2@one,,two",
            "redis+cluster://user:hunter2@one:x",
            "redis+cluster://user:hunter2@",
            "redis+sentinel://user:hunter2@one,two",
            "redis+sentinel://user:hunter2@one,two/name/zero",
            "redis+sentinel://one/name?sentinel_username=hunter2",
            "redis://user:hunter2@localhost/?namespace=a:b",
            "redis://user:hunter2@localhost/?namespace=a&namespace=b",
        ] {
            let error = parse(url).map(drop).expect_err(url);
            assert!(error.is_config());
            let shown = format!("{error:?} {}", error.chain());
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    fn texts(addresses: &[Address]) -> Vec<String> {
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_url_of_a_cluster_has_several_nodes() {
        let url = "redis+cluster://user:p%40ss@one,two:7001,[::1],[::2]:7003/?protocol=resp3";
        let parsed = parse(url).unwrap();
        let UrlTopology::Cluster(nodes) = parsed.topology else {
            panic!("it is the URL of a cluster");
        };
        assert_eq!(
            texts(&nodes),
            ["one:6379", "two:7001", "[::1]:6379", "[::2]:7003"]
        );
        let settings = parsed.info.redis_settings();
        assert_eq!(settings.username(), Some("user"));
        assert_eq!(settings.password(), Some("p@ss"));
        assert_eq!(settings.protocol(), redis::ProtocolVersion::RESP3);
    }

    #[test]
    fn the_url_of_sentinels_has_a_name_a_database_and_two_logins() {
        let url =
            "redis+sentinel://user:one@a,b:5/mymaster/3?sentinel_password=tw%20o&protocol=resp3";
        let parsed = parse(url).unwrap();
        let UrlTopology::Sentinel {
            info,
            addresses,
            name,
        } = parsed.topology
        else {
            panic!("it is the URL of Sentinels");
        };
        assert_eq!(texts(&addresses), ["a:26379", "b:5"]);
        assert_eq!(name, "mymaster");
        let settings = parsed.info.redis_settings();
        assert_eq!(
            (settings.username(), settings.password()),
            (Some("user"), Some("one"))
        );
        assert_eq!(settings.db(), 3);
        let settings = info.redis_settings();
        assert_eq!(
            (settings.username(), settings.password()),
            (None, Some("tw o"))
        );
        assert_eq!(settings.db(), 0);
    }

    #[test]
    fn a_namespace_is_a_parameter_of_every_url() {
        for (url, database) in [
            ("redis://host/1?namespace=staging", 1),
            ("redis://host/1?protocol=resp3&namespace=staging", 1),
            ("redis+unix:///run/redis.sock?namespace=staging&db=1", 1),
            ("redis+sentinel://a,b/mymaster/1?namespace=staging", 1),
            ("redis+cluster://a,b?namespace=staging", 0),
        ] {
            let parsed = parse(url).expect(url);
            assert_eq!(
                parsed.namespace,
                Namespace::new("staging").unwrap(),
                "{url}"
            );
            assert_eq!(parsed.info.redis_settings().db(), database, "{url}");
        }
        let none = parse("redis://host/?protocol=resp3").unwrap();
        assert_eq!(none.namespace, Namespace::NONE);
    }

    #[test]
    #[cfg(feature = "redis-rustls")]
    fn several_servers_can_have_tls() {
        for url in [
            "rediss+cluster://a,b/#insecure",
            "rediss+sentinel://a,b/name#insecure",
        ] {
            let parsed = parse(url).expect(url);
            let is_tls = |info: &ConnectionInfo| {
                matches!(
                    info.addr(),
                    redis::ConnectionAddr::TcpTls { insecure: true, .. }
                )
            };
            assert!(is_tls(&parsed.info), "{url}");
            if let UrlTopology::Sentinel { info, .. } = parsed.topology {
                assert!(is_tls(&info));
            }
        }
    }

    #[test]
    fn a_misplaced_insecure_option_is_refused_with_advice() {
        for url in [
            "redis://localhost/?db=1&insecure=true",
            "redis://localhost?insecure",
        ] {
            let error = parse(url).map(drop).expect_err(url).to_string();
            assert!(error.contains("#insecure"), "{error}");
        }
        let error = parse_server("redis://localhost/#insecure")
            .unwrap_err()
            .to_string();
        assert!(error.contains("under TLS only"), "{error}");
    }

    #[test]
    #[cfg(not(feature = "redis-rustls"))]
    fn a_tls_url_without_tls_names_the_feature() {
        let error = parse_server("rediss://localhost").unwrap_err();
        assert!(error.to_string().contains("redis-rustls"), "{error}");
    }
}
