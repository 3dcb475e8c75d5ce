//! The routes of a gateway.

use std::{collections::HashMap, sync::Arc};

use http::{HeaderValue, Method};

use super::super::names::canonical_path;
use crate::message::{Kind, Name};

/// The kind and the name of the messages that are made from the requests of one method and path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GatewayRoute {
    pub(super) kind: Kind,
    pub(super) name: Name,
    /// The content types that the route accepts. If `None`, only form types are refused, unless the
    /// gateway accepts them.
    pub(super) types: Option<Arc<[String]>>,
}

/// The reason why a request has no route.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoRoute {
    /// The path has no route.
    Path,
    /// The path has no route for the method. The value of the `Allow` header lists the methods of
    /// the path.
    Method(HeaderValue),
    /// The method of the request is `OPTIONS`. The value of the `Allow` header lists the methods of
    /// the path.
    Options(HeaderValue),
}

/// The routes of each path.
#[derive(Debug, Clone, Default)]
pub(super) struct Routes(HashMap<String, Vec<(Method, GatewayRoute)>>);

impl Routes {
    #[track_caller]
    pub(super) fn add(&mut self, method: Method, path: &str, kind: Kind, name: Name) {
        if let Some(fault) = name.fault() {
            panic!("{fault}");
        }
        assert!(
            path.starts_with('/'),
            "a path begins with a slash: {path:?}"
        );
        let path_routes = self.0.entry(canonical_path(path).into_owned()).or_default();
        assert!(
            path_routes.iter().all(|(other, _)| *other != method),
            "{method} {path} is routed already"
        );
        let types = None;
        path_routes.push((method, GatewayRoute { kind, name, types }));
    }

    /// Sets the content types that the routes to this name accept.
    #[track_caller]
    pub(super) fn set_types(&mut self, name: &Name, types: &Arc<[String]>) {
        let routes = self.0.values_mut().flatten().map(|(_, route)| route);
        let mut routes = routes.filter(|route| route.name == *name).peekable();
        assert!(
            routes.peek().is_some(),
            "add the route before its types: the gateway has none to `{name}`"
        );
        routes.for_each(|route| route.types = Some(Arc::clone(types)));
    }

    pub(super) fn find(&self, method: &Method, path: &str) -> Result<&GatewayRoute, NoRoute> {
        let path_routes = self.0.get(&*canonical_path(path)).ok_or(NoRoute::Path)?;
        let route_of = |method: &Method| {
            let found = path_routes.iter().find(|(known, _)| known == method);
            found.map(|(_, route)| route)
        };
        // Without a `HEAD` route, `HEAD` takes the `GET` route. `Responder` removes the body of the
        // response.
        let get_route = || route_of(&Method::GET).filter(|_| *method == Method::HEAD);
        if let Some(route) = route_of(method).or_else(get_route) {
            return Ok(route);
        }
        let mut methods: Vec<_> = path_routes
            .iter()
            .map(|(known, _)| known.as_str())
            .collect();
        if route_of(&Method::GET).is_some() && route_of(&Method::HEAD).is_none() {
            methods.push("HEAD");
        }
        if route_of(&Method::OPTIONS).is_none() {
            methods.push("OPTIONS");
        }
        let allow = HeaderValue::from_str(&methods.join(", ")).expect("methods are tokens");
        Err(match *method {
            Method::OPTIONS => NoRoute::Options(allow),
            _ => NoRoute::Method(allow),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_a_route_for_each_method_and_no_other() {
        let mut routes = Routes::default();
        routes.add(Method::GET, "/users", Kind::Rpc, "user.list".into());
        routes.add(Method::POST, "/users", Kind::Task, "user.create".into());
        assert_eq!(
            routes.find(&Method::GET, "/users").unwrap().name,
            "user.list"
        );
        let found = routes.find(&Method::POST, "/us%65rs").unwrap();
        assert_eq!((found.kind, &*found.name), (Kind::Task, "user.create"));
        for path in [
            "",
            "/",
            "/users/",
            "//users",
            "/Users",
            "/users/x",
            "/user.list",
        ] {
            assert_eq!(
                routes.find(&Method::GET, path),
                Err(NoRoute::Path),
                "{path}"
            );
        }
        let allow = HeaderValue::from_static("GET, POST, HEAD, OPTIONS");
        assert_eq!(
            routes.find(&Method::PUT, "/users"),
            Err(NoRoute::Method(allow.clone()))
        );
        assert_eq!(
            routes.find(&Method::OPTIONS, "/users"),
            Err(NoRoute::Options(allow))
        );
    }
}
