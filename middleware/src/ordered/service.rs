//! The service, and its future.

use std::{
    fmt,
    task::{Context, Poll, ready},
};

use campanile::{BoxError, Message, Reply};
use tower::Service;

use super::{OrderedByKeyLayer, lines::Reserved, turn::InLine};
use crate::{
    gated::{Gated, gated_future, take_ready},
    key::KeyOf,
};

/// A service that handles the messages of a key one after the other. See the [module](super).
pub struct OrderedByKey<S, K> {
    inner: S,
    layer: OrderedByKeyLayer<K>,
    reserved: Option<Reserved>,
}

impl<S, K> OrderedByKey<S, K> {
    pub(super) fn new(inner: S, layer: OrderedByKeyLayer<K>) -> Self {
        Self {
            inner,
            layer,
            reserved: None,
        }
    }
}

/// A clone has no turn reserved.
impl<S: Clone, K: Clone> Clone for OrderedByKey<S, K> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.layer.clone())
    }
}

impl<S: fmt::Debug, K: fmt::Debug> fmt::Debug for OrderedByKey<S, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrderedByKey")
            .field("inner", &self.inner)
            .field("layer", &self.layer)
            .finish_non_exhaustive()
    }
}

impl<S, K> Service<Message> for OrderedByKey<S, K>
where
    S: Service<Message, Response = Reply, Error: Into<BoxError>> + Clone,
    K: KeyOf,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = OrderedByKeyFuture<S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        ready!(self.inner.poll_ready(cx)).map_err(Into::<BoxError>::into)?;
        // After the inner service, so that no turn is held while that is waited for.
        if self.reserved.is_none() {
            self.reserved = Some(self.layer.lines.reserve());
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, message: Message) -> Self::Future {
        let reserved = self.reserved.take();
        let reserved = reserved.expect("`poll_ready` must be called first");
        let ready = take_ready(&mut self.inner);
        let OrderedByKeyLayer { keys, rules, lines } = &self.layer;
        OrderedByKeyFuture(match keys.of(&message) {
            Err(rejection) => Gated::refused(rejection),
            Ok(None) => Gated::free(ready, message),
            Ok(Some(key)) => {
                let mut in_line = InLine::new(lines, *rules, reserved, key, &message);
                let service = match in_line.runs_now() {
                    true => ready,
                    // What is ready may hold what others could use meanwhile.
                    false => self.inner.clone(),
                };
                Gated::waiting(in_line, service, message)
            }
        })
    }
}

gated_future! {
    /// The future of [`OrderedByKey`].
    OrderedByKeyFuture, InLine
}
