//! Unique tasks.

use super::UniqueKey;

/// The unique key of a task, and the rule for a conflict: see
/// [`Call::unique`](crate::client::Call::unique).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Unique {
    /// The key.
    pub key: UniqueKey,
    /// The rule if another task holds the key.
    pub on_conflict: OnConflict,
}

/// The rule for a new task if another task holds its [unique](Unique) key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum OnConflict {
    /// The other task is kept, and the new one is not stored. The receipt has the id of the other
    /// task, and [is a duplicate](crate::Receipt::is_duplicate).
    #[default]
    Keep,
    /// If the other task is delayed and not due yet, it is cancelled, and the new task is stored.
    /// If the other task is due, waiting or running, it is kept, and the new task is not stored, as
    /// with [`Keep`](OnConflict::Keep).
    ///
    /// With a delay, this rule is a debounce: of several tasks in quick succession, only the last
    /// one runs.
    Replace,
    /// The other task is kept, and the call fails with a
    /// [duplicate](crate::Error::is_duplicate) error.
    Refuse,
}

impl Unique {
    /// Creates a key with the rule [`OnConflict::Keep`].
    pub fn new(key: impl Into<UniqueKey>) -> Self {
        Self {
            key: key.into(),
            on_conflict: OnConflict::Keep,
        }
    }

    /// Sets the rule [`OnConflict::Replace`].
    #[must_use]
    pub fn replace(mut self) -> Self {
        self.on_conflict = OnConflict::Replace;
        self
    }

    /// Sets the rule [`OnConflict::Refuse`].
    #[must_use]
    pub fn refuse(mut self) -> Self {
        self.on_conflict = OnConflict::Refuse;
        self
    }
}

impl<K: Into<UniqueKey>> From<K> for Unique {
    fn from(key: K) -> Self {
        Self::new(key)
    }
}
