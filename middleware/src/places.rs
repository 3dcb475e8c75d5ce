//! So many places for each key, given out in the order in which they were asked for.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

use crate::{key::Key, sync::lock};

/// Places by key. A key that nobody uses takes no memory.
pub(crate) struct Places {
    permits: usize,
    lines: Mutex<HashMap<Key, Line>>,
}

struct Line {
    semaphore: Arc<Semaphore>,
    /// How many hold a place or wait for one.
    users: usize,
}

impl Places {
    /// So many for each key.
    pub(crate) fn new(permits: usize) -> Arc<Self> {
        Arc::new(Self {
            permits,
            lines: Mutex::default(),
        })
    }

    /// A place, or one in the line for it; `None` where so many are waiting already.
    pub(crate) fn enter(self: &Arc<Self>, key: Key, most_waiting: usize) -> Option<Place> {
        let mut lines = lock(&self.lines);
        let semaphore = match lines.get_mut(&key) {
            Some(line) => {
                if line.users >= self.permits.saturating_add(most_waiting) {
                    return None;
                }
                line.users += 1;
                line.semaphore.clone()
            }
            None => {
                let semaphore = Arc::new(Semaphore::new(self.permits));
                let line = Line {
                    semaphore: semaphore.clone(),
                    users: 1,
                };
                lines.insert(key.clone(), line);
                semaphore
            }
        };
        drop(lines);
        Some(Place {
            // A permit that is given back goes to who waits first, so this overtakes nobody.
            permit: semaphore.clone().try_acquire_owned().ok(),
            semaphore: PollSemaphore::new(semaphore),
            places: self.clone(),
            key,
        })
    }

    /// How many keys somebody uses.
    pub(crate) fn keys(&self) -> usize {
        lock(&self.lines).len()
    }
}

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Places")
            .field("permits", &self.permits)
            .field("keys", &self.keys())
            .finish()
    }
}

/// A place for a key, or the wait for one. Dropping it frees it.
pub(crate) struct Place {
    permit: Option<OwnedSemaphorePermit>,
    semaphore: PollSemaphore,
    places: Arc<Places>,
    key: Key,
}

impl Place {
    /// Whether the wait is over.
    pub(crate) fn is_held(&self) -> bool {
        self.permit.is_some()
    }

    /// Ready when the place is held.
    pub(crate) fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.permit.is_none() {
            let permit = ready!(self.semaphore.poll_acquire(cx));
            self.permit = Some(permit.expect("it is never closed"));
        }
        Poll::Ready(())
    }

    /// Whose place it is.
    #[cfg(feature = "rate-limit")]
    pub(crate) fn key(&self) -> &Key {
        &self.key
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lines = lock(&self.places.lines);
        if let Some(line) = lines.get_mut(&self.key) {
            line.users -= 1;
            if line.users == 0 {
                lines.remove(&self.key);
            }
        }
    }
}
