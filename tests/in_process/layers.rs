//! Tests of layers around the routes of a router.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use campanile::{BoxError, Handler, Message, NotFound, Reply, Router, error};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, layer::layer_fn, limit::ConcurrencyLimitLayer,
};

/// Counts the handlers that run at once, and keeps the maximum.
#[derive(Clone, Default)]
struct Gauge(Arc<(AtomicUsize, AtomicUsize)>);

impl Gauge {
    /// A handler that runs for 50 ms.
    fn handler(&self) -> impl Handler<((), ()), ()> + use<> {
        let gauge = self.clone();
        async move || {
            let (now, most) = &*gauge.0;
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            now.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn most(&self) -> usize {
        self.0.1.load(Ordering::SeqCst)
    }
}

fn limit(permits: usize) -> ConcurrencyLimitLayer {
    ConcurrencyLimitLayer::new(permits)
}

/// Sends five messages of each name at the same time, each over another clone.
async fn storm(app: &Router, names: &[String]) {
    let calls: Vec<_> = (0..5)
        .flat_map(|_| names)
        .map(|name| {
            let (app, message) = (app.clone(), Message::task(&**name, ""));
            tokio::spawn(async move { app.oneshot(message).await.map(drop) })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
}

fn names(prefix: &str) -> Vec<String> {
    (0..20).map(|n| format!("{prefix}t{n}")).collect()
}

fn routes(gauge: &Gauge, prefix: &str) -> Router {
    names(prefix)
        .into_iter()
        .fold(Router::new(), |router, name| {
            router.task(name, gauge.handler())
        })
}

/// Builds the service of a router.
async fn warm(app: &Router) {
    app.clone().ready().await.unwrap();
}

/// Asserts that a hundred messages to all of these names never run more than ten at once.
async fn assert_ten(router: Router, gauge: Gauge, names: Vec<String>) {
    storm(&router, &names).await;
    assert_eq!(gauge.most(), 10);
}

mod ten_permits_are_ten {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn over_all_routes() {
        let gauge = Gauge::default();
        assert_ten(routes(&gauge, "").layer(limit(10)), gauge, names("")).await;
    }

    #[tokio::test(start_paused = true)]
    async fn over_nested_and_own_routes() {
        let gauge = Gauge::default();
        let router = routes(&gauge, "")
            .nest("inner", routes(&gauge, "").layer(limit(50)))
            .layer(limit(10));
        let names = [names(""), names("inner.")].concat();
        assert_ten(router, gauge, names).await;
    }

    #[tokio::test(start_paused = true)]
    async fn within_a_nested_router() {
        let gauge = Gauge::default();
        let router = Router::new().nest("inner", routes(&gauge, "").layer(limit(10)));
        assert_ten(
            router.task("other", Gauge::default().handler()),
            gauge,
            names("inner."),
        )
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn within_a_merged_router() {
        let gauge = Gauge::default();
        let router = routes(&Gauge::default(), "x")
            .layer(limit(50))
            .merge(routes(&gauge, "").layer(limit(10)));
        assert_ten(router, gauge, names("")).await;
    }

    #[tokio::test(start_paused = true)]
    async fn over_merged_routers() {
        let gauge = Gauge::default();
        let router = routes(&gauge, "")
            .merge(routes(&gauge, "b"))
            .layer(limit(10));
        assert_ten(router, gauge, [names(""), names("b")].concat()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn on_one_handler() {
        let gauge = Gauge::default();
        let router = Router::new().task("t", gauge.handler().layer(limit(10)));
        assert_ten(router, gauge, vec!["t".to_owned(); 20]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn on_one_handler_in_a_nested_router() {
        let gauge = Gauge::default();
        let inner = Router::new().task("t", gauge.handler().layer(limit(10)));
        assert_ten(
            Router::new().nest("n", inner),
            gauge,
            vec!["n.t".to_owned(); 20],
        )
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn with_a_route_layer() {
        let gauge = Gauge::default();
        assert_ten(routes(&gauge, "").route_layer(limit(10)), gauge, names("")).await;
    }

    #[tokio::test(start_paused = true)]
    async fn around_the_finished_router() {
        let gauge = Gauge::default();
        let app = ServiceBuilder::new()
            .layer(limit(10))
            .service(routes(&gauge, ""));
        let router = Router::new().fallback_service(app);
        assert_ten(router, gauge, names("")).await;
    }

    #[tokio::test(start_paused = true)]
    async fn over_clones_that_were_made_before_the_first_use() {
        let gauge = Gauge::default();
        let app = routes(&gauge, "").layer(limit(10));
        let clones = [app.clone(), app.clone(), app];
        let names = names("");
        futures_util::future::join_all(clones.iter().map(|app| storm(app, &names))).await;
        assert_eq!(gauge.most(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn and_a_clone_that_gets_a_further_route_has_ten_of_its_own() {
        let (gauge, further) = (Gauge::default(), Gauge::default());
        let app = routes(&gauge, "").layer(limit(10));
        storm(&app, &names("")).await;
        assert_eq!(gauge.most(), 10);
        let other = app.clone().task("further", further.handler());
        let (all, more) = (names(""), vec!["further".to_owned(); 20]);
        tokio::join!(storm(&app, &all), storm(&other, &all), storm(&other, &more));
        assert_eq!(gauge.most(), 20);
        assert_eq!(further.most(), 100);
        assert_eq!(app.routes().len() + 1, other.routes().len());
        let error = app.oneshot(Message::task("further", "")).await.unwrap_err();
        assert!(error.is::<NotFound>());
    }

    #[tokio::test]
    async fn on_several_threads() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(4)
            .enable_time()
            .build()
            .unwrap();
        let gauge = Gauge::default();
        let app = routes(&gauge, "").layer(limit(10));
        runtime
            .spawn(async move { storm(&app, &names("")).await })
            .await
            .unwrap();
        // In real time it may happen that fewer than ten run at once.
        assert!((1..=10).contains(&gauge.most()), "{}", gauge.most());
        runtime.shutdown_background();
    }

    #[tokio::test(start_paused = true)]
    async fn and_routes_that_are_added_later_are_outside() {
        let (inside, outside) = (Gauge::default(), Gauge::default());
        let router = routes(&inside, "")
            .layer(limit(10))
            .merge(routes(&outside, "later"));
        storm(&router, &[names(""), names("later")].concat()).await;
        assert_eq!(inside.most(), 10);
        assert_eq!(outside.most(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn over_the_handlers_of_one_event_in_other_places() {
        // A delivery passes the shared layer once, and both handlers in it are called.
        let gauge = Gauge::default();
        let router = Router::new()
            .event("e", gauge.handler())
            .event("e", gauge.handler());
        let app = router.layer(limit(3));
        let calls = (0..9).map(|_| tokio::spawn(app.clone().oneshot(Message::event("e", ""))));
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap().unwrap();
        }
        assert_eq!(gauge.most(), 6);
    }
}

type Log = Arc<Mutex<Vec<String>>>;

/// A layer that records its name and the matched route of each message.
fn note(
    log: &Log,
    name: &'static str,
) -> impl Layer<campanile::routing::Route, Service = Note> + Clone + Send + Sync + use<> {
    let log = log.clone();
    layer_fn(move |inner| {
        log.lock().unwrap().push(format!("applied {name}"));
        Note {
            inner,
            name,
            log: log.clone(),
        }
    })
}

#[derive(Clone)]
struct Note {
    inner: campanile::routing::Route,
    name: &'static str,
    log: Log,
}

impl Service<Message> for Note {
    type Response = Reply;
    type Error = BoxError;
    type Future = campanile::routing::RouteFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, message: Message) -> Self::Future {
        let route = message
            .parts()
            .matched_route()
            .expect("the route is resolved before any layer")
            .as_str()
            .to_owned();
        self.log
            .lock()
            .unwrap()
            .push(format!("{} {route:?}", self.name));
        self.inner.call(message)
    }
}

fn take(log: &Log) -> Vec<String> {
    std::mem::take(&mut *log.lock().unwrap())
}

async fn nothing() {}

#[tokio::test]
async fn layers_are_applied_once_when_the_router_is_first_used() {
    let log = Log::default();
    let inner = Router::new()
        .task("a", nothing)
        .task("b", nothing)
        .layer(note(&log, "inner"));
    let mut app: Router = Router::new()
        .task("c", nothing)
        .layer(note(&log, "before"))
        .nest("n", inner)
        .route_layer(note(&log, "matches"))
        .layer(note(&log, "after"));
    let earlier = app.clone();
    assert!(
        take(&log).is_empty(),
        "nothing is applied before the router is used"
    );
    app.ready().await.unwrap();
    let mut applied = take(&log);
    applied.sort();
    assert_eq!(
        applied,
        [
            "applied after",
            "applied before",
            "applied inner",
            "applied matches"
        ]
    );
    for app in [earlier, app.clone(), app] {
        for name in ["c", "n.a", "n.b", "unknown"] {
            let _ = app.clone().oneshot(Message::task(name, "")).await;
        }
    }
    assert!(!take(&log).iter().any(|line| line.starts_with("applied")));
}

#[tokio::test]
async fn the_last_layer_is_the_outermost_and_each_sees_the_matched_route() {
    let log = Log::default();
    let orders = Router::new()
        .task("create", nothing)
        .layer(note(&log, "orders 1"))
        .layer(note(&log, "orders 2"))
        .event_pattern("e.*", nothing);
    let users = Router::new()
        .task("create", nothing)
        .layer(note(&log, "users"));
    let app = Router::new()
        .nest("orders", orders)
        .nest("users", users)
        .route_layer(note(&log, "matches"))
        .layer(note(&log, "all"))
        .task("later", nothing);
    warm(&app).await;
    take(&log);
    let passes = async |message: Message| {
        let _ = app.clone().oneshot(message).await;
        take(&log)
    };
    let orders_create = r#""orders.create""#;
    assert_eq!(
        passes(Message::task("orders.create", "")).await,
        ["all", "matches", "orders 2", "orders 1"].map(|layer| format!("{layer} {orders_create}"))
    );
    assert_eq!(
        passes(Message::task("users.create", "")).await,
        ["all", "matches", "users"].map(|layer| format!(r#"{layer} "users.create""#))
    );
    assert_eq!(
        passes(Message::event("orders.e.1", "")).await,
        ["all", "matches"].map(|layer| format!(r#"{layer} "orders.e.*""#))
    );
    assert_eq!(passes(Message::task("unknown", "")).await, [r#"all """#]);
    assert_eq!(passes(Message::task("later", "")).await, [""; 0]);
}

#[tokio::test]
async fn a_route_layer_skips_the_fallback_and_nested_fallbacks_keep_their_own_layers() {
    let log = Log::default();
    let nested = Router::new()
        .task("a", nothing)
        .fallback(nothing)
        .layer(note(&log, "nested"));
    let app: Router = Router::new()
        .nest("n", nested)
        .fallback(nothing)
        .route_layer(note(&log, "matches"))
        .layer(note(&log, "all"));
    warm(&app).await;
    take(&log);
    for (name, expected) in [
        (
            "n.a",
            &[r#"all "n.a""#, r#"matches "n.a""#, r#"nested "n.a""#][..],
        ),
        ("n.unknown", &[r#"all "n""#, r#"nested "n""#]),
        ("unknown", &[r#"all """#]),
    ] {
        app.clone().oneshot(Message::task(name, "")).await.unwrap();
        assert_eq!(take(&log), expected);
    }
}

#[tokio::test]
async fn layers_around_a_default_fallback_are_not_carried_into_another_router() {
    let log = Log::default();
    let nested = Router::new().task("a", nothing).layer(note(&log, "nested"));
    let app: Router = Router::new().nest("n", nested).layer(note(&log, "all"));
    warm(&app).await;
    take(&log);
    let error = app.oneshot(Message::rpc("n.x", "")).await.unwrap_err();
    assert!(error::find::<NotFound>(&*error).is_some());
    assert_eq!(take(&log), [r#"all """#]);
}

#[tokio::test]
async fn one_event_passes_a_shared_layer_once_and_each_layer_around_a_part_of_its_handlers() {
    let log = Log::default();
    let a = Router::new()
        .event("e", nothing)
        .event("e", nothing)
        .layer(note(&log, "a"));
    let b = Router::new().event("e", nothing).layer(note(&log, "b"));
    let app: Router = a.merge(b).event("e", nothing).layer(note(&log, "all"));
    warm(&app).await;
    take(&log);
    app.oneshot(Message::event("e", "")).await.unwrap();
    assert_eq!(take(&log), [r#"all "e""#, r#"a "e""#, r#"b "e""#]);
}

#[tokio::test]
async fn a_message_that_a_layer_makes_is_routed_by_its_own_name() {
    let rename = layer_fn(|inner: campanile::routing::Route| {
        inner.map_request(|message: Message| Message::task("b", message.payload().clone()))
    });
    let app = Router::new()
        .task("a", async || "a")
        .task("b", async || "b")
        .layer(rename);
    let app = app.task("outside", async || "outside");
    let reply = app.clone().oneshot(Message::task("a", "")).await.unwrap();
    assert_eq!(reply.payload, "b");
    let astray = layer_fn(|inner: campanile::routing::Route| {
        inner.map_request(|_: Message| Message::task("outside", ""))
    });
    let app = Router::new()
        .task("a", nothing)
        .layer(astray)
        .task("outside", nothing);
    let error = app.oneshot(Message::task("a", "")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "no route for task `outside`",
        "the layer does not cover this route"
    );
}

mod readiness {
    use super::*;
    fn is_ready(app: &mut Router) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        app.poll_ready(&mut cx).map(Result::unwrap).is_ready()
    }

    /// Holds the one permit of `app` in a call that does not end.
    async fn occupy(app: &Router) -> tokio::task::JoinHandle<()> {
        let app = app.clone();
        let call = tokio::spawn(async move {
            let _ = app.oneshot(Message::task("forever", "")).await;
        });
        tokio::task::yield_now().await;
        call
    }

    fn forever() -> Router {
        Router::new().task("forever", async || std::future::pending::<()>().await)
    }

    #[tokio::test]
    async fn is_the_outermost_layers_where_the_router_is_one_group() {
        let mut app = forever().layer(limit(1));
        assert!(is_ready(&mut app));
        // A reservation belongs to this service, not to its clones.
        assert!(!is_ready(&mut app.clone()));
        let app = forever().layer(limit(1));
        let call = occupy(&app).await;
        assert!(!is_ready(&mut app.clone()));
        call.abort();
        let _ = call.await;
        assert!(is_ready(&mut app.clone()));
    }

    #[tokio::test]
    async fn reaches_through_layers_that_wrap_nothing_but_each_other() {
        let log = Log::default();
        let app = forever()
            .layer(limit(1))
            .layer(note(&log, "a"))
            .layer(note(&log, "b"));
        let _call = occupy(&app).await;
        assert!(!is_ready(&mut app.clone()));
    }

    #[tokio::test]
    async fn is_always_there_where_routes_or_the_fallback_stand_outside_the_layer() {
        let app = forever().layer(limit(1)).fallback(nothing);
        let _call = occupy(&app).await;
        assert!(is_ready(&mut app.clone()));

        let app = forever().layer(limit(1)).task("outside", nothing);
        let _call = occupy(&app).await;
        assert!(is_ready(&mut app.clone()));
        app.oneshot(Message::task("outside", "")).await.unwrap();
    }

    #[tokio::test]
    async fn is_given_up_by_a_service_that_is_dropped() {
        let mut app = forever().layer(limit(1));
        assert!(is_ready(&mut app));
        let mut other = app.clone();
        assert!(!is_ready(&mut other));
        drop(app);
        assert!(is_ready(&mut other));
    }

    #[tokio::test]
    async fn is_given_up_by_a_call_that_is_dropped() {
        let mut app = forever().layer(limit(1));
        assert!(is_ready(&mut app));
        let call = app.call(Message::task("forever", ""));
        assert!(!is_ready(&mut app));
        drop(call);
        assert!(is_ready(&mut app));
    }

    #[tokio::test]
    async fn errors_reach_the_caller_and_the_next_call_starts_afresh() {
        #[derive(Clone)]
        struct Broken<S>(S, Arc<AtomicUsize>);
        impl<S: Service<Message, Error = BoxError>> Service<Message> for Broken<S> {
            type Response = S::Response;
            type Error = BoxError;
            type Future = S::Future;
            fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
                match self.1.fetch_add(1, Ordering::SeqCst) {
                    0 => Poll::Ready(Err("not ready".into())),
                    _ => self.0.poll_ready(cx),
                }
            }
            fn call(&mut self, message: Message) -> S::Future {
                self.0.call(message)
            }
        }
        let broken = layer_fn(|inner| Broken(inner, Arc::default()));
        let mut app = Router::new().task("a", nothing).layer(broken);
        let error = app.ready().await.map(drop).unwrap_err();
        assert_eq!(error.to_string(), "not ready");
        app.ready()
            .await
            .unwrap()
            .call(Message::task("a", ""))
            .await
            .unwrap();
    }
}
