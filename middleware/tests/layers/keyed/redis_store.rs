//! Tests of the store on Redis alone.

use std::time::Duration;

use campanile::{Error, Redis};
use campanile_middleware::idempotency::{Claim, RedisStore, Store, Token};

use super::{
    MILLI, SECOND,
    support::{Options, RedisServer, Signal},
};
use crate::panics::panic_text;

const LONG: Duration = Duration::from_secs(60);

async fn handle(url: &str) -> Redis {
    Redis::connect(url).await.expect("the server is reachable")
}

async fn connect(server: &RedisServer) -> RedisStore {
    RedisStore::new(&handle(&server.url()).await, "g:once:")
}

async fn claim(store: &RedisStore, key: &str) -> Claim {
    let claim = store.claim(key, Token::new(), LONG).await;
    claim.expect("the store works")
}

#[tokio::test]
async fn all_keys_begin_with_the_prefix_and_have_a_time_to_live() {
    let server = RedisServer::start().await;
    let store = connect(&server).await;
    claim(&store, "claimed").await;
    let token = Token::new();
    assert!(store.finish("done", token, "x".into(), LONG).await.unwrap());
    // A time to live below a millisecond, and one that Redis cannot represent.
    for (key, keep) in [("short", Duration::from_nanos(1)), ("long", Duration::MAX)] {
        assert!(store.finish(key, token, "x".into(), keep).await.unwrap());
        assert!(
            store
                .renew(&format!("{key} claim"), token, keep)
                .await
                .unwrap()
        );
    }
    let mut keys: Vec<String> = server.query(&["KEYS", "*"]).await;
    keys.retain(|key| !key.contains("short"));
    keys.sort();
    let expected = ["claimed", "done", "long", "long claim"];
    assert_eq!(keys, expected.map(|key| format!("g:once:{key}")));
    for key in &keys {
        let left: i64 = server.query(&["PTTL", key]).await;
        assert!(left > 0, "{key}: {left}");
    }
}

#[tokio::test]
async fn stores_with_different_prefixes_are_separate() {
    let server = RedisServer::start().await;
    let redis = handle(&server.url()).await;
    let one = RedisStore::new(&redis, "g:once:");
    let two = RedisStore::new(&redis, "h:once:");
    assert_eq!(claim(&one, "k").await, Claim::Won);
    assert_eq!(claim(&two, "k").await, Claim::Won);
    assert_eq!(claim(&one, "k").await, Claim::Taken);
}

#[tokio::test]
async fn the_store_needs_few_rights() {
    let rights = "user once on >secret ~g:once:* -@all +get +set +del +evalsha +eval";
    let options = Options::new().acl(&format!("user default on nopass ~* &* +@all\n{rights}"));
    let server = RedisServer::with(options).await;
    let url = format!("redis://once:secret@127.0.0.1:{}/", server.port());
    let redis = handle(&url).await;
    let store = RedisStore::new(&redis, "g:once:");
    let token = Token::new();
    assert_eq!(store.claim("k", token, LONG).await.unwrap(), Claim::Won);
    assert!(store.renew("k", token, LONG).await.unwrap());
    store.release("k", token).await.unwrap();
    assert!(store.finish("k", token, "x".into(), LONG).await.unwrap());
    store.forget("k", "x".into()).await.unwrap();
    assert_eq!(store.claim("k", token, LONG).await.unwrap(), Claim::Won);
    // A key outside of the user's rights is an error.
    let other = RedisStore::new(&redis, "h:once:");
    other.claim("k", token, LONG).await.unwrap_err();
}

#[tokio::test]
async fn the_store_connects_again_after_the_server_was_restarted() {
    let server = RedisServer::start().await;
    let store = connect(&server).await;
    assert_eq!(claim(&store, "k").await, Claim::Won);
    server.restart().await;
    // Without persistence the key is lost, and the scripts are loaded again.
    assert_eq!(claim(&store, "k").await, Claim::Won);
    assert_eq!(claim(&store, "k").await, Claim::Taken);
}

#[tokio::test]
async fn the_store_fails_while_the_server_is_down_or_silent_and_works_again_afterwards() {
    let server = RedisServer::with(Options::new().persistent()).await;
    let store = connect(&server).await.timeout(300 * MILLI);
    assert_eq!(claim(&store, "k").await, Claim::Won);

    server.signal(Signal::Stop);
    let silent = store.claim("k", Token::new(), LONG).await.unwrap_err();
    let silent = silent.downcast::<Error>().expect("one of the transport");
    assert!(silent.is_timeout(), "{silent:?}");
    server.signal(Signal::Cont);
    assert_eq!(
        claim(&store.clone().timeout(20 * SECOND), "k").await,
        Claim::Taken
    );

    server.signal(Signal::Kill);
    store.claim("k", Token::new(), LONG).await.unwrap_err();
    server.restart().await;
    assert_eq!(claim(&store.timeout(20 * SECOND), "k").await, Claim::Taken);
}

#[tokio::test]
async fn a_key_of_another_type_is_an_error() {
    let server = RedisServer::start().await;
    let store = connect(&server).await;
    server.command(&["LPUSH", "g:once:k", "x"]).await;
    store.claim("k", Token::new(), LONG).await.unwrap_err();
    server
        .command(&["SET", "g:once:l", "neither claim nor outcome"])
        .await;
    let foreign = store.claim("l", Token::new(), LONG).await.unwrap();
    assert_eq!(foreign, Claim::Taken, "an unknown value counts as a claim");
}

#[tokio::test]
async fn a_server_that_takes_no_writes_is_an_error_at_once() {
    let server = RedisServer::start().await;
    let store = connect(&server).await.timeout(20 * SECOND);
    for setting in ["min-replicas-to-write", "maxmemory"] {
        server.command(&["CONFIG", "SET", setting, "1"]).await;
        let error = store.claim("k", Token::new(), LONG).await.unwrap_err();
        let error = error.downcast::<Error>().expect("one of the transport");
        assert!(error.is_refused(), "{error:?}");
        server.command(&["CONFIG", "SET", setting, "0"]).await;
    }
    assert_eq!(claim(&store, "k").await, Claim::Won);
}

#[tokio::test]
async fn a_store_shows_the_address_of_its_server_without_the_password() {
    let server = RedisServer::with(Options::new().password("hunter2")).await;
    let shown = format!("{:?}", connect(&server).await);
    let address = format!("127.0.0.1:{}", server.port());
    assert!(
        shown.contains(&address) && !shown.contains("hunter2"),
        "{shown}"
    );
}

#[tokio::test]
async fn a_prefix_and_a_time_limit_are_needed() {
    let server = RedisServer::start().await;
    let redis = handle(&server.url()).await;
    panic_text(|| RedisStore::new(&redis, ""));
    let store = RedisStore::new(&redis, "p");
    panic_text(|| store.timeout(Duration::ZERO));
}
