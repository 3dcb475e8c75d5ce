//! Limits that all workers of a group share.

use std::{fmt, sync::Arc, time::Duration};

use super::StoreFuture;
use crate::{
    error::{Error, ErrorKind},
    message::{Name, Parts, PermitRequest, holder_name},
};

/// The maximum length of a limit's name, and of a key under a limit, in bytes.
const MAX_LEN: usize = 512;

/// A limit that all workers of a group share, in any number of processes. Returned by the `limit`
/// method of a transport's handle.
///
/// `SharedLimitLayer` of `campanile-middleware` uses such limits. A limit has a name, but no fixed
/// numbers. The numbers are arguments of each call: [`acquire`](Self::acquire) takes the number of
/// permits of a key, and [`book`](Self::book) the number of messages of a key that may start in a
/// period.
///
/// A limit applies separately to each group of each stream and, on a partitioned stream, to each
/// partition.
///
/// # Parking
/// A message that gets no permit fails with [`Failure::park`](crate::error::Failure::park). The
/// transport then parks the message: it waits outside of the workers, in the order of arrival, and
/// the delivery does not count as an attempt. A permit that becomes free goes to the first message
/// that is parked for the key. So the backlog of one key occupies no worker, and each of its
/// messages is parked once.
#[derive(Clone)]
pub struct Limit {
    name: Name,
    store: Arc<dyn LimitStore>,
}

impl Limit {
    /// Creates a limit of a store. For transports.
    ///
    /// # Errors
    /// If the name is empty, longer than 512 bytes, or has a colon.
    pub fn new(name: impl Into<Name>, store: impl LimitStore + 'static) -> Result<Self, Error> {
        let name = name.into();
        if name.is_empty() || name.len() > MAX_LEN || name.contains(':') {
            return Err(Error::new(
                ErrorKind::Config,
                format!("the name of a limit must have 1 to {MAX_LEN} bytes and no colon"),
            ));
        }
        let store = Arc::new(store);
        Ok(Self { name, store })
    }

    /// Takes one of the `permits` of a key, for a message that was delivered. If all are taken,
    /// returns the request with which the message can be [parked](crate::error::Failure::park).
    ///
    /// # Errors
    /// If the key is too long, the message was not delivered from a stream, or the store cannot be
    /// reached.
    ///
    /// # Cancel safety
    /// If the future is dropped, a permit that was granted already is not returned. It expires
    /// after one lease.
    pub async fn acquire(
        &self,
        parts: &Parts,
        key: &str,
        permits: usize,
    ) -> Result<Result<Permit, PermitRequest>, Error> {
        let request = self.permit_request(parts, key, permits)?;
        if self.store.acquire(&request).await? {
            let store = Arc::clone(&self.store);
            return Ok(Ok(Permit { request, store }));
        }
        Ok(Err(request))
    }

    /// Books the next free start for a message that was delivered. At most `messages` messages of a
    /// key start in any `period`. Returns the wait until that start, zero if the message may start
    /// now. After the wait, the message must be delivered again without counting an attempt, and
    /// this method must be called again. It then returns zero. It may return another wait if other
    /// messages have taken the place of a message that comes late.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub async fn book(
        &self,
        parts: &Parts,
        key: &str,
        messages: usize,
        period: Duration,
    ) -> Result<Duration, Error> {
        if period.is_zero() {
            let text = "the period of a rate must be above zero";
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let request = self.permit_request(parts, key, messages)?;
        self.store.book(&request, period).await
    }

    fn permit_request(
        &self,
        parts: &Parts,
        key: &str,
        permits: usize,
    ) -> Result<PermitRequest, Error> {
        if key.len() > MAX_LEN {
            let text = format!("a key of a shared limit has at most {MAX_LEN} bytes");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        if permits == 0 {
            let text = "a shared limit needs at least one permit, or one message in each period";
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let (Some(stream), Some(id)) = (&parts.stream, &parts.id) else {
            let text = "a shared limit takes only messages that were delivered from a stream";
            return Err(Error::new(ErrorKind::Invalid, text));
        };
        Ok(PermitRequest {
            stream: stream.clone(),
            key: format!("{}:{key}", self.name),
            holder: holder_name(id, parts.attempt),
            permits,
        })
    }
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Limit").field(&self.name).finish()
    }
}

/// A permit of a [`Limit`]. Dropping the permit returns it to the limit.
#[must_use = "a permit is returned when it is dropped"]
pub struct Permit {
    request: PermitRequest,
    store: Arc<dyn LimitStore>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.store.release(&self.request);
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}

/// The permits of a group's limits. Implemented by transports, for [`Limit`].
pub trait LimitStore: Send + Sync {
    /// Takes a permit. Returns `false` if all are taken. A holder that already has a permit gets
    /// the same permit again.
    fn acquire<'a>(&'a self, request: &'a PermitRequest) -> StoreFuture<'a, bool>;

    /// Takes back a permit, and gives it to the first message that is parked for its key. Must not
    /// block.
    fn release(&self, request: &PermitRequest);

    /// See [`Limit::book`].
    fn book<'a>(
        &'a self,
        request: &'a PermitRequest,
        period: Duration,
    ) -> StoreFuture<'a, Duration>;
}
