//! The metrics of a transport.

use std::time::Duration;

use ::metrics::{Label, counter, gauge};
use campanile::{
    Name,
    transport::{ConnectionState, Counts, GroupStats, StreamStats},
};

use super::READY;
use crate::conventions;

/// Publishes the counts, the statistics and the state of a transport's handle. See the
/// [module](super).
///
/// Call the methods at each scrape. Each method sets its metrics to the given values. The
/// application reads the statistics itself, because reading them needs the server and may fail.
#[derive(Debug, Clone)]
pub struct TransportMetrics {
    system: Label,
    labels: Vec<Label>,
}

impl TransportMetrics {
    /// Creates a publisher for a Redis handle. For another transport, call
    /// [`system`](Self::system).
    pub fn new() -> Self {
        Self {
            system: Label::from_static_parts("messaging.system", conventions::SYSTEM),
            labels: Vec::new(),
        }
    }

    /// Sets the label `messaging.system`, which names the transport. `redis` unless set.
    #[must_use]
    pub fn system(mut self, system: impl Into<Name>) -> Self {
        self.system = Label::new("messaging.system", system.into().to_string());
        self
    }

    /// Adds a label to all published metrics. Two handles with separate counts need a label that
    /// distinguishes them.
    #[must_use]
    pub fn label(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.labels.push(Label::new(key, value.into()));
        self
    }

    /// Publishes each count as a counter `campanile.transport.{name}`. The counts are those of this
    /// process.
    pub fn publish_counts(&self, counts: &Counts) {
        for (name, count) in counts.by_name() {
            counter!(format!("campanile.transport.{name}"), self.labels([])).absolute(count);
        }
    }

    /// Publishes statistics as gauges. The gauges of the stream are `campanile.stream.{name}`, with
    /// the label `stream`. The gauges of its groups are `campanile.group.{name}`, with the labels
    /// `stream` and `group`. A lag that the server does not know is NaN. Without pending deliveries
    /// `oldest_pending` is 0.
    ///
    /// The last values of a deleted group remain, unless the recorder removes idle metrics.
    pub fn publish_stats(&self, stats: &StreamStats) {
        let stream = || Label::new("stream", stats.stream.to_string());
        let set = |name, value| gauge!(name, self.labels([stream()])).set(value);
        set("campanile.stream.entries", stats.entries as f64);
        set("campanile.stream.delayed", stats.delayed as f64);
        for group in &stats.groups {
            self.publish_group(stream(), group);
        }
    }

    /// Publishes whether the handle is connected, as the gauge [`READY`].
    pub fn publish_state(&self, state: ConnectionState) {
        let ready = if state.is_ready() { 1.0 } else { 0.0 };
        gauge!(READY, self.labels([])).set(ready);
    }

    fn publish_group(&self, stream: Label, stats: &GroupStats) {
        let set = |name, value| {
            let group = Label::new("group", stats.group.to_string());
            gauge!(name, self.labels([stream.clone(), group])).set(value);
        };
        let oldest = stats.oldest_pending.unwrap_or(Duration::ZERO);
        let lag = stats.lag.map_or(f64::NAN, |lag| lag as f64);
        set("campanile.group.lag", lag);
        set("campanile.group.pending", stats.pending as f64);
        set("campanile.group.oldest_pending", oldest.as_secs_f64());
        set("campanile.group.delayed", stats.delayed as f64);
        set("campanile.group.parked", stats.parked as f64);
        set("campanile.group.dead", stats.dead as f64);
        set("campanile.group.consumers", stats.consumers as f64);
    }

    fn labels<const N: usize>(&self, extra: [Label; N]) -> Vec<Label> {
        let mut labels = vec![self.system.clone()];
        labels.extend_from_slice(&self.labels);
        labels.extend(extra);
        labels
    }
}

impl Default for TransportMetrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    /// Returns the text that Prometheus scrapes after `publish`.
    fn published(publish: impl FnOnce(&TransportMetrics)) -> String {
        let recorder = PrometheusBuilder::new().build_recorder();
        let prometheus = recorder.handle();
        let metrics = TransportMetrics::new().label("of", "billing");
        ::metrics::with_local_recorder(&recorder, || publish(&metrics));
        prometheus.render()
    }

    fn assert_shows(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn the_statistics_of_a_stream_are_gauges() {
        let mut stats = StreamStats::new("s", 7, 1);
        let mut group = GroupStats::new("g");
        group.lag = Some(3);
        group.pending = 2;
        group.oldest_pending = Some(Duration::from_millis(1500));
        group.delayed = 4;
        group.dead = 5;
        group.consumers = 6;
        stats.groups = vec![group, GroupStats::new("unknown")];
        let text = published(|metrics| metrics.publish_stats(&stats));
        let of = r#"{messaging_system="redis",of="billing",stream="s""#;
        assert_shows(
            &text,
            &[
                &format!("campanile_stream_entries{of}}} 7"),
                &format!("campanile_stream_delayed{of}}} 1"),
                &format!("campanile_group_lag{of},group=\"g\"}} 3"),
                &format!("campanile_group_pending{of},group=\"g\"}} 2"),
                &format!("campanile_group_oldest_pending{of},group=\"g\"}} 1.5"),
                &format!("campanile_group_delayed{of},group=\"g\"}} 4"),
                &format!("campanile_group_dead{of},group=\"g\"}} 5"),
                &format!("campanile_group_consumers{of},group=\"g\"}} 6"),
                &format!("campanile_group_lag{of},group=\"unknown\"}} NaN"),
                &format!("campanile_group_oldest_pending{of},group=\"unknown\"}} 0"),
            ],
        );
    }

    #[test]
    fn every_count_is_a_counter_and_the_state_is_a_gauge() {
        let text = published(|metrics| {
            metrics.publish_counts(&Counts::default());
            metrics.publish_state(ConnectionState::Reconnecting);
        });
        let of = r#"{messaging_system="redis",of="billing"}"#;
        for (name, _) in Counts::default().by_name() {
            assert_shows(&text, &[&format!("campanile_transport_{name}{of} 0")]);
        }
        assert_shows(&text, &[&format!("campanile_transport_ready{of} 0")]);
        let text = published(|metrics| metrics.publish_state(ConnectionState::Connected));
        assert_shows(&text, &[&format!("campanile_transport_ready{of} 1")]);
    }

    #[test]
    fn counts_are_set_and_not_added_up() {
        let mut counts = Counts::default();
        counts.dead = 3;
        let text = published(|metrics| {
            metrics.publish_counts(&counts);
            metrics.publish_counts(&counts);
        });
        assert_shows(
            &text,
            &[r#"campanile_transport_dead{messaging_system="redis",of="billing"} 3"#],
        );
    }
}
