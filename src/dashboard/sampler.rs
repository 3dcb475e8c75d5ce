//! Samples the statistics of all streams in the background, in steps of limited size.
//!
//! Sampling stops [`IDLE_TIMEOUT`] after the last request, and starts again with the next request.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use super::{
    context::{Config, DashboardState},
    handle::Handle,
    history::Hour,
};
use crate::{
    error::Error,
    message::Name,
    sync::lock,
    transport::{GroupStats, StreamStats},
};

/// The maximum number of streams that are sampled.
pub(super) const MAX_STREAMS: usize = 20_000;
/// The maximum number of streams whose statistics are read in one step, and for one page.
pub(super) const MAX_STEP_STREAMS: usize = 100;
/// The time between the starts of two steps.
const BETWEEN_STEPS: Duration = Duration::from_millis(500);
/// The time between the starts of two rounds over all streams.
const BETWEEN_ROUNDS: Duration = Duration::from_secs(5);
/// The maximum number of streams whose statistics are read at the same time.
const MAX_CONCURRENT_READS: usize = 8;
/// The maximum age of a sample that a page shows. A page reads older samples again.
const MAX_AGE: Duration = Duration::from_secs(1);
/// Sampling stops when there was no request for this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// The time limit for listing streams, and for reading the samples of [`MAX_STEP_STREAMS`] streams.
/// If the limit is exceeded, the round ends, and streams that were not read keep their old samples.
const STEP_TIMEOUT: Duration = Duration::from_secs(8);
/// The minimum time between two reads of the history of a stream.
const HISTORY_INTERVAL: Duration = Duration::from_secs(30);
/// The maximum number of groups of a stream whose pauses and history are read.
const MAX_GROUPS: usize = 5;

/// A sample of a stream.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    /// `None` until the statistics were read for the first time.
    pub(super) stats: Option<StreamStats>,
    /// The time at which the statistics were read.
    pub(super) at: SystemTime,
    /// `true` if the stream, one of its groups, or the name of a message is paused.
    pub(super) is_paused: bool,
    /// The last hour of the stream's groups. `None` if it was not read yet, or if nothing has
    /// happened in it.
    hour: Option<Arc<Hour>>,
    /// The time at which the hour was read.
    hour_at: Option<Instant>,
    /// The number of the last sampling round that has listed the stream.
    round: u64,
}

/// The sums of the numbers of all streams.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Totals {
    pub(super) streams: usize,
    pub(super) waiting: u64,
    /// The number of groups whose waiting messages cannot be counted.
    pub(super) uncounted_groups: usize,
    pub(super) running: u64,
    pub(super) delayed: u64,
    pub(super) parked: u64,
    pub(super) dead: u64,
    /// The number of streams without a sample.
    pub(super) unsampled_streams: usize,
    /// The time of the oldest sample in the sums.
    pub(super) oldest_sample: Option<SystemTime>,
}

impl Totals {
    pub(super) fn add(&mut self, stats: &StreamStats) {
        self.delayed += stats.delayed;
        for group in &stats.groups {
            self.add_group(group);
        }
    }

    fn add_group(&mut self, group: &GroupStats) {
        match group.lag {
            Some(lag) => self.waiting += lag,
            None => self.uncounted_groups += 1,
        }
        self.running += group.pending;
        self.delayed += group.delayed;
        self.parked += group.parked;
        self.dead += group.dead;
    }
}

/// The samples of all streams.
#[derive(Debug, Default)]
pub(super) struct Samples {
    streams: Mutex<BTreeMap<Name, Sample>>,
    /// The time of the last request.
    last_request: Mutex<Option<Instant>>,
    is_running: AtomicBool,
    /// The error of the last step. `None` if that step succeeded.
    error: Mutex<Option<String>>,
}

impl Samples {
    pub(super) fn totals(&self) -> Totals {
        let streams = lock(&self.streams);
        let mut totals = Totals {
            streams: streams.len(),
            ..Totals::default()
        };
        for sample in streams.values() {
            match &sample.stats {
                None => totals.unsampled_streams += 1,
                Some(stats) => {
                    totals.add(stats);
                    let oldest = totals.oldest_sample.get_or_insert(sample.at);
                    *oldest = sample.at.min(*oldest);
                }
            }
        }
        totals
    }

    /// Returns the error of the last step.
    pub(super) fn error(&self) -> Option<String> {
        lock(&self.error).clone()
    }

    /// Returns the streams that `is_wanted` selects, in the order of their names. Also returns a
    /// number for each stream, by which the caller can sort: the result of `sort_number` for its
    /// statistics, or 0 if they were not read yet.
    pub(super) fn select(
        &self,
        is_wanted: impl Fn(&Name) -> bool,
        sort_number: impl Fn(&StreamStats) -> u64,
    ) -> Vec<(u64, Name)> {
        let streams = lock(&self.streams);
        let selected = streams.iter().filter(|(name, _)| is_wanted(name));
        let selected = selected.map(|(name, sample)| {
            let number = sample.stats.as_ref().map_or(0, &sort_number);
            (number, name.clone())
        });
        selected.collect()
    }

    pub(super) fn get(&self, stream: &Name) -> Option<Sample> {
        lock(&self.streams).get(stream).cloned()
    }

    /// Adds the new streams among `names`, without statistics. Marks all `names` as listed in
    /// `round`. Leaves out names that are not valid.
    fn add(&self, names: impl IntoIterator<Item = Name>, round: u64) {
        let mut streams = lock(&self.streams);
        for name in names.into_iter().filter(|name| name.fault().is_none()) {
            if let Some(known) = streams.get_mut(&name) {
                known.round = round;
            } else if streams.len() < MAX_STREAMS {
                let sample = Sample {
                    stats: None,
                    at: SystemTime::UNIX_EPOCH,
                    is_paused: false,
                    hour: None,
                    hour_at: None,
                    round,
                };
                streams.insert(name, sample);
            }
        }
    }

    /// Stores a new sample of a known stream.
    fn put(&self, new: NewSample) {
        let mut streams = lock(&self.streams);
        if let Some(sample) = streams.get_mut(&new.stats.stream) {
            sample.stats = Some(new.stats);
            sample.at = SystemTime::now();
            sample.is_paused = new.is_paused;
            if let Some(hour) = new.hour {
                // Most streams are quiet, so not keeping quiet hours saves memory.
                sample.hour = (!hour.is_quiet()).then(|| Arc::new(hour));
                sample.hour_at = Some(Instant::now());
            }
        }
    }

    /// Returns the sum of the last hours of all streams.
    pub(super) fn hour(&self) -> Hour {
        let streams = lock(&self.streams);
        let hours: Vec<_> = streams.values().filter_map(|it| it.hour.clone()).collect();
        drop(streams);
        let mut sum = Hour::default();
        hours.iter().for_each(|hour| sum.add(hour));
        sum
    }

    /// Reads new samples of those streams among `names` whose sample is missing or older than
    /// [`MAX_AGE`]. Reads at most [`MAX_STEP_STREAMS`] streams.
    ///
    /// # Errors
    /// If the server cannot be reached, or if none of the streams could be read.
    pub(super) async fn refresh(&self, config: &Config, names: &[Name]) -> Result<(), Error> {
        let now = SystemTime::now();
        let is_stale = |name: &&Name| {
            let streams = lock(&self.streams);
            streams.get(*name).is_none_or(|sample| {
                let age = now.duration_since(sample.at);
                sample.stats.is_none() || age.is_ok_and(|age| age > MAX_AGE)
            })
        };
        let stale: Vec<_> = names
            .iter()
            .filter(is_stale)
            .take(MAX_STEP_STREAMS)
            .cloned()
            .collect();
        let reading = stale.into_iter().map(|name| {
            let hour_at = lock(&self.streams)
                .get(&name)
                .and_then(|sample| sample.hour_at);
            let with_hour = hour_at.is_none_or(|at| at.elapsed() >= HISTORY_INTERVAL);
            read_sample(config.handle.stream(&name), with_hour)
        });
        let mut samples = stream::iter(reading).buffer_unordered(MAX_CONCURRENT_READS);
        let (mut first_error, mut count) = (None, 0_usize);
        while let Some(sample) = samples.next().await {
            match sample {
                Ok(new) => {
                    count += 1;
                    self.put(new);
                }
                // Without a connection, the other streams cannot be read either.
                Err(error) if error.is_disconnected() => return Err(error),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        match first_error {
            Some(error) if count == 0 => Err(error),
            _ => Ok(()),
        }
    }

    /// Lists the first streams if no stream is known yet, so that the first page shows some.
    pub(super) async fn ensure_listed(&self, config: &Config) -> Result<(), Error> {
        if !lock(&self.streams).is_empty() {
            return Ok(());
        }
        let first = config.handle.list_streams(None).await?;
        self.add(config.streams.iter().cloned().chain(first.streams), 0);
        Ok(())
    }

    /// Returns `true` if the last request is less than [`IDLE_TIMEOUT`] ago.
    fn is_in_use(&self) -> bool {
        lock(&self.last_request).is_some_and(|last| last.elapsed() < IDLE_TIMEOUT)
    }
}

/// The content of a new sample.
struct NewSample {
    stats: StreamStats,
    is_paused: bool,
    hour: Option<Hour>,
}

/// Reads a sample of the handle's stream. The last hour is read only if `with_hour` is set.
async fn read_sample(handle: Handle, with_hour: bool) -> Result<NewSample, Error> {
    let stats = handle.stats().await?;
    let (mut is_paused, mut hour) = (false, with_hour.then(Hour::default));
    for group in stats.groups.iter().take(MAX_GROUPS) {
        let handle = handle.group(&group.group);
        is_paused = is_paused || !handle.control().pauses().await?.is_empty();
        if let Some(hour) = &mut hour {
            hour.add(&Hour::of(&handle.history().await?));
        }
    }
    Ok(NewSample {
        stats,
        is_paused,
        hour,
    })
}

/// Notes the time of a request, and starts sampling unless it runs already.
pub(super) fn keep_sampling(config: &Arc<Config>, state: &Arc<DashboardState>) {
    *lock(&state.samples.last_request) = Some(Instant::now());
    if !state.samples.is_running.swap(true, Ordering::AcqRel) {
        tokio::spawn(sample_until_idle(Arc::clone(config), Arc::downgrade(state)));
    }
}

/// Samples all streams, round after round, until no request has come for [`IDLE_TIMEOUT`], or the
/// last clone of the dashboard is dropped.
async fn sample_until_idle(config: Arc<Config>, state: Weak<DashboardState>) {
    for round in 1.. {
        let started = Instant::now();
        if !sample_round(&config, &state, round).await {
            break;
        }
        tokio::time::sleep_until(started + BETWEEN_ROUNDS).await;
    }
    if let Some(state) = state.upgrade() {
        state.samples.is_running.store(false, Ordering::Release);
    }
}

/// Samples all streams once. Returns `false` if sampling must stop.
async fn sample_round(config: &Config, state: &Weak<DashboardState>, round: u64) -> bool {
    // The position in the list of streams. The list is read page by page.
    let mut position = None;
    let mut is_first = true;
    loop {
        let Some(state) = state.upgrade() else {
            return false;
        };
        let samples = &state.samples;
        if !samples.is_in_use() {
            return false;
        }
        let started = Instant::now();
        // Lists one page of streams, and reads their samples in chunks.
        let step = async {
            let page = with_timeout(config.handle.list_streams(position.as_deref())).await?;
            let mut names = page.streams;
            if is_first {
                names.splice(0..0, config.streams.iter().cloned());
            }
            samples.add(names.iter().cloned(), round);
            for names in names.chunks(MAX_STEP_STREAMS) {
                let chunk_started = Instant::now();
                with_timeout(samples.refresh(config, names)).await?;
                if names.len() == MAX_STEP_STREAMS {
                    tokio::time::sleep_until(chunk_started + BETWEEN_STEPS).await;
                }
            }
            Ok::<_, String>(page.next)
        };
        let error = match step.await {
            Ok(next) => {
                *lock(&samples.error) = None;
                position = next;
                None
            }
            Err(error) => Some(error),
        };
        if let Some(error) = error {
            // The round ends early. The next round starts again from the first stream.
            *lock(&samples.error) = Some(error);
            return true;
        }
        is_first = false;
        if position.is_none() {
            // Removes the streams that are no longer listed.
            lock(&samples.streams).retain(|_, sample| sample.round >= round);
            return true;
        }
        drop(state);
        tokio::time::sleep_until(started + BETWEEN_STEPS).await;
    }
}

/// Limits the time of a step to [`STEP_TIMEOUT`].
async fn with_timeout<T>(step: impl Future<Output = Result<T, Error>>) -> Result<T, String> {
    match tokio::time::timeout(STEP_TIMEOUT, step).await {
        Ok(done) => done.map_err(|error| super::fault::chain(&error)),
        Err(_) => Err("the server is too slow for the samples".into()),
    }
}
