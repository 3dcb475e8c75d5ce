//! Messages that cannot be sent, and messages that the server refuses.

use campanile::Message;

use super::{
    handle, send,
    support::{Options, RedisServer, raw},
};

#[tokio::test]
async fn what_cannot_be_sent_is_refused_before_it_is() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    let mut with_headers = Message::event("a", "");
    with_headers
        .headers_mut()
        .insert("x-a", "1".parse().unwrap());
    for message in [
        Message::task("", ""),
        Message::event("", ""),
        Message::rpc("", ""),
        Message::task("x".repeat(1025), ""),
        Message::task("a", vec![0; (512 << 20) + 1]),
        with_headers,
    ] {
        let kind = message.kind();
        let error = send(&redis, message).await.unwrap_err();
        assert!(error.is_invalid(), "{kind}: {error:?}");
    }
    assert_eq!(raw::len(&server, "s").await, 0);
}

#[tokio::test]
async fn names_with_spaces_and_glob_characters_are_names() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    for name in ["a b", "*?[x]", "\u{1F514}", &"x".repeat(1024)] {
        send(&redis, Message::task(name, "")).await.unwrap();
        send(&redis, Message::event(name, "")).await.unwrap();
    }
}

#[tokio::test]
async fn a_stream_name_with_braces_is_a_hash_tag_or_refused() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    for stream in ["{orders}", "{orders}.v2", "a{b"] {
        let redis = redis.clone().stream(stream);
        send(&redis, Message::task("a", "")).await.unwrap();
        assert_eq!(raw::len(&server, stream).await, 1);
    }
    for stream in ["a}b", "{}", "", "}{"] {
        let redis = redis.clone().stream(stream);
        for message in [Message::task("a", ""), Message::rpc("a", "")] {
            let error = send(&redis, message).await.unwrap_err();
            assert!(error.is_config(), "{stream}: {error:?}");
        }
    }
}

#[tokio::test]
async fn a_key_of_another_type_is_refused_with_what_to_do() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    server.command(&["SET", "s", "text"]).await;
    for message in [Message::task("a", ""), Message::rpc("a", "")] {
        let error = send(&redis, message).await.unwrap_err();
        assert!(error.is_refused(), "{error:?}");
        assert!(error.to_string().contains("stream name"), "{error}");
    }
}

#[tokio::test]
async fn a_missing_right_is_refused_and_named() {
    let acl = "user narrow on >hunter2 ~s resetchannels -@all +xadd +xread +info";
    let server = RedisServer::with(Options::new().acl(acl).login("narrow", "hunter2")).await;
    let redis = handle(&server).await;
    send(&redis, Message::task("a", "")).await.unwrap();
    for (redis, message, named) in [
        (redis.clone(), Message::event("a", ""), "publish"),
        (redis.clone().stream("other"), Message::task("a", ""), "key"),
        (redis.clone(), Message::rpc("a", ""), ""),
    ] {
        let error = send(&redis, message).await.unwrap_err();
        assert!(error.is_refused(), "{error:?}");
        assert!(error.to_string().contains("ACL SETUSER"), "{error}");
        let shown = format!("{error:?}");
        assert!(shown.contains(named), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[tokio::test]
async fn a_full_server_is_refused_with_what_to_do() {
    let options = Options::new().args(["--maxmemory", "1"]);
    let server = RedisServer::with(options).await;
    let redis = handle(&server).await;
    let error = send(&redis, Message::task("a", "")).await.unwrap_err();
    assert!(error.is_refused(), "{error:?}");
    assert!(error.to_string().contains("maxmemory"), "{error}");
}

#[tokio::test]
async fn a_replica_is_asked_until_it_is_promoted() {
    let server = RedisServer::start().await;
    let redis = handle(&server).await;
    server.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let sending = tokio::spawn({
        let redis = redis.clone();
        async move { send(&redis, Message::task("a", "")).await }
    });
    tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    assert!(!sending.is_finished());
    server.command(&["REPLICAOF", "NO", "ONE"]).await;
    sending.await.unwrap().unwrap();
    assert_eq!(raw::len(&server, "s").await, 1);
}
