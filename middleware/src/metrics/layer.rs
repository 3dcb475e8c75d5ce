//! The layer: on which side it is, and what its labels say.

use std::{fmt, sync::Arc};

use campanile::Name;
use tower::Layer;

use super::{
    Metrics,
    series::{Labels, Table},
};
use crate::conventions::{self, Side};

/// Makes [`Metrics`] services, which count together. See the [module](super).
#[derive(Clone)]
pub struct MetricsLayer {
    table: Arc<Table>,
}

impl MetricsLayer {
    /// For what is served: a router or a handler.
    pub fn new() -> Self {
        Self::on(Side::Serving)
    }

    /// For what is called: the sending half of a transport.
    pub fn new_for_client() -> Self {
        Self::on(Side::Client)
    }

    fn on(side: Side) -> Self {
        let labels = Labels {
            side,
            system: Name::from_static(conventions::SYSTEM),
            group: None,
        };
        Self::with(labels, 256)
    }

    // What was counted under other labels is no part of this layer's.
    fn with(labels: Labels, most: usize) -> Self {
        Self {
            table: Arc::new(Table::new(labels, most)),
        }
    }

    /// `messaging.system`: what the messages travel on. `redis` unless set.
    #[must_use]
    pub fn system(self, system: impl Into<Name>) -> Self {
        let mut labels = self.table.labels.clone();
        labels.system = system.into();
        Self::with(labels, self.table.most)
    }

    /// `messaging.consumer.group.name`: the group of the transport that is served. No such label unless
    /// set.
    #[must_use]
    pub fn group(self, group: impl Into<Name>) -> Self {
        let mut labels = self.table.labels.clone();
        labels.group = Some(group.into());
        Self::with(labels, self.table.most)
    }

    /// How many destinations are told apart for each kind of message; what comes after those that came first is
    /// `_OTHER`. 256 unless set.
    #[must_use]
    pub fn max_destinations(self, most: usize) -> Self {
        Self::with(self.table.labels.clone(), most)
    }
}

/// As [`MetricsLayer::new`].
impl Default for MetricsLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for MetricsLayer {
    type Service = Metrics<S>;

    fn layer(&self, inner: S) -> Metrics<S> {
        Metrics::new(inner, Arc::clone(&self.table))
    }
}

impl fmt::Debug for MetricsLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MetricsLayer").field(&self.table).finish()
    }
}
