//! The router and its methods. A router keeps its routes and layers in a [`Plan`].

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use tower::{Layer, Service};

use super::{
    RouteInfo,
    build::{Plan, handler_endpoint, service_endpoint},
    names::{EventRoute, RpcRoute, TaskRoute},
    tree::Endpoint,
};
use crate::{
    contract::{Description, EventName, Named, RpcName, TaskName},
    error::BoxError,
    handler::Handler,
    message::{Kind, Message, Name},
    reply::Reply,
    service::{Route, RouteFuture, Servable, SharedService},
    transport::{Interest, WorkerDescription},
};

/// Calls the handler for the kind and the name of each message. See the [module](super).
///
/// `S` is the state that the handlers need and do not have yet. [`with_state`](Self::with_state)
/// provides it. A `Router<()>` needs no state: it is a `tower::Service<Message>`, and can be
/// served, called and wrapped in layers.
///
/// A router is cheap to clone. Its service is built once, on first use, and shared by all clones.
/// Changing a clone makes another router with a separate service. See [*First
/// use*](super#first-use).
///
/// # Back-pressure
/// If one layer wraps the whole router, the router is ready when this layer is. So a limit in this
/// layer pauses the source. Without a layer around the whole router, the router is always ready,
/// and each call waits in its future for the layers around its route.
#[must_use = "a router does nothing until it is served or called"]
pub struct Router<S = ()> {
    plan: Arc<Plan<S>>,
    /// This clone's copy of the built service. It may hold a reservation between `poll_ready` and
    /// `call`.
    root: Option<Route>,
}

/// A clone starts without a reservation.
impl<S> Clone for Router<S> {
    fn clone(&self) -> Self {
        Self {
            plan: self.plan.clone(),
            root: None,
        }
    }
}

impl<S> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    /// Creates a router without routes: it answers every message with
    /// [`NotFound`](crate::NotFound).
    pub fn new() -> Self {
        Plan::new().into()
    }

    /// Adds a handler for the tasks of this name.
    ///
    /// # Panics
    /// When the name is empty, longer than [`Name::MAX_LEN`] or already routed.
    #[track_caller]
    pub fn task<H, T>(self, name: impl TaskRoute<T>, handler: H) -> Self
    where
        H: Handler<T, S>,
    {
        self.add_named(Kind::Task, name.named(), handler_endpoint(handler))
    }

    /// Adds a service for the tasks of this name. See [`task`](Self::task).
    ///
    /// # Panics
    /// As [`task`](Self::task) does.
    #[track_caller]
    pub fn task_service<V>(self, name: impl TaskName, service: V) -> Self
    where
        V: SharedService,
    {
        self.add_named(Kind::Task, name.named(), service_endpoint(service))
    }

    /// Adds a handler for the RPC requests of this name.
    ///
    /// # Panics
    /// When the name is empty, longer than [`Name::MAX_LEN`] or already routed.
    #[track_caller]
    pub fn rpc<H, T>(self, name: impl RpcRoute<H, T>, handler: H) -> Self
    where
        H: Handler<T, S>,
    {
        self.add_named(Kind::Rpc, name.named(), handler_endpoint(handler))
    }

    /// Adds a service for the RPC requests of this name. See [`rpc`](Self::rpc).
    ///
    /// # Panics
    /// As [`rpc`](Self::rpc) does.
    #[track_caller]
    pub fn rpc_service<V>(self, name: impl RpcName, service: V) -> Self
    where
        V: SharedService,
    {
        self.add_named(Kind::Rpc, name.named(), service_endpoint(service))
    }

    /// Adds a handler for the events of this name.
    ///
    /// An event may have several handlers. They run concurrently, and each runs to its end even if
    /// another fails. If any of them fail, the error is a [`FanOutError`](super::FanOutError).
    ///
    /// # Panics
    /// When the name is empty or longer than [`Name::MAX_LEN`].
    #[track_caller]
    pub fn event<H, T>(self, name: impl EventRoute<T>, handler: H) -> Self
    where
        H: Handler<T, S>,
    {
        self.add_named(Kind::Event, name.named(), handler_endpoint(handler))
    }

    /// Adds a service for the events of this name. See [`event`](Self::event).
    ///
    /// # Panics
    /// As [`event`](Self::event) does.
    #[track_caller]
    pub fn event_service<V>(self, name: impl EventName, service: V) -> Self
    where
        V: SharedService,
    {
        self.add_named(Kind::Event, name.named(), service_endpoint(service))
    }

    /// Adds a handler for the sharded events of this name: those that are
    /// [published as sharded](crate::client::Call::sharded).
    ///
    /// On a Redis Cluster, a sharded event stays within the shard of its name. Any other event is
    /// sent to all nodes. Redis 7.0 or newer is needed (`SSUBSCRIBE`). Sharded events and other
    /// events are separate: this handler receives only sharded events, and a handler of
    /// [`event`](Self::event) receives no sharded event. A pattern matches no sharded event.
    ///
    /// ```
    /// # async fn run() -> Result<(), campanile::Error> {
    /// use campanile::{Client, Router, transport::memory::Memory};
    ///
    /// let app: Router = Router::new()
    ///     .event_sharded("prices.eur", async |price: String| println!("{price}"));
    ///
    /// let client = Client::new(Memory::new());
    /// client.publish("prices.eur", "1.08").sharded().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Panics
    /// When the name is empty or longer than [`Name::MAX_LEN`].
    #[track_caller]
    pub fn event_sharded<H, T>(self, name: impl EventRoute<T>, handler: H) -> Self
    where
        H: Handler<T, S>,
    {
        self.add_sharded(name.named(), handler_endpoint(handler))
    }

    /// Adds a service for the sharded events of this name. See
    /// [`event_sharded`](Self::event_sharded).
    ///
    /// # Panics
    /// As [`event_sharded`](Self::event_sharded) does.
    #[track_caller]
    pub fn event_sharded_service<V>(self, name: impl EventName, service: V) -> Self
    where
        V: SharedService,
    {
        self.add_sharded(name.named(), service_endpoint(service))
    }

    /// Adds a handler for the events whose names match a Redis glob pattern: `*`, `?`, `[abc]`,
    /// `[^a]`, `[a-z]`, and `\` to escape the next character.
    ///
    /// An event that matches several subscriptions is handled once for each of them, because Redis
    /// delivers the event once for each subscription.
    ///
    /// # Panics
    /// When the pattern is empty or longer than [`Name::MAX_LEN`].
    #[track_caller]
    pub fn event_pattern<H, T>(self, pattern: impl Into<Name>, handler: H) -> Self
    where
        H: Handler<T, S>,
    {
        self.add(
            RouteInfo::pattern(pattern.into()),
            handler_endpoint(handler),
        )
    }

    /// Adds a service for the events whose names match a Redis glob pattern. See
    /// [`event_pattern`](Self::event_pattern).
    ///
    /// # Panics
    /// As [`event_pattern`](Self::event_pattern) does.
    #[track_caller]
    pub fn event_pattern_service<V>(self, pattern: impl Into<Name>, service: V) -> Self
    where
        V: SharedService,
    {
        self.add(
            RouteInfo::pattern(pattern.into()),
            service_endpoint(service),
        )
    }

    /// Adds a handler for every message that has no route.
    ///
    /// # Panics
    /// When the router has a fallback already.
    #[track_caller]
    pub fn fallback<H, T>(self, handler: H) -> Self
    where
        H: Handler<T, S>,
    {
        self.set_fallback(handler_endpoint(handler))
    }

    /// Adds a service for every message that has no route.
    ///
    /// # Panics
    /// When the router has a fallback already.
    #[track_caller]
    pub fn fallback_service<V>(self, service: V) -> Self
    where
        V: SharedService,
    {
        self.set_fallback(service_endpoint(service))
    }

    /// Adds the routes of another router with a prefix and a dot before their names: `create`
    /// nested under `orders` becomes `orders.create`. With an empty prefix the names stay as they
    /// are.
    ///
    /// Handlers see the whole name. The other router's layers wrap only its own routes. The other
    /// router's fallback, if it has one, handles the messages that have no route and whose names
    /// are below the prefix. If a nested name is a pattern, glob characters in the prefix are
    /// escaped.
    ///
    /// # Panics
    /// When a name becomes longer than [`Name::MAX_LEN`] or is already routed, or when both routers
    /// have a fallback for the same prefix.
    #[track_caller]
    pub fn nest(self, prefix: impl Into<Name>, router: Router<S>) -> Self {
        self.absorb(&prefix.into(), router)
    }

    /// Adds the routes of another router without changing their names. The layers of each router
    /// wrap only its own routes.
    ///
    /// # Panics
    /// When both routers have a route for the same task or request, or a fallback for the same
    /// prefix.
    #[track_caller]
    pub fn merge(self, router: Router<S>) -> Self {
        self.absorb(&Name::default(), router)
    }

    /// Adds a layer around all routes and fallbacks that were added before.
    ///
    /// The layer wraps these routes as one service, and is applied once, when the router is first
    /// used. So a limit of ten is shared by all of these routes, and by all clones of the router.
    /// The layer does not wrap routes that are added later. The layer that is added last is the
    /// outermost.
    pub fn layer<L>(self, layer: L) -> Self
    where
        L: Layer<Route> + Send + Sync + 'static,
        L::Service: SharedService,
    {
        let mut plan = Plan::unshared(self.plan);
        plan.push_layer(layer, true);
        plan.into()
    }

    /// Adds a layer around all routes that were added before, but not around the fallbacks.
    /// Messages without a route do not reach the layer.
    ///
    /// # Panics
    /// When there is no route yet.
    #[track_caller]
    pub fn route_layer<L>(self, layer: L) -> Self
    where
        L: Layer<Route> + Send + Sync + 'static,
        L::Service: SharedService,
    {
        assert!(
            !self.routes().is_empty(),
            "a `route_layer` before any route does nothing: add it after the routes it is for"
        );
        let mut plan = Plan::unshared(self.plan);
        plan.push_layer(layer, false);
        plan.into()
    }

    /// Provides the state that the handlers need.
    ///
    /// The compiler infers `S2`, the state of the returned router. `S2` is `()` if that router is
    /// served or called. If that router is nested in another, `S2` is the state of the other
    /// router.
    ///
    /// ```
    /// use campanile::{Router, State};
    ///
    /// async fn count(State(orders): State<Vec<u64>>) -> String {
    ///     orders.len().to_string()
    /// }
    ///
    /// let app: Router = Router::new().rpc("orders.count", count).with_state(vec![7, 8]);
    /// ```
    pub fn with_state<S2>(self, state: S) -> Router<S2> {
        Plan::unshared(self.plan).with_state(state).into()
    }

    #[track_caller]
    fn add_named(self, kind: Kind, name: Named, endpoint: Endpoint<S>) -> Self {
        self.add(
            RouteInfo::named(kind, name.name.clone()),
            endpoint.with_name(name),
        )
    }

    #[track_caller]
    fn add_sharded(self, name: Named, endpoint: Endpoint<S>) -> Self {
        self.add(
            RouteInfo::sharded(name.name.clone()),
            endpoint.with_name(name),
        )
    }

    #[track_caller]
    fn add(self, route: RouteInfo, endpoint: Endpoint<S>) -> Self {
        let mut plan = Plan::unshared(self.plan);
        plan.insert(route, [endpoint]);
        plan.into()
    }

    #[track_caller]
    fn set_fallback(self, endpoint: Endpoint<S>) -> Self {
        let mut plan = Plan::unshared(self.plan);
        plan.set_fallback(Name::default(), endpoint);
        plan.into()
    }

    #[track_caller]
    fn absorb(self, prefix: &Name, router: Router<S>) -> Self {
        let mut plan = Plan::unshared(self.plan);
        plan.absorb(prefix, Plan::unshared(router.plan));
        plan.into()
    }
}

impl<S> Router<S> {
    /// Returns the routes, in the order in which they were added.
    pub fn routes(&self) -> &[RouteInfo] {
        self.plan.routes()
    }

    /// Describes the routes, with the types of the [constants](crate::contract) that name them.
    /// Fallbacks are not described.
    ///
    /// ```
    /// use campanile::{Json, Router, contract::Task};
    ///
    /// const ADD: Task<u64> = Task::new("add").about("Adds to the total.");
    ///
    /// let app: Router = Router::new().task(ADD, async |Json(n): Json<u64>| println!("{n}"));
    /// let description = app.describe();
    /// assert_eq!(description.routes[0].payload.as_ref().unwrap().name, "u64");
    /// ```
    pub fn describe(&self) -> Description {
        self.plan.describe()
    }

    /// Returns the messages that this router wants from a source. These are the events of its
    /// routes. If the router has a fallback, or a route for tasks or requests, the router also wants
    /// the tasks and requests of the stream.
    pub fn interest(&self) -> Interest {
        self.plan.interest()
    }
}

impl<S> From<Plan<S>> for Router<S> {
    fn from(plan: Plan<S>) -> Self {
        Self {
            plan: Arc::new(plan),
            root: None,
        }
    }
}

impl<S> Default for Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    fn default() -> Self {
        Self::new()
    }
}

impl<S> fmt::Debug for Router<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("routes", &self.routes())
            .field("layers", &self.plan.layer_count())
            .finish_non_exhaustive()
    }
}

impl Service<Message> for Router {
    type Response = Reply;
    type Error = BoxError;
    type Future = RouteFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let root = &self.plan.get_or_build().root;
        self.root.get_or_insert_with(|| root.clone()).poll_ready(cx)
    }

    fn call(&mut self, message: Message) -> RouteFuture {
        let built = self.plan.get_or_build();
        let root = self.root.get_or_insert_with(|| built.root.clone());
        // An event may match several routes. The first call of `root` uses the reservation, and
        // each further call waits in its future until the service is ready.
        built
            .resolver
            .dispatch(message, |message| root.call(message))
    }
}

impl Servable for Router {
    /// Builds the service now, so that a panic in a layer happens before the source is opened.
    fn interest(&self) -> Interest {
        self.plan.get_or_build();
        self.plan.interest()
    }

    fn route_names(&self) -> Vec<String> {
        let routes = self.plan.routes().iter();
        let shown = |route: &RouteInfo| match route.is_sharded {
            true => format!("sharded event {}", route.name),
            false => format!("{} {}", route.kind, route.name),
        };
        routes.map(shown).collect()
    }

    /// Returns the description as JSON. If it is longer than [`WorkerDescription::MAX_LEN`], leaves
    /// out its schemas. Returns `None` if it is too long even without the schemas.
    fn description(&self) -> Option<String> {
        let fits = |json: &String| json.len() <= WorkerDescription::MAX_LEN;
        let description = self.describe();
        let whole = description.to_json().ok().filter(fits);
        whole.or_else(|| description.without_schemas().to_json().ok().filter(fits))
    }
}
