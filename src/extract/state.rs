//! The state of a router.

use std::{
    convert::Infallible,
    ops::{Deref, DerefMut},
};

use super::FromMessageParts;
use crate::message::Parts;

/// An extractor of the router's state, or of a part of it.
///
/// The value is cloned for every message, so keep large values behind an `Arc`.
///
/// ```
/// use campanile::{Router, State, FromRef};
///
/// #[derive(Clone)]
/// struct Db;
///
/// #[derive(Clone)]
/// struct App {
///     db: Db,
/// }
///
/// impl FromRef<App> for Db {
///     fn from_ref(app: &App) -> Db {
///         app.db.clone()
///     }
/// }
///
/// async fn whole(State(app): State<App>) {
///     # let _ = app;
/// }
///
/// async fn part(State(db): State<Db>) {
///     # let _ = db;
/// }
///
/// let app: Router = Router::new().task("whole", whole).task("part", part).with_state(App { db: Db });
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct State<T>(pub T);

/// A part of a router's state, made from the whole state.
///
/// ```
/// use campanile::{FromRef, Router, State};
///
/// #[derive(Clone)]
/// struct Db;
///
/// #[derive(Clone)]
/// struct App {
///     db: Db,
/// }
///
/// impl FromRef<App> for Db {
///     fn from_ref(app: &App) -> Self {
///         app.db.clone()
///     }
/// }
///
/// let app = Router::new().task("orders.create", async |State(_): State<Db>| {});
/// let app: Router = app.with_state(App { db: Db });
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no part of the state `{T}`",
    label = "the router's state is `{T}`",
    note = "call `.with_state(..)` with a `{Self}`, or implement `FromRef<{T}>` for `{Self}`"
)]
pub trait FromRef<T> {
    /// Makes the part from the whole state.
    fn from_ref(whole: &T) -> Self;
}

impl<T: Clone> FromRef<T> for T {
    fn from_ref(whole: &T) -> T {
        whole.clone()
    }
}

impl<S, T> FromMessageParts<S> for State<T>
where
    S: Sync,
    T: FromRef<S>,
{
    type Rejection = Infallible;

    async fn from_message_parts(_: &mut Parts, state: &S) -> Result<Self, Infallible> {
        Ok(State(T::from_ref(state)))
    }
}

impl<T> Deref for State<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for State<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}
