//! The assertions of a harness.

use super::{
    Expected, Harness,
    expected::miscount,
    record::{Listing, Record},
};
use crate::transport::{Discarded, memory::observer::MessageEvent};

/// Each assertion checks all records so far, and returns those that match. If an assertion fails,
/// it panics with a list of all records. In the list, each record with the expected event, kind and
/// name has a remark: the first condition that the record does not meet, or `this is one`.
impl Harness {
    /// Asserts that messages were sent, by the test or by a handler.
    #[track_caller]
    pub fn assert_sent(&self, expected: Expected) -> Vec<Record> {
        self.assert("sent", &expected, |event| {
            matches!(event, MessageEvent::Sent { .. })
        })
    }

    /// Asserts that messages were handled: tasks are done, requests are answered, or handlers of
    /// events succeeded.
    #[track_caller]
    pub fn assert_acknowledged(&self, expected: Expected) -> Vec<Record> {
        self.assert("acknowledged", &expected, |event| {
            *event == MessageEvent::Acknowledged
        })
    }

    /// Asserts that requests were answered with an error, or handlers of events failed. For a task
    /// that failed, assert that it was redelivered, dead-lettered or discarded.
    #[track_caller]
    pub fn assert_failed(&self, expected: Expected) -> Vec<Record> {
        self.assert("failed", &expected, |event| {
            matches!(event, MessageEvent::Failed { .. })
        })
    }

    /// Asserts that deliveries failed, and that their messages will be delivered again.
    #[track_caller]
    pub fn assert_redelivered(&self, expected: Expected) -> Vec<Record> {
        self.assert("redelivered", &expected, |event| {
            matches!(event, MessageEvent::Redelivered { .. })
        })
    }

    /// Asserts that messages became dead letters.
    #[track_caller]
    pub fn assert_dead_lettered(&self, expected: Expected) -> Vec<Record> {
        self.assert("dead-lettered", &expected, |event| {
            matches!(event, MessageEvent::DeadLettered { .. })
        })
    }

    /// Asserts that messages were dropped because they expired before they were started.
    #[track_caller]
    pub fn assert_expired(&self, expected: Expected) -> Vec<Record> {
        self.assert("expired", &expected, |event| {
            *event == MessageEvent::Discarded(Discarded::Expired)
        })
    }

    /// Asserts that messages were discarded by a handler or a layer.
    #[track_caller]
    pub fn assert_discarded(&self, expected: Expected) -> Vec<Record> {
        self.assert("discarded", &expected, |event| {
            *event == MessageEvent::Discarded(Discarded::Requested)
        })
    }

    #[track_caller]
    fn assert(
        &self,
        verb: &str,
        expected: &Expected,
        is_expected_event: impl Fn(&MessageEvent) -> bool,
    ) -> Vec<Record> {
        let records = self.records();
        let is_about = |record: &Record| {
            is_expected_event(&record.happened) && expected.is_about(record.message.as_ref())
        };
        let found: Vec<_> = records
            .iter()
            .filter(|record| is_about(record) && expected.difference(record).is_none())
            .cloned()
            .collect();
        if let Some(miscount) = miscount(verb, expected.times, found.len()) {
            let remark = |record: &Record| {
                is_about(record).then(|| expected.difference(record).unwrap_or("this is one"))
            };
            panic!(
                "{expected} {miscount}\n\n{}",
                Listing::new(&records).remark(&remark)
            );
        }
        found
    }
}
