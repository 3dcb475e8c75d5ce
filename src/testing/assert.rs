//! What a test says about what has happened.

use super::{
    Expected, Harness,
    expected::miscount,
    record::{Listing, Record},
};
use crate::transport::{Discarded, memory::observer::Happened};

/// Each assertion is about all that has happened so far, and returns the records that it found.
/// Where it does not hold it panics with a list of what did happen; a record that is almost what
/// was expected says in what it differs.
impl Harness {
    /// Messages were sent: by the test, or by a handler.
    #[track_caller]
    pub fn assert_sent(&self, expected: Expected) -> Vec<Record> {
        self.assert("sent", &expected, |what| {
            matches!(what, Happened::Sent { .. })
        })
    }

    /// Tasks are done, requests are answered, handlers of events have succeeded.
    #[track_caller]
    pub fn assert_acknowledged(&self, expected: Expected) -> Vec<Record> {
        self.assert("acknowledged", &expected, |what| {
            *what == Happened::Acknowledged
        })
    }

    /// Requests were answered with an error, or handlers of events have failed. A task that fails
    /// is redelivered, dead-lettered or discarded.
    #[track_caller]
    pub fn assert_failed(&self, expected: Expected) -> Vec<Record> {
        self.assert("failed", &expected, |what| {
            matches!(what, Happened::Failed { .. })
        })
    }

    /// Deliveries have failed and are to come again.
    #[track_caller]
    pub fn assert_redelivered(&self, expected: Expected) -> Vec<Record> {
        self.assert("redelivered", &expected, |what| {
            matches!(what, Happened::Redelivered { .. })
        })
    }

    /// Messages became dead letters.
    #[track_caller]
    pub fn assert_dead_lettered(&self, expected: Expected) -> Vec<Record> {
        self.assert("dead-lettered", &expected, |what| {
            matches!(what, Happened::DeadLettered { .. })
        })
    }

    /// Messages were dropped because their time was over before they could be started.
    #[track_caller]
    pub fn assert_expired(&self, expected: Expected) -> Vec<Record> {
        self.assert("expired", &expected, |what| {
            *what == Happened::Discarded(Discarded::Expired)
        })
    }

    /// Messages were dropped because a handler or a layer asked for it.
    #[track_caller]
    pub fn assert_discarded(&self, expected: Expected) -> Vec<Record> {
        self.assert("discarded", &expected, |what| {
            *what == Happened::Discarded(Discarded::Asked)
        })
    }

    #[track_caller]
    fn assert(
        &self,
        verb: &str,
        expected: &Expected,
        is_meant: impl Fn(&Happened) -> bool,
    ) -> Vec<Record> {
        let records = self.records();
        let is_about = |record: &Record| {
            is_meant(&record.happened) && expected.is_about(record.message.as_ref())
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
                Listing::of(&records).remark(&remark)
            );
        }
        found
    }
}
