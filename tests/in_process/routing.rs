//! Tests of routers without a transport.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use campanile::{
    BoxError, Client, Failure, Json, Kind, MatchedRoute, Message, Name, NotFound, Reply, Router,
    Servable, State, WithInterest, error, routing::FanOutError,
};
use futures_util::FutureExt;
use tower::{Service, ServiceExt, service_fn};

async fn call(app: &Router, message: Message) -> Result<String, BoxError> {
    let reply = app.clone().oneshot(message).await?;
    Ok(String::from_utf8(reply.payload.to_vec())?)
}

/// A handler that returns the name and the matched route of its message.
async fn echo(name: Name, route: MatchedRoute) -> String {
    format!("{name} by {}", route.as_str())
}

fn assert_not_found(outcome: Result<String, BoxError>, text: &str) {
    let error = outcome.unwrap_err();
    let not_found = error::find::<NotFound>(&*error).expect("not found");
    assert_eq!(not_found.to_string(), text);
}

#[tokio::test]
async fn a_message_goes_to_the_handler_of_its_kind_and_name() {
    let app: Router = Router::new()
        .task("a", async || "task a")
        .rpc("a", async || "rpc a")
        .event("a", async || "event a")
        .task("b", async || "task b");
    assert_eq!(call(&app, Message::task("a", "")).await.unwrap(), "task a");
    assert_eq!(call(&app, Message::rpc("a", "")).await.unwrap(), "rpc a");
    assert_eq!(
        call(&app, Message::event("a", "")).await.unwrap(),
        "event a"
    );
    assert_eq!(call(&app, Message::task("b", "")).await.unwrap(), "task b");
    assert_not_found(
        call(&app, Message::rpc("b", "")).await,
        "no route for rpc `b`",
    );
    assert_not_found(
        call(&app, Message::event("b", "")).await,
        "no route for event `b`",
    );
}

#[tokio::test]
async fn names_are_compared_whole_and_glob_characters_in_them_mean_nothing() {
    let app: Router = Router::new()
        .task("a*", echo)
        .task("a b", echo)
        .task("\u{e4}.\u{1f514}", echo);
    assert_eq!(
        call(&app, Message::task("a*", "")).await.unwrap(),
        "a* by a*"
    );
    assert_eq!(
        call(&app, Message::task("a b", "")).await.unwrap(),
        "a b by a b"
    );
    assert!(
        call(&app, Message::task("\u{e4}.\u{1f514}", ""))
            .await
            .is_ok()
    );
    for name in ["", "a", "ax", "A*", "a*.", "a* "] {
        assert!(
            call(&app, Message::task(name, "")).await.is_err(),
            "{name:?}"
        );
    }
}

#[tokio::test]
async fn any_service_is_a_route() {
    let reverse = service_fn(async |message: Message| {
        let reversed: Vec<u8> = message.payload().iter().rev().copied().collect();
        Ok::<_, Failure>(Reply::new(reversed))
    });
    let app: Router = Router::new()
        .task_service("t", reverse)
        .rpc_service("r", reverse)
        .event_service("e", reverse)
        .event_pattern_service("p*", reverse)
        .fallback_service(reverse);
    for message in [
        Message::task("t", "abc"),
        Message::rpc("r", "abc"),
        Message::event("e", "abc"),
        Message::event("pp", "abc"),
        Message::rpc("unknown", "abc"),
    ] {
        assert_eq!(call(&app, message).await.unwrap(), "cba");
    }
}

#[tokio::test]
async fn sharded_events_have_their_own_routes() {
    let app: Router = Router::new()
        .event("e", async || "event")
        .event_pattern("*", async || "pattern")
        .event_sharded("e*", async || "other name")
        .nest("in", Router::new().event_sharded("e", async || "nested"))
        .event_sharded("e", async || "sharded")
        .event_sharded_service(
            "s",
            service_fn(async |_: Message| Ok::<_, Failure>(Reply::new("service"))),
        );
    let sharded = |name: &'static str| {
        let mut event = Message::event(name, "");
        event.parts_mut().sharded = true;
        event
    };
    for (name, reply) in [
        ("e", "sharded"),
        ("e*", "other name"),
        ("in.e", "nested"),
        ("s", "service"),
    ] {
        assert_eq!(call(&app, sharded(name)).await.unwrap(), reply);
    }
    assert!(
        call(&app, sharded("ex")).await.is_err(),
        "no pattern matches"
    );
    assert_eq!(
        call(&app, Message::event("s", "")).await.unwrap(),
        "pattern"
    );
    assert_eq!(app.interest().events, ["e"]);
    assert_eq!(app.interest().patterns, ["*"]);
    assert_eq!(app.interest().sharded, ["e*", "in.e", "e", "s"]);
    assert!(app.route_names().contains(&"sharded event in.e".to_owned()));
}

#[tokio::test]
async fn sharded_events_of_one_name_have_several_handlers() {
    let runs = Arc::new(AtomicUsize::new(0));
    let count = |by: usize| {
        let runs = runs.clone();
        async move || {
            runs.fetch_add(by, Ordering::Relaxed);
        }
    };
    let app: Router = Router::new()
        .event_sharded("e", count(1))
        .event_sharded("e", count(10))
        .event("e", count(100));
    let client = Client::new(app);
    client.publish("e", "").sharded().await.unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 11);
    client.publish("e", "").await.unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 111);
}

#[tokio::test]
async fn nesting_joins_with_a_dot_and_leaves_the_name_whole() {
    let inner = Router::new()
        .task("create", echo)
        .nest("admin", Router::new().rpc("list", echo));
    let app: Router = Router::new()
        .nest("orders", inner)
        .nest("", Router::new().task("bare", echo));
    assert_eq!(
        call(&app, Message::task("orders.create", ""))
            .await
            .unwrap(),
        "orders.create by orders.create"
    );
    assert_eq!(
        call(&app, Message::rpc("orders.admin.list", ""))
            .await
            .unwrap(),
        "orders.admin.list by orders.admin.list"
    );
    assert!(call(&app, Message::task("bare", "")).await.is_ok());
    assert!(call(&app, Message::task("create", "")).await.is_err());
}

#[tokio::test]
async fn a_prefix_is_meant_literally_in_front_of_a_pattern() {
    let router = Router::new().nest("a*[x]", Router::new().event_pattern("*.b", echo));
    let app: Router = router;
    assert!(call(&app, Message::event("a*[x].1.b", "")).await.is_ok());
    assert!(call(&app, Message::event("a-x.1.b", "")).await.is_err());
    assert!(call(&app, Message::event("abcx.1.b", "")).await.is_err());
}

#[tokio::test]
async fn merging_keeps_the_routes_of_both() {
    let a = Router::new().task("a", echo).event("e", echo);
    let b = Router::new().task("b", echo).event("e", echo);
    let app: Router = a.merge(b);
    assert!(call(&app, Message::task("a", "")).await.is_ok());
    assert!(call(&app, Message::task("b", "")).await.is_ok());
    assert_eq!(app.routes().len(), 3);
}

#[tokio::test]
async fn a_fallback_gets_what_has_no_route_and_the_innermost_one_wins() {
    let fallback =
        |who: &'static str| async move |route: MatchedRoute| format!("{who} {:?}", route.as_str());
    let admin = Router::new().task("list", echo).fallback(fallback("admin"));
    let orders = Router::new()
        .task("create", echo)
        .nest("admin", admin)
        .nest("plain", Router::new().task("x", echo))
        .fallback(fallback("orders"));
    let app: Router = Router::new()
        .nest("orders", orders)
        .fallback(fallback("root"));
    for (name, expected) in [
        ("unknown", r#"root """#),
        ("ordersx", r#"root """#),
        ("orders", r#"orders "orders""#),
        ("orders.nope", r#"orders "orders""#),
        ("orders.plain.nope", r#"orders "orders""#),
        ("orders.admin.nope", r#"admin "orders.admin""#),
        ("orders.admin.list.nope", r#"admin "orders.admin""#),
        (
            "orders.admin.list",
            "orders.admin.list by orders.admin.list",
        ),
    ] {
        assert_eq!(call(&app, Message::task(name, "")).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn all_handlers_of_an_event_run_even_when_others_fail_or_panic() {
    let ran = Arc::new(AtomicUsize::new(0));
    let count = |ran: &Arc<AtomicUsize>| {
        let ran = ran.clone();
        async move || {
            tokio::task::yield_now().await;
            ran.fetch_add(1, Ordering::SeqCst);
        }
    };
    let app: Router = Router::new()
        .event("e", async || Err::<(), _>(Failure::discard()))
        .event("e", count(&ran))
        .event("e", async || -> () { panic!("boom") })
        .event("e", async || Err::<(), BoxError>("second".into()))
        .event("e", count(&ran));
    let error = call(&app, Message::event("e", "")).await.unwrap_err();
    assert_eq!(ran.load(Ordering::SeqCst), 2);
    let failed = error.downcast_ref::<FanOutError>().unwrap();
    assert_eq!(failed.failed_count(), 3);
    assert_eq!(failed.to_string(), "3 of the event's handlers failed");
    let texts: Vec<String> = failed.errors().map(|error| error.to_string()).collect();
    assert_eq!(texts[1..], ["a handler panicked: boom", "second"]);
    assert!(error::find::<Failure>(&*error).is_some());
}

#[tokio::test]
async fn an_event_with_one_handler_fails_with_its_own_error() {
    let app: Router = Router::new().event("e", async || Err::<(), BoxError>("mine".into()));
    let error = call(&app, Message::event("e", "")).await.unwrap_err();
    assert_eq!(error.to_string(), "mine");
}

#[tokio::test]
async fn an_event_in_place_reaches_the_exact_handlers_and_all_matching_patterns() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    async fn note(State(seen): State<Arc<Mutex<Vec<String>>>>, route: MatchedRoute) {
        seen.lock().unwrap().push(route.as_str().to_owned());
    }
    let app = Router::new()
        .event_pattern("orders.*", note)
        .event("orders.created", note)
        .event_pattern("*", note)
        .event_pattern("users.*", note)
        .with_state(seen.clone());
    call(&app, Message::event("orders.created", ""))
        .await
        .unwrap();
    assert_eq!(
        seen.lock().unwrap().split_off(0),
        ["orders.*", "orders.created", "*"]
    );
    call(&app, Message::event("other", "")).await.unwrap();
    assert_eq!(seen.lock().unwrap().split_off(0), ["*"]);
    // A delivery of a source names the subscription that matched.
    let mut message = Message::event("orders.created", "");
    message.parts_mut().pattern = Some("orders.*".into());
    call(&app, message).await.unwrap();
    assert_eq!(seen.lock().unwrap().split_off(0), ["orders.*"]);
    // A pattern is not a name.
    assert!(
        call(&app, Message::task("orders.created", ""))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_finished_router_can_be_a_route_of_another() {
    let inner: Router = Router::new().task("a", echo).task("b", echo);
    let outer: Router = Router::new()
        .task("first", echo)
        .task_service("b", inner.clone())
        .fallback_service(inner);
    assert_eq!(
        call(&outer, Message::task("b", "")).await.unwrap(),
        "b by b"
    );
    assert_eq!(
        call(&outer, Message::task("a", "")).await.unwrap(),
        "a by a"
    );
    assert_not_found(
        call(&outer, Message::task("c", "")).await,
        "no route for task `c`",
    );
}

#[tokio::test]
async fn state_is_what_with_state_was_given() {
    async fn show(State(state): State<String>, Json(n): Json<u32>) -> String {
        format!("{state}{n}")
    }
    let app = Router::new()
        .rpc("show", show)
        .with_state("state".to_owned());
    assert_eq!(
        call(&app, Message::rpc("show", "7")).await.unwrap(),
        "state7"
    );
}

#[tokio::test]
async fn routers_of_different_states_are_joined_once_they_have_them() {
    #[derive(Clone)]
    struct Db(&'static str);
    async fn db(State(Db(name)): State<Db>) -> &'static str {
        name
    }
    async fn text(State(text): State<String>) -> String {
        text
    }
    let orders = Router::new().rpc("db", db).with_state(Db("orders"));
    let users = Router::new().rpc("db", db).with_state(Db("users"));
    let app = Router::new()
        .rpc("text", text)
        .nest("orders", orders)
        .nest("users", users)
        .with_state("all".to_owned());
    assert_eq!(call(&app, Message::rpc("text", "")).await.unwrap(), "all");
    for name in ["orders", "users"] {
        let message = Message::rpc(format!("{name}.db"), "");
        assert_eq!(call(&app, message).await.unwrap(), name);
    }
}

#[tokio::test]
async fn one_router_serves_with_several_states() {
    async fn text(State(text): State<String>) -> String {
        text
    }
    let router = Router::new().rpc("text", text);
    for state in ["a", "b"] {
        let app = router.clone().with_state(state.to_owned());
        assert_eq!(call(&app, Message::rpc("text", "")).await.unwrap(), state);
    }
}

#[test]
fn a_layer_that_needs_a_runtime_is_applied_where_the_router_is_first_used() {
    let layer = tower::buffer::BufferLayer::new(4);
    let app: Router = Router::new().rpc("a", async || "a").layer(layer);
    let first_use = || app.clone().ready().now_or_never().map(drop);
    let outside = std::panic::catch_unwind(std::panic::AssertUnwindSafe(first_use));
    assert!(outside.is_err(), "a buffer spawns a task");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let answer = runtime.block_on(call(&app, Message::rpc("a", "")));
    assert_eq!(answer.unwrap(), "a", "the next use builds it");
}

#[test]
fn a_router_lists_its_routes() {
    let inner = Router::new().event_pattern("e.*", echo).rpc("get", echo);
    let router: Router = Router::new()
        .task("a", echo)
        .task("a.b", echo)
        .nest("n", inner)
        .event("x", echo)
        .event("x", echo);
    let list = |routes: &[campanile::routing::RouteInfo]| -> Vec<String> {
        let pattern = |route: &campanile::routing::RouteInfo| {
            if route.is_pattern { " (pattern)" } else { "" }
        };
        routes
            .iter()
            .map(|route| format!("{} {}{}", route.kind, route.name, pattern(route)))
            .collect()
    };
    let expected = [
        "task a",
        "task a.b",
        "event n.e.* (pattern)",
        "rpc n.get",
        "event x",
    ];
    assert_eq!(list(router.routes()), expected);
    let finished: Router = router.with_state(());
    assert_eq!(list(finished.routes()), expected);
}

#[test]
fn a_router_returns_its_interest() {
    let router = || -> Router {
        Router::new()
            .event("e", echo)
            .event("f", echo)
            .event("e", echo)
            .event_pattern("p.*", echo)
    };
    let interest = router().interest();
    assert_eq!(interest.events, ["e", "f"]);
    assert_eq!(interest.patterns, ["p.*"]);
    assert!(!interest.stream, "no route takes tasks or requests");
    assert_eq!(Servable::interest(&router()), interest);
    assert_eq!(interest.routes, Some(Vec::new()));
    let named = router().task("t", echo).rpc("r", echo).interest();
    let routes = [(Kind::Task, "t".into()), (Kind::Rpc, "r".into())];
    assert_eq!(named.routes.as_deref(), Some(&routes[..]));
    assert_eq!(router().fallback(echo).interest().routes, None);
    assert!(router().task("t", echo).interest().stream);
    assert!(router().rpc("t", echo).interest().stream);
    assert!(router().fallback(echo).interest().stream);
    assert!(
        router()
            .nest("n", Router::new().fallback(echo))
            .interest()
            .stream
    );
}

#[test]
fn a_service_around_a_router_is_given_its_interest() {
    let router: Router = Router::new().event("e", echo);
    let interest = router.interest();
    let wrapped = tower::ServiceBuilder::new()
        .concurrency_limit(1)
        .service(router);
    let named = WithInterest::new(wrapped, interest.clone());
    assert_eq!(named.interest(), interest);
    let more = named
        .event("f")
        .event_pattern("p.*")
        .event_sharded("s")
        .interest();
    assert_eq!(more.sharded, ["s"]);
    assert!(!more.stream);
    assert_eq!(more.events, ["e", "f"]);
    assert_eq!(more.patterns, ["p.*"]);
}

/// Returns the interest, as `serve` reads it.
fn takes(_: impl Servable) {}

#[test]
fn routers_and_services_around_them_can_be_served() {
    #[derive(Clone)]
    struct Db;
    async fn with_db(State(_): State<Db>) {}
    takes(Router::new().task("a", echo));
    takes(Router::new().task("a", with_db).with_state(Db));
    takes(WithInterest::stream(
        tower::ServiceBuilder::new()
            .concurrency_limit(3)
            .service(Router::new().task("a", with_db).with_state(Db)),
    ));
    takes(WithInterest::stream(service_fn(async |_: Message| {
        Ok::<_, BoxError>(Reply::default())
    })));
}

#[test]
fn a_router_and_its_future_can_be_sent_and_shared() {
    fn send<T: Send>() {}
    fn shared<T: Clone + Send + Sync + 'static>() {}
    /// A router is `Clone` even if its state is not.
    struct NotClone;
    shared::<Router<NotClone>>();
    shared::<Router>();
    shared::<campanile::routing::Route>();
    send::<<Router as Service<Message>>::Future>();
}

#[tokio::test]
async fn many_routers_nest_deeply() {
    let mut router = Router::new().task("leaf", echo);
    let mut name = "leaf".to_owned();
    for level in 0..100 {
        router = Router::new().nest(
            format!("l{level}"),
            router.layer(tower::limit::ConcurrencyLimitLayer::new(1)),
        );
        name = format!("l{level}.{name}");
    }
    assert_eq!(
        call(&router, Message::task(&*name, "")).await.unwrap(),
        format!("{name} by {name}")
    );
}

#[test]
fn debug_output_lists_the_routes() {
    let router: Router = Router::new().task("a", echo);
    assert!(format!("{router:?}").contains("\"a\""));
}

mod mistakes {
    use super::*;

    use crate::panics::panic_text;

    macro_rules! mistake {
        ($build:expr) => {
            panic_text(|| -> Router { $build })
        };
    }

    #[test]
    fn a_name_is_routed_once() {
        let text = mistake!(Router::new().task("a", echo).task("a", echo));
        assert_eq!(text, "task `a` is already routed");
        let service: Router = Router::new();
        let text = mistake!(Router::new().rpc("a", echo).rpc_service("a", service));
        assert_eq!(text, "rpc `a` is already routed");
    }

    #[test]
    fn a_name_is_neither_empty_nor_too_long() {
        let text = mistake!(Router::new().task("", echo));
        assert_eq!(text, "task `` cannot be routed: the name is empty");
        let text = mistake!(Router::new().event("x".repeat(Name::MAX_LEN + 1), echo));
        assert!(
            text.ends_with("the name is longer than 1024 bytes"),
            "{text}"
        );
        mistake!(Router::new().event_pattern("", echo));
        mistake!(Router::new().event_service("", Router::new()));
        mistake!(Router::new().event_pattern_service("", Router::new()));
        mistake!(Router::new().rpc("", echo));
        let long = Router::new().task("x".repeat(Name::MAX_LEN), echo);
        mistake!(Router::new().nest("p", long));
    }

    #[test]
    fn merged_and_nested_routers_do_not_clash() {
        let other = Router::new().task("a", echo);
        let text = mistake!(Router::new().task("a", echo).merge(other));
        assert_eq!(text, "task `a` is already routed");
        let other = Router::new().task("a", echo);
        let text = mistake!(Router::new().task("o.a", echo).nest("o", other));
        assert_eq!(text, "task `o.a` is already routed");
    }

    #[test]
    fn a_prefix_has_one_fallback() {
        let custom = || Router::new().fallback(echo);
        let text = mistake!(custom().merge(custom()));
        assert_eq!(text, "the router has a fallback already");
        mistake!(custom().fallback(echo));
        mistake!(custom().fallback_service(Router::new()));
        mistake!(custom().nest("", custom()));
        let text = mistake!(Router::new().nest("o", custom()).nest("o", custom()));
        assert_eq!(text, "the prefix `o` has a fallback already");
    }

    #[test]
    fn a_route_layer_has_routes() {
        let layer = tower::limit::ConcurrencyLimitLayer::new(1);
        let text = mistake!(Router::new().fallback(echo).route_layer(layer));
        assert!(
            text.starts_with("a `route_layer` before any route"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn the_kind_of_a_route_is_part_of_its_description() {
    let router: Router = Router::new().rpc("a", echo);
    assert_eq!(router.routes()[0].kind, Kind::Rpc);
}
