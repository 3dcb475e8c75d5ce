//! The rights (ACL rules) that the documentation of the Redis transport names.

use super::version;

/// Selectors limit commands to keys. A user of an older server may use each command on each key.
pub(crate) fn has_selectors() -> bool {
    version() >= (7, 0)
}

const DOCS: &str = include_str!("../../src/transport/redis/mod.rs");

/// The rows of tables with two columns.
fn rows(docs: &str) -> impl Iterator<Item = (&str, &str)> {
    docs.lines()
        .filter_map(|line| line.strip_prefix("//! | ")?.split_once(" | "))
}

/// The first columns of the table of rights.
pub(crate) fn users() -> Vec<&'static str> {
    let (_, table) = DOCS.split_once("//! # Rights").expect("it has a heading");
    rows(table).map(|(who, _)| who).skip(1).collect()
}

/// The rights for the stream `s`, from the rows whose first columns start with these texts.
pub(crate) fn documented(who: &[&str]) -> String {
    let rows: Vec<_> = rows(DOCS).collect();
    let rights = who.iter().map(|who| {
        let mut found = rows.iter().filter(|(column, _)| column.starts_with(who));
        let (_, rights) = found.next().unwrap_or_else(|| panic!("no row for {who}"));
        assert_eq!(found.next(), None, "several rows for {who}");
        rights
            .trim_end_matches(" |")
            .trim_matches('`')
            .replace("\\|", "|")
    });
    let rights = rights.collect::<Vec<_>>().join(" ");
    match has_selectors() {
        true => rights,
        false => rights.replace(['(', ')'], "").replace("%R~", "~"),
    }
}

/// The rights that each user needs in addition on a cluster.
pub(crate) const ON_A_CLUSTER: &str = "+cluster|slots +cluster|info +asking +info";

/// Adds this user, with the password `pw`, to the URL of a server or a cluster.
pub(crate) fn with_user(url: &str, user: &str) -> String {
    url.replacen("://", &format!("://{user}:pw@"), 1)
}

/// Fails unless the server at this URL refuses each of these commands because the user lacks the
/// right. Without selectors it may accept them.
pub(crate) async fn assert_refused(url: &str, commands: &[&str]) {
    if !has_selectors() {
        return;
    }
    let client = redis::Client::open(url).expect("the URL is valid");
    let mut connection = client
        .get_multiplexed_async_connection()
        .await
        .expect("a connection");
    for command in commands {
        let mut cmd = redis::Cmd::new();
        cmd.arg(command.split(' ').collect::<Vec<_>>());
        let answer = cmd.query_async::<redis::Value>(&mut connection).await;
        let code = answer.as_ref().err().and_then(redis::RedisError::code);
        assert_eq!(code, Some("NOPERM"), "{command}: {answer:?}");
    }
}
