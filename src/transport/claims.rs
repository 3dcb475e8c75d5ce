//! Logs claimed deliveries.

use std::collections::BTreeMap;

use crate::message::{EscapedText, Name};

/// The maximum number of ids in a log line.
const MAX_IDS: usize = 10;

/// Gathers claimed deliveries for the log, by the worker from which they were claimed.
#[derive(Debug, Default)]
pub(crate) struct Claims(BTreeMap<String, Claimed>);

#[derive(Debug, Default)]
struct Claimed {
    deliveries: usize,
    /// The ids of the first [`MAX_IDS`] of these deliveries.
    ids: Vec<String>,
}

impl Claims {
    /// Adds a delivery that was claimed from the worker `from`.
    pub(crate) fn add(&mut self, from: &str, id: impl FnOnce() -> String) {
        if !self.0.contains_key(from) {
            self.0.insert(from.to_owned(), Claimed::default());
        }
        let claimed = self.0.get_mut(from).expect("just added");
        claimed.deliveries += 1;
        if claimed.ids.len() < MAX_IDS {
            claimed.ids.push(id());
        }
    }

    /// Logs one line for each worker.
    pub(crate) fn log(self, stream: &Name, group: &Name) {
        for (from, Claimed { deliveries, ids }) in self.0 {
            let mut listed = ids.join(", ");
            if deliveries > ids.len() {
                listed.push_str(&format!(" and {} more", deliveries - ids.len()));
            }
            let (from, ids) = (
                EscapedText::new(&from),
                EscapedText::new(&listed).at_most(1024),
            );
            tracing::info!(
                %stream,
                %group,
                %from,
                deliveries,
                %ids,
                "claimed deliveries of a worker that no longer renews its leases"
            );
        }
    }
}
