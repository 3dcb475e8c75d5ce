//! Tests of the contract of `Store`, for both stores.

use bytes::Bytes;
use campanile::Redis;
use campanile_middleware::idempotency::{Claim, MemoryStore, RedisStore, Store, Token};

use super::{MILLI, SECOND, support::RedisServer};

const LONG: std::time::Duration = SECOND.saturating_mul(60);

#[tokio::test]
async fn in_memory() {
    check(MemoryStore::new()).await;
}

#[tokio::test]
async fn on_redis() {
    let server = RedisServer::start().await;
    let redis = Redis::connect(&server.url()).await;
    let redis = redis.expect("the server is reachable");
    check(RedisStore::new(&redis, "g:once:")).await;
}

async fn check(store: impl Store) {
    a_key_has_one_claim_until_it_is_released(&store).await;
    every_token_gets_a_stored_outcome(&store).await;
    an_expired_key_is_free(&store).await;
    a_token_without_the_claim_changes_nothing(&store).await;
    any_bytes_can_be_stored(&store).await;
}

async fn claim(store: &impl Store, key: &str, token: Token) -> Claim {
    store
        .claim(key, token, LONG)
        .await
        .expect("the store works")
}

async fn a_key_has_one_claim_until_it_is_released(store: &impl Store) {
    let (mine, other) = (Token::new(), Token::new());
    assert_eq!(claim(store, "a", mine).await, Claim::Won);
    assert_eq!(
        claim(store, "a", mine).await,
        Claim::Won,
        "a repeated claim"
    );
    assert_eq!(claim(store, "a", other).await, Claim::Taken);
    assert_eq!(claim(store, "b", other).await, Claim::Won, "another key");
    store.release("a", other).await.unwrap();
    assert_eq!(claim(store, "a", other).await, Claim::Taken);
    assert!(store.renew("a", mine, LONG).await.unwrap());
    assert!(!store.renew("a", other, LONG).await.unwrap());
    for _ in 0..2 {
        store.release("a", mine).await.unwrap();
    }
    assert_eq!(claim(store, "a", other).await, Claim::Won);
}

async fn every_token_gets_a_stored_outcome(store: &impl Store) {
    let (mine, other) = (Token::new(), Token::new());
    let outcome = Bytes::from_static(b"outcome");
    claim(store, "c", mine).await;
    for _ in 0..2 {
        let stored = store.finish("c", mine, outcome.clone(), LONG).await;
        assert!(stored.unwrap(), "a repeated call, as after a lost response");
    }
    for token in [mine, other] {
        let found = claim(store, "c", token).await;
        assert_eq!(found, Claim::Finished(outcome.clone()));
        assert!(!store.renew("c", token, LONG).await.unwrap());
        store.release("c", token).await.unwrap();
    }
    let late = store.finish("c", other, "late".into(), LONG).await;
    assert!(!late.unwrap(), "the first outcome stays");
    store.forget("c", "late".into()).await.unwrap();
    assert_eq!(
        claim(store, "c", other).await,
        Claim::Finished(outcome.clone())
    );
    store.forget("c", outcome).await.unwrap();
    assert_eq!(claim(store, "c", other).await, Claim::Won);
}

async fn an_expired_key_is_free(store: &impl Store) {
    let (dead, next) = (Token::new(), Token::new());
    let won = store.claim("d", dead, 20 * MILLI).await.unwrap();
    assert_eq!(won, Claim::Won);
    super::support::raw::eventually(
        || async { (claim(store, "d", next).await == Claim::Won).then_some(()) },
        20 * SECOND,
    )
    .await;
    let outcome = Bytes::from_static(b"short");
    let stored = store.finish("d", next, outcome, 20 * MILLI).await;
    assert!(stored.unwrap());
    super::support::raw::eventually(
        || async { (claim(store, "d", dead).await == Claim::Won).then_some(()) },
        20 * SECOND,
    )
    .await;
}

async fn a_token_without_the_claim_changes_nothing(store: &impl Store) {
    let (lost, holder) = (Token::new(), Token::new());
    claim(store, "e", holder).await;
    assert!(!store.renew("e", lost, LONG).await.unwrap());
    assert!(!store.finish("e", lost, "x".into(), LONG).await.unwrap());
    store.release("e", lost).await.unwrap();
    assert!(store.finish("e", holder, "y".into(), LONG).await.unwrap());
    assert_eq!(claim(store, "e", lost).await, Claim::Finished("y".into()));
    // An outcome can be stored on a free key too.
    assert!(store.finish("f", lost, "z".into(), LONG).await.unwrap());
    // A claim that expired can be renewed while the key is free.
    assert!(store.renew("g", lost, LONG).await.unwrap());
    assert_eq!(claim(store, "g", holder).await, Claim::Taken);
}

async fn any_bytes_can_be_stored(store: &impl Store) {
    for (n, bytes) in [&b""[..], b"\x00\xff\r\n", &[b'x'; 100_000]]
        .iter()
        .enumerate()
    {
        let (key, token) = (format!("bytes \u{fc}\r\n{n}"), Token::new());
        let outcome = Bytes::copy_from_slice(bytes);
        assert!(
            store
                .finish(&key, token, outcome.clone(), LONG)
                .await
                .unwrap()
        );
        assert_eq!(claim(store, &key, token).await, Claim::Finished(outcome));
    }
}
