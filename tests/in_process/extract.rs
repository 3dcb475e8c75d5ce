//! Tests of the arguments of handlers, and of their rejections.

use std::time::Duration;

use bytes::Bytes;
use campanile::{
    Attempt, BoxError, Deadline, Extension, FromMessage, FromMessageParts, FromRef, Handler, Json,
    Kind, Lease, MatchedRoute, Message, MessageId, Name, Parts, Rejection, Reply, Router, State,
    error,
};
use http::{HeaderMap, HeaderValue};
use tower::ServiceExt;

/// Calls a handler with a message and returns its reply as text.
async fn run<T>(handler: impl Handler<T, ()>, message: Message) -> Result<String, BoxError> {
    let reply: Reply = handler
        .with_state(())
        .oneshot(message)
        .await
        .map_err(Into::into)?;
    Ok(String::from_utf8(reply.payload.to_vec())?)
}

/// Calls a handler, which must reject the message. Returns the text of the rejection, and whether
/// it is permanent.
async fn rejection<T>(handler: impl Handler<T, ()>, message: Message) -> (String, bool) {
    let error = run(handler, message).await.unwrap_err();
    let rejection = error::find::<Rejection>(&*error).expect("a rejection");
    (rejection.to_string(), rejection.is_permanent())
}

fn rpc(payload: &str) -> Message {
    Message::rpc("name", payload.to_owned())
}

#[derive(Debug, serde::Deserialize)]
#[allow(dead_code)]
struct Order {
    id: u64,
    #[serde(default)]
    kind: Option<OrderKind>,
}

#[derive(Debug, serde::Deserialize)]
enum OrderKind {
    Small,
}

#[tokio::test]
async fn every_part_of_a_message_is_an_argument() {
    let mut message = rpc("x");
    let parts = message.parts_mut();
    parts.attempt = Attempt(3);
    parts.id = Some("7-0".into());
    parts.deadline = Some(Deadline::after(Duration::from_secs(60)));
    parts.lease = Some(Lease::new());
    parts.headers.insert("x-a", HeaderValue::from_static("b"));
    parts.extensions.insert(5_u8);
    #[allow(clippy::too_many_arguments)]
    async fn all(
        kind: Kind,
        name: Name,
        id: MessageId,
        attempt: Attempt,
        deadline: Deadline,
        lease: Lease,
        headers: HeaderMap,
        Extension(extension): Extension<u8>,
        payload: String,
    ) -> String {
        assert!(!deadline.has_passed() && !lease.is_lost() && attempt.is_retry());
        format!(
            "{kind} {name} {id} {} {:?} {extension} {payload}",
            attempt.0, headers["x-a"]
        )
    }
    let reply = run(all, message).await.unwrap();
    assert_eq!(reply, r#"rpc name 7-0 3 "b" 5 x"#);
}

#[tokio::test]
async fn the_payload_is_an_argument_in_each_of_its_forms() {
    assert_eq!(
        run(async |Json(n): Json<u32>| Json(n + 1), rpc("41"))
            .await
            .unwrap(),
        "42"
    );
    assert_eq!(
        run(async |bytes: Bytes| bytes, rpc("raw")).await.unwrap(),
        "raw"
    );
    assert_eq!(
        run(async |bytes: Vec<u8>| bytes, rpc("raw")).await.unwrap(),
        "raw"
    );
    assert_eq!(
        run(async |text: String| text, rpc("text")).await.unwrap(),
        "text"
    );
    let whole = async |message: Message| format!("{} {:?}", message.name(), message.payload());
    assert_eq!(run(whole, rpc("x")).await.unwrap(), r#"name b"x""#);
    assert_eq!(run(async || "none", rpc("x")).await.unwrap(), "none");
}

#[tokio::test]
async fn sixteen_arguments_are_taken_in_order() {
    #[allow(clippy::too_many_arguments)]
    async fn sixteen(
        _: Kind,
        _: Kind,
        _: Kind,
        _: Kind,
        _: Kind,
        _: Kind,
        _: Kind,
        _: Kind,
        _: Kind,
        _: Kind,
        _: Kind,
        _: Kind,
        _: Kind,
        _: Kind,
        name: Name,
        text: String,
    ) -> String {
        format!("{name} {text}")
    }
    assert_eq!(run(sixteen, rpc("x")).await.unwrap(), "name x");
}

#[tokio::test]
async fn a_payload_that_is_not_the_json_is_rejected_for_good_and_is_not_quoted() {
    async fn take(_: Json<Order>) {}
    for (payload, text) in [
        ("", "the payload is empty where JSON was expected"),
        (
            "secret",
            "the payload is not JSON: expected value at line 1 column 1",
        ),
        (
            "{\"id\":1} secret",
            "the payload is not JSON: trailing characters at line 1 column 10",
        ),
        (
            "{\"id\":",
            "the payload is not JSON: EOF while parsing a value at line 1 column 6",
        ),
        (
            "{}",
            "the payload is JSON of another shape: missing field `id` at line 1 column 2",
        ),
        (
            r#"{"id":"secret"}"#,
            "the payload is JSON of another shape: expected u64 at line 1 column 14",
        ),
        (
            r#"{"id":"secret, expected secret"}"#,
            "the payload is JSON of another shape: expected u64 at line 1 column 31",
        ),
        (
            r#"{"id":1,"kind":"secret"}"#,
            "the payload is JSON of another shape: expected `Small` at line 1 column 23",
        ),
    ] {
        let (told, permanent) = rejection(take, rpc(payload)).await;
        assert_eq!(told, text, "{payload}");
        assert!(permanent);
        let error = run(take, rpc(payload)).await.unwrap_err();
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
    let _ = OrderKind::Small;
}

#[tokio::test]
async fn a_payload_that_is_no_text_is_rejected_for_good() {
    let message = Message::rpc("name", vec![b'a', 0xff]);
    let (text, permanent) = rejection(async |_: String| {}, message).await;
    assert_eq!(text, "the payload is not UTF-8 text");
    assert!(permanent);
}

#[tokio::test]
async fn a_missing_extension_is_the_deployments_fault() {
    let (text, permanent) = rejection(async |_: Extension<u8>| {}, rpc("")).await;
    assert_eq!(text, "no layer added the extension `u8`");
    assert!(!permanent);
}

#[tokio::test]
async fn values_that_a_message_does_not_have_are_rejected_or_none() {
    assert!(
        rejection(async |_: Deadline| {}, rpc("")).await.1,
        "the sender has set no header"
    );
    assert!(!rejection(async |_: MessageId| {}, rpc("")).await.1);
    assert!(!rejection(async |_: Lease| {}, rpc("")).await.1);
    assert!(!rejection(async |_: MatchedRoute| {}, rpc("")).await.1);
    async fn none(
        deadline: Option<Deadline>,
        id: Option<MessageId>,
        lease: Option<Lease>,
        route: Option<MatchedRoute>,
        extension: Option<Extension<u8>>,
    ) -> String {
        let there = [
            deadline.is_some(),
            id.is_some(),
            lease.is_some(),
            route.is_some(),
            extension.is_some(),
        ];
        format!("{there:?}")
    }
    assert_eq!(
        run(none, rpc("")).await.unwrap(),
        "[false, false, false, false, false]"
    );
}

#[tokio::test]
async fn an_empty_payload_is_an_absent_one_and_a_malformed_one_is_rejected() {
    async fn optional(order: Option<Json<Order>>) -> String {
        format!("{:?}", order.map(|Json(order)| order.id))
    }
    assert_eq!(run(optional, rpc("")).await.unwrap(), "None");
    assert_eq!(run(optional, rpc(r#"{"id":3}"#)).await.unwrap(), "Some(3)");
    assert!(rejection(optional, rpc("{")).await.1);
    assert!(rejection(optional, rpc("null")).await.1, "null is a value");
    let text = async |text: Option<String>| format!("{text:?}");
    assert_eq!(run(text, rpc("")).await.unwrap(), "None");
    assert_eq!(run(text, rpc("a")).await.unwrap(), "Some(\"a\")");
    let bytes = async |a: Option<Bytes>| format!("{}", a.is_some());
    assert_eq!(run(bytes, rpc("")).await.unwrap(), "false");
}

#[tokio::test]
async fn a_result_hands_the_rejection_to_the_handler() {
    async fn results(
        deadline: Result<Deadline, Rejection>,
        order: Result<Json<Order>, Rejection>,
    ) -> String {
        format!(
            "{} {}",
            deadline.is_ok(),
            order.map(|_| ()).unwrap_err().is_permanent()
        )
    }
    assert_eq!(run(results, rpc("[")).await.unwrap(), "false true");
}

#[tokio::test]
async fn state_is_extracted_as_a_whole_or_in_parts() {
    #[derive(Clone)]
    struct App {
        db: Db,
    }
    #[derive(Clone)]
    struct Db(&'static str);
    impl FromRef<App> for Db {
        fn from_ref(app: &App) -> Db {
            app.db.clone()
        }
    }
    async fn both(State(app): State<App>, State(db): State<Db>) -> String {
        format!("{} {}", app.db.0, db.0)
    }
    let app = Router::new()
        .rpc("a", both)
        .with_state(App { db: Db("db") });
    assert_eq!(
        app.oneshot(Message::rpc("a", "")).await.unwrap().payload,
        "db db"
    );
}

#[tokio::test]
async fn an_extension_as_a_layer_reaches_the_handler() {
    let app = Router::new()
        .rpc("a", async |Extension(text): Extension<&'static str>| text)
        .layer(Extension("from the layer"))
        .with_state(());
    assert_eq!(
        app.oneshot(Message::rpc("a", "")).await.unwrap().payload,
        "from the layer"
    );
}

#[tokio::test]
async fn extraction_ends_at_the_first_rejection_and_the_handler_does_not_run() {
    async fn never(_: Extension<u8>, _: Json<Order>) {
        unreachable!();
    }
    assert!(!rejection(never, rpc("not JSON")).await.1);
}

#[tokio::test]
async fn extractors_of_ones_own_may_wait_and_fail_with_any_error() {
    struct Tenant(String);
    impl<S: Sync> FromMessageParts<S> for Tenant {
        type Rejection = std::io::Error;

        async fn from_message_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
            tokio::task::yield_now().await;
            match parts.headers.get("x-tenant").map(HeaderValue::to_str) {
                Some(Ok(tenant)) => Ok(Tenant(tenant.to_owned())),
                _ => Err(std::io::Error::other("no tenant")),
            }
        }
    }
    struct Words(usize);
    impl<S: Sync> FromMessage<S> for Words {
        type Rejection = &'static str;

        async fn from_message(message: Message, state: &S) -> Result<Self, &'static str> {
            let text = String::from_message(message, state)
                .await
                .map_err(|_| "no text")?;
            Ok(Words(text.split(' ').count()))
        }
    }
    async fn handler(Tenant(tenant): Tenant, Words(words): Words) -> String {
        format!("{tenant} {words}")
    }
    let mut message = rpc("a b c");
    message
        .headers_mut()
        .insert("x-tenant", HeaderValue::from_static("acme"));
    assert_eq!(run(handler, message).await.unwrap(), "acme 3");
    assert_eq!(
        run(handler, rpc("")).await.unwrap_err().to_string(),
        "no tenant"
    );
    // A parts extractor can be the last argument, and the only one.
    assert!(run(async |_: Tenant| {}, rpc("")).await.is_err());
}

#[tokio::test]
async fn an_outbox_without_a_delivery_is_refused_with_what_to_do() {
    let handler = async |_: campanile::Outbox| {};
    let (text, permanent) = rejection(handler, Message::task("n", "")).await;
    assert!(text.contains("serve the router") && !permanent, "{text}");
    let handler = async |outbox: Option<campanile::Outbox>| Json(outbox.is_some());
    assert_eq!(run(handler, Message::task("n", "")).await.unwrap(), "false");
}
