//! The service of the ordering layer, and its future.

use std::{
    fmt,
    task::{Context, Poll, ready},
};

use campanile::{BoxError, Message, MessageService, Reply};
use tower::Service;

use super::{OrderedByKeyLayer, queued::QueuedMessage, queues::ReservedTurn};
use crate::{
    gated::{Gated, gated_future, take_ready},
    key::KeyOf,
};

/// A service that handles messages with the same key one after the other. See the [module](super).
pub struct OrderedByKey<S, K> {
    inner: S,
    layer: OrderedByKeyLayer<K>,
    reserved: Option<ReservedTurn>,
}

impl<S, K: KeyOf> OrderedByKey<S, K> {
    /// Wraps a service, as [`OrderedByKeyLayer::new`] does. Clones share the order.
    pub fn new(inner: S, key: K) -> Self {
        Self::with_layer(inner, OrderedByKeyLayer::new(key))
    }
}

inner_accessors!(OrderedByKey<S, K>);

impl<S, K> OrderedByKey<S, K> {
    pub(super) fn with_layer(inner: S, layer: OrderedByKeyLayer<K>) -> Self {
        Self {
            inner,
            layer,
            reserved: None,
        }
    }
}

/// A clone has no reserved turn.
impl<S: Clone, K: Clone> Clone for OrderedByKey<S, K> {
    fn clone(&self) -> Self {
        Self::with_layer(self.inner.clone(), self.layer.clone())
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
    S: MessageService + Clone,
    K: KeyOf,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = OrderedByKeyFuture<S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        ready!(self.inner.poll_ready(cx)).map_err(Into::<BoxError>::into)?;
        // Reserved only once the inner service is ready, because all later messages wait for this
        // turn.
        if self.reserved.is_none() {
            self.reserved = Some(self.layer.queues.reserve());
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, message: Message) -> Self::Future {
        let reserved = self.reserved.take();
        let reserved = reserved.expect("`poll_ready` is called before `call`");
        let ready = take_ready(&mut self.inner);
        let OrderedByKeyLayer {
            keys,
            config,
            queues,
        } = &self.layer;
        OrderedByKeyFuture(match keys.of(&message) {
            Err(rejection) => Gated::refused(rejection),
            Ok(None) => Gated::admitted(ready, message),
            Ok(Some(key)) => {
                let mut queued = QueuedMessage::new(queues, *config, reserved, key, &message);
                let service = match queued.try_start() {
                    true => ready,
                    // Drops `ready`, so that another message can use the reservation of `ready`
                    // during the wait.
                    false => self.inner.clone(),
                };
                Gated::waiting(queued, service, message)
            }
        })
    }
}

gated_future! {
    /// The future of [`OrderedByKey`].
    OrderedByKeyFuture, QueuedMessage
}
