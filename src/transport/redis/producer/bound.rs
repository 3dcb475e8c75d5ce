//! Admits messages to streams that have a bound on waiting messages.
//!
//! An admitted message is sent in the same way as a message without a bound. The decision about a
//! message uses a sample: the counts of waiting messages, which the sender reads from the server
//! now and then.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use foldhash::HashMap;
use redis::Cmd;
use tokio::{runtime::Handle, time::Instant};

use crate::{
    error::Error,
    message::{Message, Name},
    sync::lock,
    transport::{
        Bound, DrainRate, Waiting,
        redis::{
            Redis,
            keys::{CONSUMER_PREFIX, Keys},
            response::{Value, array, bytes, fixed_array, integer},
            scripts,
        },
    },
};

/// The time for which a sample is used.
const SAMPLE_LIFETIME: Duration = Duration::from_millis(500);
/// The time for which a sample is used if it found no room.
const FULL_SAMPLE_LIFETIME: Duration = Duration::from_millis(100);
/// After a sample, a sender admits at most the room that the sample found, divided by this number.
/// So several senders that find the same room do not exceed the bound by much.
const ROOM_DIVISOR: u64 = 16;
/// When this many streams are stored, those without a current sample are removed.
const CLEAN_UP_AT: usize = 1024;

/// The bounded streams to which a handle and its clones send.
#[derive(Debug, Default)]
pub(in crate::transport::redis) struct Bounds(Mutex<HashMap<Name, Vec<Arc<BoundedStream>>>>);

/// A stream with a bound.
#[derive(Debug)]
struct BoundedStream {
    bound: Bound,
    window: Mutex<Window>,
    /// Locked while a sample is taken, so that concurrent calls share one sample.
    sampling: tokio::sync::Mutex<()>,
    /// The number of admitted messages that are not in the queue of the connection yet. A sample
    /// does not count them.
    on_the_way: AtomicU64,
}

/// The admission of a message; `None` if the stream has no bound. Dropped when the message is in
/// the queue of the connection.
#[derive(Debug)]
pub(super) struct Admitted(Option<Arc<BoundedStream>>);

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            stream.on_the_way.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The result of the last sample, and the number of messages that it allows.
#[derive(Debug, Default)]
struct Window {
    /// The number of messages admitted so far.
    admitted: u64,
    /// The value of `admitted` at which another sample is needed.
    limit: u64,
    /// The value of `admitted` at which another sample is taken in the background, before it is
    /// needed.
    renew_at: u64,
    /// The time of the last sample. Another sample is taken in the background after half of the
    /// lifetime.
    taken_at: Option<Instant>,
    /// Set while a sample is being taken in the background.
    is_renewing: bool,
    /// A group without room, if there is one.
    full_group: Option<Waiting>,
    rate: DrainRate,
}

/// The decision about one message.
enum Decision {
    /// The message is admitted. If `renew` is set, the caller takes another sample in the
    /// background.
    Admitted {
        renew: bool,
    },
    /// A sample is needed first.
    Sample,
    Refused(Error),
}

/// An admission that is granted now, or when a future resolves.
pub(super) enum Admission<F> {
    Now(Admitted),
    Later(F),
}

impl<F: Future<Output = Result<Admitted, Error>>> Admission<F> {
    /// Waits until the message may be sent.
    pub(super) async fn wait(self) -> Result<Admitted, Error> {
        match self {
            Self::Now(admitted) => Ok(admitted),
            Self::Later(admission) => admission.await,
        }
    }
}

impl Bounds {
    /// Returns the state of a stream with this bound, and makes it if there is none. `key` is the
    /// stream's name with the namespace.
    fn stream(&self, key: &Name, bound: Bound) -> Arc<BoundedStream> {
        let mut streams = lock(&self.0);
        if streams.len() >= CLEAN_UP_AT && !streams.contains_key(key) {
            streams.retain(|_, bounds| bounds.iter().any(|it| it.is_in_use()));
        }
        let bounds = streams.entry(key.clone()).or_default();
        if let Some(known) = bounds.iter().find(|known| known.bound == bound) {
            return Arc::clone(known);
        }
        let stream = Arc::new(BoundedStream {
            bound,
            window: Mutex::default(),
            sampling: tokio::sync::Mutex::default(),
            on_the_way: AtomicU64::new(0),
        });
        bounds.push(Arc::clone(&stream));
        stream
    }
}

impl Redis {
    /// Decides about a message for a stream that may have a bound.
    ///
    /// # Errors
    /// If the bound is invalid, or leaves no room.
    pub(super) fn admission(
        &self,
        message: &Message,
    ) -> Result<
        Admission<impl Future<Output = Result<Admitted, Error>> + Send + 'static + use<>>,
        Error,
    > {
        let Some(bound) = self.settings.bound(message.parts())? else {
            return Ok(Admission::Now(Admitted(None)));
        };
        let wait_until = bound.wait_until(message.parts());
        let stream_name = self.settings.target_stream(message.parts())?;
        let key = self.options.namespace.apply(stream_name);
        let stream = self.shared.bounds.stream(&key, bound);
        match stream.decide(stream_name, wait_until.is_some()) {
            Decision::Admitted { renew } => {
                return Ok(Admission::Now(self.grant(stream, stream_name, renew)));
            }
            Decision::Refused(error) => return Err(error),
            Decision::Sample => {}
        }
        let (redis, stream_name) = (self.clone(), stream_name.clone());
        Ok(Admission::Later(async move {
            redis.admit(stream, &stream_name, wait_until).await
        }))
    }

    /// Waits until a message may be sent, at most until `wait_until`.
    async fn admit(
        &self,
        stream: Arc<BoundedStream>,
        stream_name: &Name,
        wait_until: Option<Instant>,
    ) -> Result<Admitted, Error> {
        loop {
            {
                // Concurrent calls wait here, and then use the sample of the first call.
                let _turn = stream.sampling.lock().await;
                if !stream.has_sample() {
                    self.take_sample(&stream, stream_name).await?;
                }
            }
            match stream.decide(stream_name, false) {
                Decision::Admitted { renew } => return Ok(self.grant(stream, stream_name, renew)),
                Decision::Sample => {}
                Decision::Refused(error) => {
                    let now = Instant::now();
                    let Some(until) = wait_until.filter(|until| *until > now) else {
                        return Err(error);
                    };
                    tokio::time::sleep_until(until.min(now + FULL_SAMPLE_LIFETIME)).await;
                }
            }
        }
    }

    /// Returns the admission of a message that the window has counted.
    fn grant(&self, stream: Arc<BoundedStream>, stream_name: &Name, renew: bool) -> Admitted {
        if renew {
            self.renew_sample(Arc::clone(&stream), stream_name);
        }
        Admitted(Some(stream))
    }

    /// Takes another sample in the background. Has no effect without a runtime: the next call that
    /// needs a sample takes one.
    fn renew_sample(&self, stream: Arc<BoundedStream>, stream_name: &Name) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let (redis, stream_name) = (self.clone(), stream_name.clone());
        runtime.spawn(async move {
            let turn = stream.sampling.lock().await;
            // An error is ignored: the next call that needs a sample takes one, and returns the
            // error.
            let _ = redis.take_sample(&stream, &stream_name).await;
            drop(turn);
        });
    }

    /// Counts the waiting messages on the server, and sets the window by the result.
    async fn take_sample(&self, stream: &BoundedStream, stream_name: &Name) -> Result<(), Error> {
        let Bound { max, max_age, .. } = stream.bound;
        let keys = Keys::new(&self.options.namespace, stream_name, &self.settings.group)?;
        let args = |cmd: &mut Cmd| {
            cmd.arg(keys.base())
                .arg(CONSUMER_PREFIX)
                .arg(self.settings.lease.as_millis() as u64)
                .arg(self.options.foreign_lease.as_millis() as u64)
                // Without a bound on their number, messages are counted only to measure the rate.
                .arg(if max == u64::MAX { 1000 } else { max })
                .arg(u8::from(max_age.is_some()));
        };
        // The sample may lack messages on the way, so they are subtracted from the room below.
        let (admitted, on_the_way) = {
            let window = lock(&stream.window);
            (window.admitted, stream.on_the_way.load(Ordering::Relaxed))
        };
        let pipeline = self.shared.pipeline.for_key(&keys.stream_key);
        let primary = [&*keys.stream_key];
        // After an unknown outcome the script runs again. That is safe, since it sends no message.
        let response = pipeline.script_until_known(&scripts::COUNT_WAITING, &primary, args);
        let response = response.await.and_then(decode);
        let mut window = lock(&stream.window);
        window.is_renewing = false;
        let now = Instant::now();
        let waiting = response?;
        if let Some(fullest) = waiting.iter().max_by_key(|waiting| waiting.messages) {
            window.rate.add_measurement(now, fullest);
        }
        let rooms = waiting.iter().map(|waiting| stream.bound.room(waiting));
        let room = rooms.min();
        let allowed = match room {
            // No group has a live worker, so there is no bound.
            None => u64::MAX,
            Some(room) if room <= on_the_way => 0,
            Some(room) => ((room - on_the_way) / ROOM_DIVISOR).max(1),
        };
        // `admitted` was read before the sample, so messages that were admitted since then use up a
        // part of the limit.
        window.limit = admitted.saturating_add(allowed);
        window.renew_at = admitted.saturating_add(allowed.div_ceil(2));
        window.taken_at = Some(now);
        window.full_group = match room {
            Some(0) => waiting.into_iter().find(|it| stream.bound.room(it) == 0),
            _ => None,
        };
        Ok(())
    }
}

impl BoundedStream {
    /// Decides about one message by the last sample. If the sample found no room, a message that
    /// can wait needs another sample, and any other message is refused.
    fn decide(&self, stream_name: &Name, can_wait: bool) -> Decision {
        let mut window = lock(&self.window);
        if !window.is_current() {
            return Decision::Sample;
        }
        if let Some(full_group) = &window.full_group {
            return match can_wait {
                true => Decision::Sample,
                false => {
                    Decision::Refused(self.bound.refusal(stream_name, full_group, &window.rate))
                }
            };
        }
        if window.admitted >= window.limit {
            return Decision::Sample;
        }
        window.admitted += 1;
        self.on_the_way.fetch_add(1, Ordering::Relaxed);
        let is_due = window.admitted >= window.renew_at || window.age() >= SAMPLE_LIFETIME / 2;
        let renew = is_due && !window.is_renewing;
        window.is_renewing |= renew;
        Decision::Admitted { renew }
    }

    /// Returns `true` if the last sample can decide about a message.
    fn has_sample(&self) -> bool {
        let window = lock(&self.window);
        window.is_current() && (window.full_group.is_some() || window.admitted < window.limit)
    }

    fn is_in_use(&self) -> bool {
        lock(&self.window).is_current()
    }
}

impl Window {
    fn is_current(&self) -> bool {
        let lifetime = match self.full_group {
            Some(_) => FULL_SAMPLE_LIFETIME,
            None => SAMPLE_LIFETIME,
        };
        self.taken_at.is_some() && self.age() < lifetime
    }

    fn age(&self) -> Duration {
        self.taken_at.map_or(Duration::MAX, |at| at.elapsed())
    }
}

/// Decodes the response of the script `COUNT_WAITING`.
pub(in crate::transport::redis) fn decode(response: Value) -> Result<Vec<Waiting>, Error> {
    let groups = array(response)?.into_iter().map(|group| {
        let [group, messages, age, read] = fixed_array(group)?;
        let group = bytes(group)?;
        let number = |value: &Value| Ok::<_, Error>(u64::try_from(integer(value)?).ok());
        Ok(Waiting {
            group: Name::from(String::from_utf8_lossy(&group).into_owned()),
            messages: number(&messages)?.unwrap_or_default(),
            oldest: Duration::from_millis(number(&age)?.unwrap_or_default()),
            entries_read: number(&read)?,
        })
    });
    groups.collect()
}
