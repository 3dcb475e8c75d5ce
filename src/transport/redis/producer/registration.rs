//! Registers streams before messages are sent to them, for workers that serve the registry.

use std::{sync::Mutex, time::Duration};

use foldhash::HashMap;
use tokio::time::Instant;

use crate::{
    error::Error,
    message::Name,
    sync::lock,
    transport::redis::{Redis, keys, namespace::Namespace, scripts},
};

/// The time after which a registration expires, so that the sender registers the stream again.
/// Workers keep a stream for three times as long after its registration, so no message is sent to a
/// stream that workers have dropped.
const REGISTERED_FOR: Duration = Duration::from_secs(30);
/// When this many registrations are stored, those that have expired are removed.
const CLEAN_UP_AT: usize = 1024;

/// A registry with its namespace, and a stream.
type Registration = (Namespace, Name, Name);

/// The registrations by a handle and its clones.
#[derive(Debug, Default)]
pub(in crate::transport::redis) struct Registrations(Mutex<HashMap<Registration, Instant>>);

impl Registrations {
    fn is_recent(&self, key: &Registration) -> bool {
        let times = lock(&self.0);
        times
            .get(key)
            .is_some_and(|at| at.elapsed() < REGISTERED_FOR)
    }

    fn note(&self, key: Registration, at: Instant) {
        let mut times = lock(&self.0);
        if times.len() >= CLEAN_UP_AT {
            times.retain(|_, at| at.elapsed() < REGISTERED_FOR);
        }
        times.insert(key, at);
    }
}

impl Redis {
    /// Returns a future that registers a stream. `None` if this handle has no registry, or if the
    /// last registration of the stream has not expired.
    pub(in crate::transport::redis) fn registration(
        &self,
        stream: &Name,
    ) -> Option<impl Future<Output = Result<(), Error>> + Send + 'static + use<>> {
        let registry = self.settings.registry.as_ref()?;
        let namespace = self.options.namespace.clone();
        let key = (namespace, registry.clone(), stream.clone());
        if self.shared.registrations.is_recent(&key) {
            return None;
        }
        let shared = self.shared.clone();
        Some(async move {
            let at = Instant::now();
            let (namespace, registry, stream) = &key;
            let keys = [&*keys::registry(namespace, registry)];
            let args = |cmd: &mut redis::Cmd| {
                cmd.arg(stream.as_str());
            };
            // After an unknown outcome the script runs again. A second registration is harmless.
            let pipeline = shared.pipeline.for_key(keys[0]);
            let registered = pipeline.script_until_known(&scripts::REGISTER, &keys, args);
            registered.await?;
            shared.registrations.note(key, at);
            Ok(())
        })
    }
}
