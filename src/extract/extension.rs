//! Values that layers add to a message for its handler.

use std::{
    any::type_name,
    convert::Infallible,
    ops::{Deref, DerefMut},
    task::{Context, Poll},
};

use tower::{Layer, Service};

use super::{FromMessageParts, OptionalFromMessageParts};
use crate::{
    error::Rejection,
    message::{Message, Parts},
};

/// An extractor of a value from the message's extensions, and a layer that adds a value to them.
///
/// Layers use extensions to hand a value about the message to the handler. If no layer has added
/// the value, the extractor rejects the message with an [ordinary](Rejection::ordinary) rejection.
/// Prefer [`State`](super::State) for values that are the same for all messages: the compiler
/// checks that they are provided.
///
/// ```
/// use campanile::{Extension, Router};
///
/// #[derive(Clone)]
/// struct Region(&'static str);
///
/// async fn create(Extension(region): Extension<Region>) {
///     assert_eq!(region.0, "eu");
/// }
///
/// let app: Router = Router::new().task("create", create).layer(Extension(Region("eu")));
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Extension<T>(pub T);

impl<S, T> FromMessageParts<S> for Extension<T>
where
    S: Sync,
    T: Clone + Send + Sync + 'static,
{
    type Rejection = Rejection;

    async fn from_message_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        parts
            .extensions
            .get()
            .cloned()
            .map(Extension)
            .ok_or_else(|| {
                let missing = type_name::<T>();
                Rejection::ordinary(format!("no layer added the extension `{missing}`"))
            })
    }
}

impl<S, T> OptionalFromMessageParts<S> for Extension<T>
where
    S: Sync,
    T: Clone + Send + Sync + 'static,
{
    type Rejection = Infallible;

    async fn from_message_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(parts.extensions.get().cloned().map(Extension))
    }
}

impl<T> Deref for Extension<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Extension<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<S, T: Clone> Layer<S> for Extension<T> {
    type Service = AddExtension<S, T>;

    fn layer(&self, inner: S) -> Self::Service {
        AddExtension {
            inner,
            value: self.0.clone(),
        }
    }
}

/// Adds a value to the extensions of every message. The service of the layer [`Extension`].
#[derive(Debug, Clone, Copy)]
pub struct AddExtension<S, T> {
    inner: S,
    value: T,
}

impl<S, T> Service<Message> for AddExtension<S, T>
where
    S: Service<Message>,
    T: Clone + Send + Sync + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut message: Message) -> S::Future {
        message.extensions_mut().insert(self.value.clone());
        self.inner.call(message)
    }
}
