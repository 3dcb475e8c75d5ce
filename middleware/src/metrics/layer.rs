//! The metrics layer and its labels.

use std::{fmt, sync::Arc};

use campanile::Name;

use super::series::{LayerLabels, SeriesTable};
use crate::conventions::{self, Side};

/// Makes [`Metrics`](super::Metrics) services. See the [module](super).
///
/// All services of a layer and its clones share one set of metric handles.
#[derive(Clone)]
pub struct MetricsLayer {
    pub(super) table: Arc<SeriesTable>,
}

impl MetricsLayer {
    /// Creates a layer for a router or a handler. The layer counts the messages that are handled.
    pub fn new() -> Self {
        Self::for_side(Side::Serving)
    }

    /// Creates a layer for a client's transport. The layer counts the messages that are sent.
    pub fn new_for_client() -> Self {
        Self::for_side(Side::Client)
    }

    fn for_side(side: Side) -> Self {
        let labels = LayerLabels {
            side,
            system: Name::from_static(conventions::SYSTEM),
            group: None,
        };
        Self::with(labels, 256)
    }

    // Creates an empty table, because the handles in the old table have other labels.
    fn with(labels: LayerLabels, max_destinations: usize) -> Self {
        Self {
            table: Arc::new(SeriesTable::new(labels, max_destinations)),
        }
    }

    /// Sets the label `messaging.system`, which names the transport. `redis` unless set.
    #[must_use]
    pub fn system(self, system: impl Into<Name>) -> Self {
        let mut labels = self.table.labels.clone();
        labels.system = system.into();
        Self::with(labels, self.table.max_destinations)
    }

    /// Sets the label `messaging.consumer.group.name`, which names the group of the worker. Unless
    /// set, there is no such label.
    #[must_use]
    pub fn group(self, group: impl Into<Name>) -> Self {
        let mut labels = self.table.labels.clone();
        labels.group = Some(group.into());
        Self::with(labels, self.table.max_destinations)
    }

    /// Sets the maximum number of destinations that get a separate label, for each kind of message.
    /// Further destinations share the label `_OTHER`. 256 unless set.
    #[must_use]
    pub fn max_destinations(self, destinations: usize) -> Self {
        Self::with(self.table.labels.clone(), destinations)
    }
}

/// Creates the layer as [`MetricsLayer::new`] does.
impl Default for MetricsLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MetricsLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MetricsLayer").field(&self.table).finish()
    }
}
