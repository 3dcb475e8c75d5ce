//! The requests that wait for a reply.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
};

use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{
    error::{Error, ErrorKind},
    message::ReplyMode,
    reply::Reply,
    sync::lock,
    transport::{Counters, codec, redis::unique::unique},
};

/// The requests that wait for a reply, by their correlation ids.
pub(super) struct Pending {
    table: Mutex<Table>,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Table {
    waiting: HashMap<Uuid, Waiting>,
    /// Whether the channel is subscribed to. Kept under the same lock as the requests, so that none
    /// starts to wait for a reply that nobody would hear.
    subscribed: bool,
}

struct Waiting {
    mode: ReplyMode,
    answer: oneshot::Sender<Result<Reply, Error>>,
}

impl Pending {
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        Self {
            table: Mutex::default(),
            counters,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// A place for a new request. `None` for a fast one when its reply would not be heard.
    pub(super) fn register(self: &Arc<Self>, mode: ReplyMode) -> Option<Place> {
        let id = unique();
        let (answer, answered) = oneshot::channel();
        let mut table = self.table();
        if mode == ReplyMode::Fast && !table.subscribed {
            return None;
        }
        table.waiting.insert(id, Waiting { mode, answer });
        drop(table);
        Some(Place {
            id,
            pending: self.clone(),
            answered,
        })
    }

    /// The channel is subscribed to.
    pub(super) fn subscribed(&self) {
        self.table().subscribed = true;
    }

    /// The subscription was lost, and what is published now is not heard: fast requests fail.
    pub(super) fn unsubscribed(&self) {
        let mut lost = Vec::new();
        let mut table = self.table();
        table.subscribed = false;
        for (_, waiting) in table
            .waiting
            .extract_if(|_, waiting| waiting.mode == ReplyMode::Fast)
        {
            lost.push(waiting.answer);
        }
        drop(table);
        for answer in lost {
            let _ = answer.send(Err(Error::unknown_outcome(
                "the connection for replies was lost; the request may have been handled",
            )));
        }
    }

    /// Whether somebody waits for this reply.
    pub(super) fn waits(&self, id: Uuid) -> bool {
        self.table().waiting.contains_key(&id)
    }

    /// There will be no reply to this request, if it still waits for one.
    pub(super) fn fail(&self, id: Uuid, error: Error) {
        let waiting = self.table().waiting.remove(&id);
        if let Some(waiting) = waiting {
            let _ = waiting.answer.send(Err(error));
        }
    }

    /// Hands a reply to its request.
    pub(super) fn resolve(&self, envelope: &[u8]) {
        let decoded = match codec::decode_reply(envelope) {
            Ok(decoded) => decoded,
            Err(reason) => {
                self.counters.bad_replies.increment();
                tracing::warn!(reason, "dropped a reply that cannot be read");
                return;
            }
        };
        let waiting = Uuid::try_parse(&decoded.correlation_id)
            .ok()
            .and_then(|id| self.table().waiting.remove(&id));
        let answer = match decoded.answer {
            Ok(answer) => answer.map_err(Error::from),
            Err(reason) => {
                self.counters.bad_replies.increment();
                Err(Error::new(ErrorKind::Decode, reason))
            }
        };
        if waiting.is_none_or(|waiting| waiting.answer.send(answer).is_err()) {
            self.counters.stray_replies.increment();
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.table().waiting.len()
    }
}

/// A request's place among those that wait; dropping it frees it. The future of its reply.
pub(super) struct Place {
    id: Uuid,
    pending: Arc<Pending>,
    answered: oneshot::Receiver<Result<Reply, Error>>,
}

impl Place {
    /// The request's correlation id.
    pub(super) fn id(&self) -> Uuid {
        self.id
    }
}

impl Future for Place {
    type Output = Result<Reply, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answered)
            .poll(cx)
            .map(|answer| answer.unwrap_or_else(|_| Err(Error::closed())))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pending.table().waiting.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::RpcError;

    fn pending() -> (Arc<Pending>, Arc<Counters>) {
        let counters = Arc::<Counters>::default();
        let pending = Arc::new(Pending::new(counters.clone()));
        pending.subscribed();
        (pending, counters)
    }

    #[tokio::test]
    async fn a_reply_finds_its_request_and_a_second_one_is_stray() {
        let (pending, counters) = pending();
        let place = pending.register(ReplyMode::Fast).unwrap();
        let id = place.id().to_string();
        let envelope = codec::encode_reply(&id, &Ok(Reply::new("yes")));
        pending.resolve(&envelope);
        pending.resolve(&envelope);
        assert_eq!(place.await.unwrap().payload, "yes");
        assert_eq!(counters.snapshot().stray_replies, 1);
    }

    #[tokio::test]
    async fn an_error_reply_is_the_requests_error() {
        let (pending, _) = pending();
        let place = pending.register(ReplyMode::Reliable).unwrap();
        let answer = Err(RpcError::not_found("nobody"));
        pending.resolve(&codec::encode_reply(&place.id().to_string(), &answer));
        let error = place.await.unwrap_err();
        assert_eq!(error.rpc(), answer.as_ref().err());
    }

    #[tokio::test]
    async fn a_body_that_is_not_base64_fails_the_request_that_it_names() {
        let (pending, counters) = pending();
        let place = pending.register(ReplyMode::Fast).unwrap();
        let envelope = format!(
            r#"{{"correlation_id":"{}","body":"%%","error":""}}"#,
            place.id()
        );
        pending.resolve(envelope.as_bytes());
        assert!(place.await.unwrap_err().is_decode());
        assert_eq!(counters.snapshot().bad_replies, 1);
        assert_eq!(counters.snapshot().stray_replies, 0);
    }

    #[tokio::test]
    async fn a_gap_fails_fast_requests_and_leaves_reliable_ones() {
        let (pending, _) = pending();
        let fast = pending.register(ReplyMode::Fast).unwrap();
        let reliable = pending.register(ReplyMode::Reliable).unwrap();
        pending.unsubscribed();
        assert!(fast.await.unwrap_err().is_unknown_outcome());
        assert!(pending.register(ReplyMode::Fast).is_none());
        let envelope = codec::encode_reply(&reliable.id().to_string(), &Ok(Reply::new("")));
        pending.resolve(&envelope);
        assert!(reliable.await.is_ok());
    }

    #[test]
    fn ten_thousand_dropped_requests_leave_nothing() {
        let (pending, _) = pending();
        for _ in 0..10_000 {
            drop(pending.register(ReplyMode::Reliable));
        }
        assert_eq!(pending.len(), 0);
    }
}
