//! Queries of a server that bypass the library.

use std::{future::Future, time::Duration};

use super::RedisServer;

/// Calls `check` until it returns `Some`. Panics if it does not within `limit`.
#[track_caller]
pub(crate) fn eventually<T, F>(
    mut check: impl FnMut() -> F,
    limit: Duration,
) -> impl Future<Output = T>
where
    F: Future<Output = Option<T>>,
{
    let caller = std::panic::Location::caller();
    async move {
        // Real time, not tokio's: a paused clock must not end the wait before a server can answer.
        let started = std::time::Instant::now();
        loop {
            if let Some(found) = check().await {
                return found;
            }
            assert!(
                started.elapsed() < limit,
                "the condition at {caller} was not met within {limit:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// One entry of a stream: its id and its fields, in their order.
pub(crate) type Entry = (String, Vec<(Vec<u8>, Vec<u8>)>);

/// Adds an entry, and returns its id.
pub(crate) async fn add(
    server: &RedisServer,
    stream: &str,
    fields: &[(&str, impl AsRef<[u8]>)],
) -> String {
    let mut command: Vec<&[u8]> = vec![b"XADD", stream.as_bytes(), b"*"];
    for (name, value) in fields {
        command.extend([name.as_bytes(), value.as_ref()]);
    }
    server.query(&command).await
}

/// All entries of a stream, oldest first; empty if the key does not exist.
pub(crate) async fn entries(server: &RedisServer, stream: &str) -> Vec<Entry> {
    type Raw = Vec<(String, Vec<Vec<u8>>)>;
    let raw: Raw = server.query(&["XRANGE", stream, "-", "+"]).await;
    raw.into_iter()
        .map(|(id, flat)| {
            let mut flat = flat.into_iter();
            let fields = std::iter::from_fn(|| Some((flat.next()?, flat.next()?))).collect();
            (id, fields)
        })
        .collect()
}

/// Waits until a channel has one subscriber.
pub(crate) async fn listened_to(server: &RedisServer, channel: &str, limit: Duration) {
    let subscribed = || async {
        let (_, listeners): (String, usize) = server.query(&["PUBSUB", "NUMSUB", channel]).await;
        (listeners == 1).then_some(())
    };
    eventually(subscribed, limit).await;
}

/// The number of entries in a stream.
pub(crate) async fn len(server: &RedisServer, stream: &str) -> usize {
    server.query(&["XLEN", stream]).await
}

/// The number of unacknowledged deliveries of a group; 0 if the group does not exist yet.
pub(crate) async fn pending(server: &RedisServer, stream: &str, group: &str) -> usize {
    match server.try_command(&["XPENDING", stream, group]).await {
        Ok(redis::Value::Array(summary)) => match summary.first() {
            Some(redis::Value::Int(count)) => usize::try_from(*count).expect("a count"),
            other => panic!("XPENDING {stream} {group}: {other:?}"),
        },
        Err(error) if error.code() == Some("NOGROUP") => 0,
        other => panic!("XPENDING {stream} {group}: {other:?}"),
    }
}

/// Returns whether a group has read and acknowledged the whole stream.
pub(crate) async fn drained(server: &RedisServer, stream: &str, group: &str) -> bool {
    let groups: Vec<std::collections::HashMap<String, redis::Value>> =
        server.query(&["XINFO", "GROUPS", stream]).await;
    let last: Vec<(String, redis::Value)> = server
        .query(&["XREVRANGE", stream, "+", "-", "COUNT", "1"])
        .await;
    let delivered = groups.iter().find_map(|found| {
        let text = |key| match found.get(key) {
            Some(redis::Value::BulkString(bytes)) => String::from_utf8(bytes.clone()).ok(),
            _ => None,
        };
        (text("name")? == group).then(|| text("last-delivered-id"))?
    });
    pending(server, stream, group).await == 0
        && last
            .first()
            .is_none_or(|(id, _)| Some(id) == delivered.as_ref())
}

/// Waits until this number of replicas has all that the server has confirmed so far. Returns a time
/// on the ledger's clock: everything that was confirmed before that time is replicated. `WAIT` only
/// looks at the writes of the same connection, so this function first writes a key in the stream's
/// slot.
/// <https://redis.io/docs/latest/commands/wait/>
pub(crate) async fn replicated(server: &RedisServer, stream: &str, replicas: usize) -> Duration {
    let at = super::ledger::now();
    let mut connection = server.connection().await;
    let (_, reached): (String, usize) = redis::pipe()
        .set(format!("{{{stream}}}:probe"), 1)
        .cmd("WAIT")
        .arg(replicas)
        .arg(10_000)
        .query_async(&mut connection)
        .await
        .expect("the server answers");
    assert!(reached >= replicas, "{reached} of {replicas} replicas");
    at
}
