//! The registries, in which senders register the streams that they use.

use std::sync::{Arc, Mutex, Weak};

use foldhash::{HashMap, HashSet};
use tokio::sync::Notify;

use crate::{message::Name, sync::lock};

/// The registries of a broker, by name.
#[derive(Debug, Default)]
pub(super) struct Registries(Mutex<HashMap<Name, Registry>>);

#[derive(Debug, Default)]
struct Registry {
    /// The streams in the order of their registration. They are never removed, because an empty
    /// stream costs a worker of this transport almost nothing.
    streams: Vec<Name>,
    /// The same streams, for a fast lookup.
    known: HashSet<Name>,
    /// The workers to wake when a stream is registered.
    listeners: Vec<Weak<Notify>>,
}

impl Registries {
    /// Registers a stream, and wakes the workers that serve the registry.
    pub(super) fn register(&self, registry: &Name, stream: &Name) {
        let mut registries = lock(&self.0);
        let registry = registries.entry(registry.clone()).or_default();
        if !registry.known.contains(stream) {
            registry.known.insert(stream.clone());
            registry.streams.push(stream.clone());
            registry.listeners.retain(|listener| {
                let listener = listener.upgrade();
                listener.inspect(|it| it.notify_one()).is_some()
            });
        }
    }

    /// Adds a worker to wake when a stream is registered.
    pub(super) fn listen(&self, registry: &Name, wake: &Arc<Notify>) {
        let mut registries = lock(&self.0);
        let registry = registries.entry(registry.clone()).or_default();
        registry.listeners.push(Arc::downgrade(wake));
    }

    /// Returns the registered streams after the first `count`.
    pub(super) fn after(&self, registry: &Name, count: usize) -> Vec<Name> {
        let registries = lock(&self.0);
        let streams = registries.get(registry).map(|it| &it.streams[..]);
        streams.unwrap_or_default()[count..].to_vec()
    }
}
