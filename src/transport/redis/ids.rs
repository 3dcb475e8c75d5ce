//! Random ids.

use uuid::Uuid;

/// Returns a random UUID.
#[cfg(not(test))]
pub(super) fn random_id() -> Uuid {
    Uuid::new_v4()
}

/// Returns a UUID from this thread's seeded generator, so that a simulation can be repeated.
#[cfg(test)]
pub(super) fn random_id() -> Uuid {
    uuid::Builder::from_random_bytes(fastrand::u128(..).to_be_bytes()).into_uuid()
}
