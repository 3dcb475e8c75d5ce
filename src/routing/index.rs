//! Finds the routes of a message.

use std::collections::hash_map::Entry as MapEntry;

use foldhash::HashMap;

use super::fan_out;
use crate::{
    message::{ByKind, Kind, MatchedRoute, Message, Name, Parts},
    service::RouteFuture,
    transport::glob,
};

/// Describes a route: the kind of its messages, and their name or pattern.
///
/// All handlers of the same event name, or of the same pattern, share one route.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct RouteInfo {
    /// The kind of the messages.
    pub kind: Kind,
    /// The full name of the messages, or the pattern that their names match.
    pub name: Name,
    /// `true` if the name is a Redis glob pattern.
    pub is_pattern: bool,
    /// `true` if the messages are sharded events.
    pub is_sharded: bool,
}

impl RouteInfo {
    pub(super) fn named(kind: Kind, name: Name) -> Self {
        Self {
            kind,
            name,
            is_pattern: false,
            is_sharded: false,
        }
    }

    pub(super) fn pattern(pattern: Name) -> Self {
        Self {
            is_pattern: true,
            ..Self::named(Kind::Event, pattern)
        }
    }

    pub(super) fn sharded(name: Name) -> Self {
        Self {
            is_sharded: true,
            ..Self::named(Kind::Event, name)
        }
    }
}

/// Marks an event that a source delivered. The source makes one delivery for each subscription that
/// the event matches. So the router must call only the route of this delivery's subscription, even
/// if other routes match.
///
/// The mark is an extension of the message, because layers around the router keep extensions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FromSubscription;

/// Finds routes by kind and name. The index of a route is its position in `routes`.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    routes: Vec<RouteInfo>,
    /// The indexes of routes with an exact name.
    by_exact_name: ByKind<HashMap<Name, usize>>,
    /// The indexes of routes with a pattern.
    by_pattern: HashMap<Name, usize>,
    /// The indexes of routes for sharded events.
    by_sharded_name: HashMap<Name, usize>,
}

impl Index {
    pub(super) fn routes(&self) -> &[RouteInfo] {
        &self.routes
    }

    /// Adds a route if it is new. Returns its index, and `true` if it was added.
    pub(super) fn insert(&mut self, route: RouteInfo) -> (usize, bool) {
        let map = match (route.is_pattern, route.is_sharded) {
            (true, _) => &mut self.by_pattern,
            (false, true) => &mut self.by_sharded_name,
            (false, false) => &mut self.by_exact_name[route.kind],
        };
        match map.entry(route.name.clone()) {
            MapEntry::Occupied(known) => (*known.get(), false),
            MapEntry::Vacant(free) => {
                let index = self.routes.len();
                free.insert(index);
                self.routes.push(route);
                (index, true)
            }
        }
    }

    /// Returns the index of the route that has exactly the name of the message.
    fn find_exact(&self, message: &Message) -> Option<usize> {
        let map = match message.parts() {
            Parts {
                kind: Kind::Event,
                sharded: true,
                ..
            } => &self.by_sharded_name,
            parts => &self.by_exact_name[parts.kind],
        };
        map.get(message.name().as_str()).copied()
    }
}

/// Finds the routes of a message in a router whose service is built. The fallbacks are numbered
/// after the `n` routes: the fallback of `prefixes[i]` has the index `n + i`. `prefixes[0]` is the
/// empty prefix of the root.
#[derive(Debug)]
pub(super) struct Resolver {
    index: Index,
    prefixes: Vec<Name>,
    /// The position of each prefix in `prefixes`, except that of the root.
    by_prefix: HashMap<Name, usize>,
}

/// The indexes of the routes of a message.
enum RouteIndexes {
    /// One route or fallback.
    One(usize),
    /// Several routes of an event.
    Several(Vec<usize>),
}

impl Resolver {
    pub(super) fn new(index: Index, prefixes: Vec<Name>) -> Self {
        let by_prefix = prefixes.iter().cloned().zip(0..).skip(1).collect();
        Self {
            index,
            prefixes,
            by_prefix,
        }
    }

    fn routes(&self) -> &[RouteInfo] {
        self.index.routes()
    }

    /// Returns the number of routes and fallbacks.
    pub(super) fn len(&self) -> usize {
        self.routes().len() + self.prefixes.len()
    }

    /// Finds the routes of a message, and calls `send` with a copy of the message for each route.
    /// Each copy has its route as the matched route.
    pub(super) fn dispatch(
        &self,
        mut message: Message,
        mut send: impl FnMut(Message) -> RouteFuture,
    ) -> RouteFuture {
        match self.resolve(&mut message) {
            RouteIndexes::One(route) => {
                self.set_matched_route(&mut message, route);
                send(message)
            }
            RouteIndexes::Several(routes) => {
                let calls = routes.into_iter().map(|route| {
                    let mut message = message.clone();
                    self.set_matched_route(&mut message, route);
                    send(message)
                });
                fan_out::join(calls.collect())
            }
        }
    }

    /// Finds the routes of a message by kind and name.
    fn resolve(&self, message: &mut Message) -> RouteIndexes {
        if message.kind() == Kind::Event {
            // The mark is removed, because it holds only for the subscriptions of this router. A
            // router inside this router has other routes, and must match the event again.
            let extensions = &mut message.parts_mut().extensions;
            let is_from_subscription = extensions.remove::<FromSubscription>().is_some();
            // A pattern matches no sharded event.
            if !self.index.by_pattern.is_empty() && !message.parts().sharded {
                return self.resolve_event(message, is_from_subscription);
            }
        }
        let exact = self.index.find_exact(message);
        RouteIndexes::One(exact.unwrap_or_else(|| self.fallback_index(message.name())))
    }

    /// Finds the routes of an event:
    ///
    /// - If the event came from a subscription to one of this router's patterns: the route of that
    ///   pattern.
    /// - If the event came from a subscription to its name: the route of that name.
    /// - In all other cases: all routes whose name or pattern matches.
    fn resolve_event(&self, message: &Message, is_from_subscription: bool) -> RouteIndexes {
        let patterns = &self.index.by_pattern;
        let subscribed = message.parts().pattern.as_deref();
        if let Some(&route) = subscribed.and_then(|pattern| patterns.get(pattern)) {
            return RouteIndexes::One(route);
        }
        let exact = self.index.find_exact(message);
        if let (Some(route), true) = (exact, is_from_subscription) {
            return RouteIndexes::One(route);
        }
        let name = message.name().as_bytes();
        let matching = patterns
            .iter()
            .filter(|(pattern, _)| glob::matches(pattern.as_bytes(), name))
            .map(|(_, &route)| route);
        let mut routes: Vec<usize> = exact.into_iter().chain(matching).collect();
        match routes[..] {
            [] => RouteIndexes::One(self.fallback_index(message.name())),
            [route] => RouteIndexes::One(route),
            _ => {
                // Sorts the routes in the order in which they were added, because the map has no
                // order.
                routes.sort_unstable();
                RouteIndexes::Several(routes)
            }
        }
    }

    /// Returns the index of the fallback with the longest prefix of this name.
    fn fallback_index(&self, name: &str) -> usize {
        let root = self.routes().len();
        if self.by_prefix.is_empty() {
            return root;
        }
        let parents = name.rmatch_indices('.').map(|(dot, _)| &name[..dot]);
        let nearest = std::iter::once(name)
            .chain(parents)
            .find_map(|prefix| self.by_prefix.get(prefix));
        root + nearest.copied().unwrap_or(0)
    }

    /// Sets the matched route of the message.
    fn set_matched_route(&self, message: &mut Message, route: usize) {
        let routes = self.routes();
        let pattern = match routes.get(route) {
            Some(info) => &info.name,
            None => &self.prefixes[route - routes.len()],
        };
        message.parts_mut().matched_route = Some(MatchedRoute {
            pattern: pattern.clone(),
            index: route,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolver(routes: &[(&'static str, bool)]) -> Resolver {
        let mut index = Index::default();
        for &(name, is_pattern) in routes {
            index.insert(match is_pattern {
                true => RouteInfo::pattern(name.into()),
                false => RouteInfo::named(Kind::Event, name.into()),
            });
        }
        Resolver::new(index, vec![Name::default()])
    }

    fn resolved(resolver: &Resolver, message: &mut Message) -> Vec<usize> {
        match resolver.resolve(message) {
            RouteIndexes::One(route) => vec![route],
            RouteIndexes::Several(routes) => routes,
        }
    }

    fn delivered(pattern: Option<&str>) -> Message {
        let mut message = Message::event("a.b", "");
        message.parts_mut().pattern = pattern.map(Name::from);
        message.parts_mut().extensions.insert(FromSubscription);
        message
    }

    #[test]
    fn a_delivered_event_goes_only_to_the_route_of_its_subscription() {
        let resolver = resolver(&[("a.*", true), ("a.b", false), ("*", true)]);
        assert_eq!(resolved(&resolver, &mut delivered(Some("a.*"))), [0]);
        assert_eq!(resolved(&resolver, &mut delivered(None)), [1]);
        assert_eq!(resolved(&resolver, &mut delivered(Some("*"))), [2]);
        assert_eq!(
            resolved(&resolver, &mut Message::event("a.b", "")),
            [0, 1, 2]
        );
    }

    #[test]
    fn a_router_behind_another_matches_events_again() {
        let outer = resolver(&[("a.b", false), ("z*", true)]);
        let inner = resolver(&[("a.b", false), ("a*", true)]);
        let mut message = delivered(None);
        assert_eq!(resolved(&outer, &mut message), [0]);
        assert_eq!(resolved(&inner, &mut message), [0, 1]);
        let without_patterns = self::resolver(&[("a.b", false)]);
        let mut message = delivered(None);
        assert_eq!(resolved(&without_patterns, &mut message), [0]);
        assert_eq!(resolved(&inner, &mut message), [0, 1]);
        // The outer router subscribed by a pattern that the inner router does not have.
        assert_eq!(resolved(&inner, &mut delivered(Some("?.b"))), [0]);
        assert_eq!(
            resolved(&resolver(&[("a*", true)]), &mut delivered(Some("?.b"))),
            [0]
        );
    }
}
