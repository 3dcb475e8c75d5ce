//! A semaphore for each key.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

use crate::{key::Key, sync::lock};

/// A fixed number of permits for each key, granted in the order of the requests. An unused key
/// takes no memory.
pub(crate) struct KeyedPermits {
    permits_per_key: usize,
    semaphores: Mutex<HashMap<Key, KeySemaphore>>,
}

struct KeySemaphore {
    semaphore: Arc<Semaphore>,
    /// The number of [`KeyedPermit`]s of the key, acquired or waiting.
    users: usize,
}

impl KeyedPermits {
    /// Creates a semaphore with `permits_per_key` permits for each key.
    pub(crate) fn new(permits_per_key: usize) -> Arc<Self> {
        Arc::new(Self {
            permits_per_key,
            semaphores: Mutex::default(),
        })
    }

    /// Requests a permit. Returns `None` if `max_waiting` requests for the key are waiting already.
    pub(crate) fn request(self: &Arc<Self>, key: Key, max_waiting: usize) -> Option<KeyedPermit> {
        let mut semaphores = lock(&self.semaphores);
        let semaphore = match semaphores.get_mut(&key) {
            Some(entry) => {
                if entry.users >= self.permits_per_key.saturating_add(max_waiting) {
                    return None;
                }
                entry.users += 1;
                entry.semaphore.clone()
            }
            None => {
                let semaphore = Arc::new(Semaphore::new(self.permits_per_key));
                let entry = KeySemaphore {
                    semaphore: semaphore.clone(),
                    users: 1,
                };
                semaphores.insert(key.clone(), entry);
                semaphore
            }
        };
        drop(semaphores);
        Some(KeyedPermit {
            // This request does not overtake waiting requests: a released permit goes to the oldest
            // of them.
            permit: semaphore.clone().try_acquire_owned().ok(),
            semaphore: PollSemaphore::new(semaphore),
            keyed_permits: self.clone(),
            key,
        })
    }

    /// Returns the number of keys in use.
    pub(crate) fn keys(&self) -> usize {
        lock(&self.semaphores).len()
    }
}

impl fmt::Debug for KeyedPermits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedPermits")
            .field("permits", &self.permits_per_key)
            .field("keys", &self.keys())
            .finish()
    }
}

/// An acquired permit for a key, or a waiting request for a permit. Dropping it releases the permit
/// or cancels the request.
pub(crate) struct KeyedPermit {
    permit: Option<OwnedSemaphorePermit>,
    semaphore: PollSemaphore,
    keyed_permits: Arc<KeyedPermits>,
    key: Key,
}

impl KeyedPermit {
    /// Returns `true` if the permit has been acquired.
    pub(crate) fn is_acquired(&self) -> bool {
        self.permit.is_some()
    }

    /// Waits until the permit is acquired.
    pub(crate) fn poll_acquired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.permit.is_none() {
            let permit = ready!(self.semaphore.poll_acquire(cx));
            self.permit = Some(permit.expect("the semaphore is never closed"));
        }
        Poll::Ready(())
    }

    /// Returns the key of the permit.
    #[cfg(feature = "rate-limit")]
    pub(crate) fn key(&self) -> &Key {
        &self.key
    }
}

impl Drop for KeyedPermit {
    fn drop(&mut self) {
        let mut semaphores = lock(&self.keyed_permits.semaphores);
        if let Some(entry) = semaphores.get_mut(&self.key) {
            entry.users -= 1;
            if entry.users == 0 {
                semaphores.remove(&self.key);
            }
        }
    }
}
