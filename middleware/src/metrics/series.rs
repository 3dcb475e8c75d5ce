//! The metric handles of a layer: one set for each kind of message and each destination. The number
//! of sets is bounded.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use ::metrics::{Counter, Gauge, Histogram, Label, counter, gauge, histogram};
use campanile::{Kind, Message, Name, message::ByKind};

use super::{
    CONSUMED_MESSAGES, IN_FLIGHT, OPERATION_DURATION, PROCESS_DURATION, REDELIVERED_MESSAGES,
    SENT_MESSAGES,
};
use crate::conventions::{OTHER, Side};

/// The [`Series`] of a layer, by kind of message and destination. A series is created on first use.
pub(super) struct SeriesTable {
    pub(super) labels: LayerLabels,
    pub(super) max_destinations: usize,
    known: RwLock<ByKind<HashMap<Name, Arc<Series>>>>,
}

/// The labels that do not depend on the message.
#[derive(Debug, Clone)]
pub(super) struct LayerLabels {
    pub(super) side: Side,
    pub(super) system: Name,
    pub(super) group: Option<Name>,
}

impl SeriesTable {
    pub(super) fn new(labels: LayerLabels, max_destinations: usize) -> Self {
        Self {
            labels,
            max_destinations,
            known: RwLock::default(),
        }
    }

    /// Returns the series of a message.
    pub(super) fn of(&self, message: &Message) -> Arc<Series> {
        let destination = match self.labels.side {
            // The label is the route, not the name: the application chooses routes, but any sender
            // can choose a name.
            Side::Serving => match message.parts().matched_route() {
                Some(route) if !route.as_str().is_empty() => route.as_str(),
                _ => OTHER,
            },
            // The recorder keeps every label. So names that are too long for any transport share
            // the label `_OTHER`.
            Side::Client if message.name().len() > Name::MAX_LEN => OTHER,
            Side::Client => message.name().as_str(),
        };
        let kind = message.kind();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = known[kind].get(destination) {
            return Arc::clone(series);
        }
        drop(known);
        self.add(kind, destination)
    }

    /// Adds the series of a destination, or returns the shared series `_OTHER` if there are too
    /// many destinations.
    fn add(&self, kind: Kind, destination: &str) -> Arc<Series> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let of_kind = &mut known[kind];
        let has_room = of_kind.len() < self.max_destinations;
        let destination = if has_room { destination } else { OTHER };
        let series = of_kind
            .entry(Name::from(destination))
            .or_insert_with(|| Arc::new(Series::new(&self.labels, kind, destination)));
        Arc::clone(series)
    }
}

impl fmt::Debug for SeriesTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SeriesTable")
            .field("labels", &self.labels)
            .field("max_destinations", &self.max_destinations)
            .finish_non_exhaustive()
    }
}

/// The metric handles for the messages of one kind to one destination.
pub(super) struct Series {
    side: Side,
    labels: Vec<Label>,
    messages: Counter,
    duration: Histogram,
    redelivered: Counter,
    in_flight: Gauge,
}

impl Series {
    fn new(layer: &LayerLabels, kind: Kind, destination: &str) -> Self {
        let operation = layer.side.operation(kind);
        let mut labels = vec![
            Label::new("messaging.system", layer.system.to_string()),
            Label::from_static_parts("messaging.operation.name", operation.name()),
            Label::from_static_parts("messaging.operation.type", operation.type_name()),
            Label::new("messaging.destination.name", destination.to_owned()),
            Label::from_static_parts("campanile.message.kind", kind.as_str()),
        ];
        if let Some(group) = &layer.group {
            labels.push(Label::new(
                "messaging.consumer.group.name",
                group.to_string(),
            ));
        }
        let redelivered = match layer.side {
            Side::Serving => counter!(REDELIVERED_MESSAGES, labels.clone()),
            Side::Client => Counter::noop(),
        };
        Self {
            side: layer.side,
            messages: message_counter(layer.side, labels.clone()),
            duration: duration_histogram(layer.side, labels.clone()),
            redelivered,
            in_flight: gauge!(IN_FLIGHT, labels.clone()),
            labels,
        }
    }

    pub(super) fn begin(&self, message: &Message) {
        self.in_flight.increment(1);
        if message.parts().attempt.is_retry() {
            self.redelivered.increment(1);
        }
    }

    pub(super) fn end(&self, error_type: Option<&'static str>, after: Duration) {
        self.in_flight.decrement(1);
        let Some(error_type) = error_type else {
            self.messages.increment(1);
            self.duration.record(after);
            return;
        };
        // Failures are rare, so their handles are not kept.
        let mut labels = self.labels.clone();
        labels.push(Label::from_static_parts("error.type", error_type));
        message_counter(self.side, labels.clone()).increment(1);
        duration_histogram(self.side, labels).record(after);
    }
}

fn message_counter(side: Side, labels: Vec<Label>) -> Counter {
    match side {
        Side::Serving => counter!(CONSUMED_MESSAGES, labels),
        Side::Client => counter!(SENT_MESSAGES, labels),
    }
}

fn duration_histogram(side: Side, labels: Vec<Label>) -> Histogram {
    match side {
        Side::Serving => histogram!(PROCESS_DURATION, labels),
        Side::Client => histogram!(OPERATION_DURATION, labels),
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    fn table(side: Side, max_destinations: usize) -> SeriesTable {
        let labels = LayerLabels {
            side,
            system: "test".into(),
            group: None,
        };
        SeriesTable::new(labels, max_destinations)
    }

    /// Counts these messages. Returns the destinations in the labels of the counters.
    fn destinations(
        table: &SeriesTable,
        messages: impl IntoIterator<Item = Message>,
    ) -> Vec<String> {
        let recorder = PrometheusBuilder::new().build_recorder();
        let prometheus = recorder.handle();
        ::metrics::with_local_recorder(&recorder, || {
            for message in messages {
                let series = table.of(&message);
                series.begin(&message);
                series.end(None, Duration::ZERO);
            }
        });
        let text = prometheus.render();
        let lines = text.lines().filter(|line| {
            line.starts_with("messaging_client_sent_messages{")
                || line.starts_with("messaging_client_consumed_messages{")
        });
        let mut found: Vec<_> = lines
            .filter_map(|line| line.split("messaging_destination_name=\"").nth(1))
            .filter_map(|rest| rest.split('"').next().map(str::to_owned))
            .collect();
        found.sort();
        found
    }

    #[test]
    fn the_number_of_destinations_of_a_client_is_bounded() {
        let table = table(Side::Client, 3);
        let tasks = (0..100).map(|n| Message::task(format!("t{n}"), ""));
        assert_eq!(destinations(&table, tasks), ["_OTHER", "t0", "t1", "t2"]);
    }

    #[test]
    fn messages_of_different_kinds_and_one_name_have_different_series() {
        let table = table(Side::Client, 3);
        let messages = [Message::task("a", ""), Message::rpc("a", "")];
        assert_eq!(destinations(&table, messages), ["a", "a"]);
    }

    #[test]
    fn messages_without_a_route_share_one_destination() {
        let table = table(Side::Serving, 3);
        let tasks = (0..100).map(|n| Message::task(format!("t{n}"), ""));
        assert_eq!(destinations(&table, tasks), ["_OTHER"]);
    }
}
