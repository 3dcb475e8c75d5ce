//! Tests of the servers that the other tests use.

use std::time::Duration;

use crate::support::{
    Options, RedisServer, Signal,
    raw::{self, eventually},
};

#[tokio::test]
async fn a_server_answers_survives_a_freeze_and_keeps_its_port_over_a_restart() {
    let server = RedisServer::with(Options::new().persistent()).await;
    raw::add(&server, "s", &[("type", "task")]).await;
    server.signal(Signal::Stop);
    let frozen = tokio::time::timeout(
        Duration::from_millis(200),
        server.try_command(&["XLEN", "s"]),
    );
    assert!(frozen.await.is_err());
    server.signal(Signal::Cont);
    assert_eq!(raw::len(&server, "s").await, 1);

    let (url, pid) = (server.url(), server.pid());
    server.signal(Signal::Kill);
    assert!(server.try_command(&["PING"]).await.is_err());
    server.restart().await;
    assert_eq!(server.url(), url);
    assert_ne!(server.pid(), pid);
    assert_eq!(raw::len(&server, "s").await, 1);
}

#[tokio::test]
async fn servers_start_side_by_side_with_passwords_acls_sockets_and_as_a_cluster() {
    let (password, acl, socket, cluster) = tokio::join!(
        RedisServer::with(Options::new().password("secret")),
        RedisServer::with(
            Options::new()
                .acl("user default off\nuser worker on >pw ~* &* +@all")
                .login("worker", "pw")
        ),
        RedisServer::with(Options::new().unix_socket()),
        RedisServer::with(Options::new().cluster()),
    );
    for server in [&password, &acl, &socket, &cluster] {
        let set: String = server.query(&["SET", "key", "value"]).await;
        assert_eq!(set, "OK");
    }
    let mut connection = redis::Client::open(socket.unix_url())
        .unwrap()
        .get_multiplexed_async_connection()
        .await
        .unwrap();
    let pong: String = redis::cmd("PING")
        .query_async(&mut connection)
        .await
        .unwrap();
    assert_eq!(pong, "PONG");
}

#[tokio::test]
async fn a_group_is_drained_when_all_is_read_and_acknowledged() {
    let server = RedisServer::start().await;
    server
        .command(&["XGROUP", "CREATE", "s", "g", "0", "MKSTREAM"])
        .await;
    assert!(raw::drained(&server, "s", "g").await);
    let id = raw::add(&server, "s", &[("a", b"\xff".as_slice())]).await;
    assert!(!raw::drained(&server, "s", "g").await);
    server
        .command(&["XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">"])
        .await;
    assert_eq!(raw::pending(&server, "s", "g").await, 1);
    assert!(!raw::drained(&server, "s", "g").await);
    server.command(&["XACK", "s", "g", &id]).await;
    eventually(
        || async { raw::drained(&server, "s", "g").await.then_some(()) },
        Duration::from_secs(1),
    )
    .await;
    let entries = raw::entries(&server, "s").await;
    assert_eq!(entries, [(id, vec![(b"a".to_vec(), b"\xff".to_vec())])]);
}
