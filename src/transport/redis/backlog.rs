//! The backlog of a group: the messages that its workers have to handle.

use std::time::Duration;

use futures_util::future::try_join_all;
use redis::Cmd;

use super::{
    Redis,
    keys::{CONSUMER_PREFIX, Keys},
    pipeline::Resend,
    response::{Value, fixed_array, integers},
    scripts,
};
use crate::{
    error::Error,
    message::Name,
    transport::{Backlog, Settings},
};

impl Redis {
    /// Returns the backlog of the group, including the messages that are due within
    /// [`Backlog::HORIZON`] (30 s). For a set of streams, returns the sum.
    ///
    /// Calls a script for each stream. The cost of the script does not grow with the length of the
    /// stream.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses a command, or if the handle serves the streams of
    /// a registry.
    pub fn backlog(&self) -> impl Future<Output = Result<Backlog, Error>> + Send + use<> {
        self.backlog_within(Backlog::HORIZON)
    }

    /// Returns the backlog of the group, including the messages that are due within `horizon`.
    ///
    /// # Errors
    /// The errors of [`backlog`](Self::backlog).
    pub fn backlog_within(
        &self,
        horizon: Duration,
    ) -> impl Future<Output = Result<Backlog, Error>> + Send + use<> {
        let redis = self.clone();
        async move {
            let streams = redis.settings.backlog_streams()?;
            let streams = streams.iter().map(|name| redis.backlog_of(name, horizon));
            let backlogs = try_join_all(streams).await?.into_iter();
            Ok(backlogs.reduce(Backlog::join).unwrap_or_default())
        }
    }

    async fn backlog_of(&self, stream: &Name, horizon: Duration) -> Result<Backlog, Error> {
        let Settings { group, lease, .. } = &self.settings;
        let keys = Keys::new(&self.options.namespace, stream, group)?;
        let parking = keys.parking();
        let names = [
            &*keys.stream_key,
            &keys.retry_key,
            &keys.due,
            &keys.stream_due,
            &parking,
        ];
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let args = |cmd: &mut Cmd| {
            cmd.arg(group.as_str())
                .arg(CONSUMER_PREFIX)
                .arg(milliseconds(*lease))
                .arg(milliseconds(self.options.foreign_lease))
                .arg(milliseconds(horizon.min(LONGEST_HORIZON)));
        };
        let pipeline = self.shared.pipeline.for_key(&keys.stream_key);
        let response = pipeline.script(&scripts::BACKLOG, &names, args, Resend::Never);
        decode(response.await?)
    }
}

/// The maximum horizon. The script cannot represent all longer horizons in milliseconds.
const LONGEST_HORIZON: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Decodes the response of the script `BACKLOG`.
pub(super) fn decode(response: Value) -> Result<Backlog, Error> {
    let numbers = Value::Array(fixed_array::<9>(response)?.into());
    let numbers = integers::<9>(numbers)?;
    let [
        waiting,
        unclaimed,
        running,
        retrying,
        delayed,
        due_soon,
        parked,
        oldest,
        workers,
    ] = numbers;
    let count = |number: i64| u64::try_from(number).unwrap_or_default();
    Ok(Backlog {
        waiting: count(waiting),
        unclaimed: count(unclaimed),
        running: count(running),
        retrying: count(retrying),
        delayed: count(delayed),
        due_soon: count(due_soon),
        parked: count(parked),
        oldest_waiting: u64::try_from(oldest).ok().map(Duration::from_millis),
        workers: count(workers),
    })
}
