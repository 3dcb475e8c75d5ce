//! A handler in a layer.

use std::{fmt, marker::PhantomData};

use tower::Layer;

use super::Handler;
use crate::service::SharedService;

/// A handler in a layer. Made by [`Handler::layer`].
pub struct Layered<L, H, T, S> {
    layer: L,
    handler: H,
    marker: PhantomData<fn(S) -> T>,
}

impl<L, H, T, S> Layered<L, H, T, S> {
    pub(super) fn new(layer: L, handler: H) -> Self {
        Self {
            layer,
            handler,
            marker: PhantomData,
        }
    }
}

// By hand, since a derive would ask for `T: Clone` and `S: Clone`.
impl<L: Clone, H: Clone, T, S> Clone for Layered<L, H, T, S> {
    fn clone(&self) -> Self {
        Self::new(self.layer.clone(), self.handler.clone())
    }
}

impl<L: fmt::Debug, H, T, S> fmt::Debug for Layered<L, H, T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layered")
            .field("layer", &self.layer)
            .finish_non_exhaustive()
    }
}

/// Marks the arguments of a handler in a layer, so that its implementation of [`Handler`] cannot
/// overlap with those for functions.
#[derive(Debug)]
pub struct WithinLayer<T>(PhantomData<fn() -> T>);

// Otherwise the compiler lists it as a hint whenever a function is no handler.
#[diagnostic::do_not_recommend]
impl<L, H, T, S> Handler<WithinLayer<T>, S> for Layered<L, H, T, S>
where
    H: Handler<T, S>,
    L: Layer<H::Service> + Clone + Send + Sync + 'static,
    L::Service: SharedService,
    T: 'static,
    S: 'static,
{
    type Service = L::Service;

    fn at_once(&self) -> usize {
        self.handler.at_once()
    }

    fn with_state(self, state: S) -> L::Service {
        self.layer.layer(self.handler.with_state(state))
    }
}
