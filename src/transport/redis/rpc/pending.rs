//! Matches replies with the requests that wait for them.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

use foldhash::HashMap;
use uuid::Uuid;

use crate::{
    error::{Error, ErrorKind},
    message::{EscapedText, ReplyMode},
    reply::Reply,
    sync::lock,
    transport::{
        Counters, codec,
        redis::{error, ids::random_id, pipeline::CompletionHandler, response::Value},
    },
};

/// The requests that wait for replies, by correlation id.
pub(super) struct PendingRequests {
    table: Mutex<PendingTable>,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct PendingTable {
    requests: HashMap<Uuid, PendingRequest>,
    /// Set while the client is subscribed to its channel. Changed under the same lock as
    /// `requests`, so that no fast request is registered after the subscription was lost.
    is_subscribed: bool,
}

/// A pending request. It stays until its [`PendingReply`] is dropped.
struct PendingRequest {
    mode: ReplyMode,
    state: RequestState,
}

/// The state of a pending request.
enum RequestState {
    /// The request has no outcome yet. Contains the waker of the last poll.
    Waiting(Option<Waker>),
    /// The outcome, which the next poll takes.
    Answered(Result<Reply, Error>),
}

impl PendingRequest {
    fn is_waiting(&self) -> bool {
        matches!(self.state, RequestState::Waiting(_))
    }

    /// Stores the outcome of a waiting request. The caller must wake the returned waker.
    fn answer(&mut self, answer: Result<Reply, Error>) -> Option<Waker> {
        match std::mem::replace(&mut self.state, RequestState::Answered(answer)) {
            RequestState::Waiting(waker) => waker,
            RequestState::Answered(_) => None,
        }
    }
}

impl PendingRequests {
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        Self {
            table: Mutex::default(),
            counters,
        }
    }

    fn table(&self) -> MutexGuard<'_, PendingTable> {
        lock(&self.table)
    }

    /// Registers a new request. Returns `None` for a fast request while the client is not
    /// subscribed to its channel, because the reply would be lost.
    pub(super) fn register(self: &Arc<Self>, mode: ReplyMode) -> Option<PendingReply> {
        let id = random_id();
        let mut table = self.table();
        if mode == ReplyMode::Fast && !table.is_subscribed {
            return None;
        }
        let state = RequestState::Waiting(None);
        table.requests.insert(id, PendingRequest { mode, state });
        drop(table);
        Some(PendingReply {
            id,
            pending: self.clone(),
        })
    }

    /// Returns the number of requests that wait for replies.
    pub(super) fn count_waiting(&self) -> usize {
        let table = self.table();
        table.requests.values().filter(|it| it.is_waiting()).count()
    }

    /// Records that the client is subscribed to its channel.
    pub(super) fn mark_subscribed(&self) {
        self.table().is_subscribed = true;
    }

    /// Records that the subscription was lost. Fails the fast requests, because their replies may
    /// be lost.
    pub(super) fn mark_unsubscribed(&self) {
        let mut wakers = Vec::new();
        let mut table = self.table();
        table.is_subscribed = false;
        let requests = table.requests.values_mut();
        for request in requests.filter(|it| it.mode == ReplyMode::Fast && it.is_waiting()) {
            let error = Error::unknown_outcome(
                "the connection for replies was lost; the request may have been handled",
            );
            wakers.extend(request.answer(Err(error)));
        }
        drop(table);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Stores the outcome of a request and wakes its caller. Returns `true` if the request was
    /// waiting.
    fn answer(&self, id: Uuid, answer: Result<Reply, Error>) -> bool {
        let mut table = self.table();
        let request = table.requests.get_mut(&id);
        let Some(request) = request.filter(|request| request.is_waiting()) else {
            return false;
        };
        let waker = request.answer(answer);
        drop(table);
        waker.into_iter().for_each(Waker::wake);
        true
    }

    /// Decodes a reply and delivers it to its request. Counts the replies that cannot be decoded,
    /// and those whose request no longer waits.
    pub(super) fn resolve(&self, envelope: &[u8]) {
        let decoded = match codec::decode_reply(envelope) {
            Ok(decoded) => decoded,
            Err(reason) => {
                self.counters.bad_replies.increment();
                let reason = EscapedText::new(&reason);
                tracing::warn!(%reason, "dropped a reply that cannot be read");
                return;
            }
        };
        let id = Uuid::try_parse(&decoded.correlation_id);
        let answer = match decoded.answer {
            Ok(answer) => answer.map_err(Error::from),
            Err(reason) => {
                self.counters.bad_replies.increment();
                Err(Error::new(ErrorKind::Decode, reason))
            }
        };
        if !id.is_ok_and(|id| self.answer(id, answer)) {
            self.counters.stray_replies.increment();
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.table().requests.len()
    }
}

/// Receives the outcomes of the commands that send requests. The number of such a command, here
/// `id`, is the correlation id of its request.
impl CompletionHandler for PendingRequests {
    fn completed(&self, id: u128, outcome: Result<Value, Error>) {
        let Err(error) = outcome.and_then(error::check) else {
            return self.counters.sent.increment();
        };
        let id = Uuid::from_u128(id);
        let mode = self.table().requests.get(&id).map(|request| request.mode);
        // If the outcome of sending is unknown, the request may be on the stream. A worker would
        // then store the reply, so a reliable request keeps waiting.
        if !(error.is_unknown_outcome() && mode == Some(ReplyMode::Reliable)) {
            self.answer(id, Err(error));
        }
    }

    fn is_unwanted(&self, id: u128) -> bool {
        let table = self.table();
        let request = table.requests.get(&Uuid::from_u128(id));
        !request.is_some_and(PendingRequest::is_waiting)
    }
}

/// The future of the reply to a request. Dropping it removes the request.
pub(super) struct PendingReply {
    id: Uuid,
    pending: Arc<PendingRequests>,
}

impl PendingReply {
    /// Returns the request's correlation id.
    pub(super) fn id(&self) -> Uuid {
        self.id
    }
}

impl Future for PendingReply {
    type Output = Result<Reply, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut table = self.pending.table();
        let request = table.requests.get_mut(&self.id);
        let request = request.expect("it stays until its future is dropped");
        let waiting = RequestState::Waiting(Some(cx.waker().clone()));
        let before = std::mem::replace(&mut request.state, waiting);
        drop(table);
        match before {
            RequestState::Answered(answer) => Poll::Ready(answer),
            RequestState::Waiting(_) => Poll::Pending,
        }
    }
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        // Bound to a variable, so that the lock is released before the request is dropped.
        let request = self.pending.table().requests.remove(&self.id);
        drop(request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::RpcError;

    fn pending() -> (Arc<PendingRequests>, Arc<Counters>) {
        let counters = Arc::<Counters>::default();
        let pending = Arc::new(PendingRequests::new(counters.clone()));
        pending.mark_subscribed();
        (pending, counters)
    }

    #[tokio::test]
    async fn a_reply_finds_its_request_and_a_second_one_is_stray() {
        let (pending, counters) = pending();
        let reply = pending.register(ReplyMode::Fast).unwrap();
        let id = reply.id().to_string();
        let envelope = codec::encode_reply(&id, &Ok(Reply::new("yes")));
        pending.resolve(&envelope);
        pending.resolve(&envelope);
        assert_eq!(reply.await.unwrap().payload, "yes");
        assert_eq!(counters.snapshot().stray_replies, 1);
    }

    #[tokio::test]
    async fn an_error_reply_is_the_requests_error() {
        let (pending, _) = pending();
        let reply = pending.register(ReplyMode::Reliable).unwrap();
        let answer = Err(RpcError::not_found("nobody"));
        pending.resolve(&codec::encode_reply(&reply.id().to_string(), &answer));
        let error = reply.await.unwrap_err();
        assert_eq!(error.rpc(), answer.as_ref().err());
    }

    #[tokio::test]
    async fn a_body_that_is_not_base64_fails_the_request_that_it_names() {
        let (pending, counters) = pending();
        let reply = pending.register(ReplyMode::Fast).unwrap();
        let envelope = format!(
            r#"{{"correlation_id":"{}","body":"%%","error":""}}"#,
            reply.id()
        );
        pending.resolve(envelope.as_bytes());
        assert!(reply.await.unwrap_err().is_decode());
        assert_eq!(counters.snapshot().bad_replies, 1);
        assert_eq!(counters.snapshot().stray_replies, 0);
    }

    #[tokio::test]
    async fn a_gap_fails_fast_requests_and_leaves_reliable_ones() {
        let (pending, _) = pending();
        let fast = pending.register(ReplyMode::Fast).unwrap();
        let reliable = pending.register(ReplyMode::Reliable).unwrap();
        pending.mark_unsubscribed();
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
