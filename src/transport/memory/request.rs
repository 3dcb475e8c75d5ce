//! The requests that wait for replies, and the future of a call.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use pin_project::{pin_project, pinned_drop};
use tokio::{
    sync::oneshot,
    time::{Sleep, sleep_until},
};
use uuid::Uuid;

use crate::{
    error::{Error, ErrorKind},
    message::{Deadline, EscapedText, Name},
    reply::Reply,
    sync::lock,
    transport::{Counters, codec},
};

/// The outcome of a call.
type Outcome = Result<Reply, Error>;

/// The requests of a broker that wait for replies. All handles of a broker act as one client.
#[derive(Debug)]
pub(super) struct Requests {
    client_id: String,
    waiting: Mutex<HashMap<Uuid, oneshot::Sender<Outcome>>>,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            client_id: Uuid::new_v4().to_string(),
            waiting: Mutex::default(),
        }
    }
}

impl Requests {
    /// Returns the id of the client.
    pub(super) fn client_id(&self) -> &str {
        &self.client_id
    }

    /// Returns the reply channel of the client.
    pub(super) fn reply_to(&self) -> String {
        format!("{}{}", codec::REPLY_PREFIX, self.client_id)
    }

    /// Returns `true` if replies may be sent to this channel.
    pub(super) fn is_allowed(address: &Bytes) -> bool {
        [codec::REPLY_PREFIX, codec::GO_REPLY_PREFIX]
            .iter()
            .any(|prefix| address.starts_with(prefix.as_bytes()))
    }

    fn register(&self, id: Uuid) -> oneshot::Receiver<Outcome> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.waiting).insert(id, sender);
        receiver
    }

    /// Decodes a reply, and completes its request.
    pub(super) fn receive(&self, envelope: &[u8], counters: &Counters) {
        let decoded = match codec::decode_reply(envelope) {
            Ok(decoded) => decoded,
            Err(reason) => {
                counters.bad_replies.increment();
                let reason = EscapedText::new(&reason);
                tracing::warn!(%reason, "a reply could not be decoded");
                return;
            }
        };
        let waiting = Uuid::try_parse(&decoded.correlation_id)
            .ok()
            .and_then(|id| lock(&self.waiting).remove(&id));
        let Some(waiting) = waiting else {
            counters.stray_replies.increment();
            let id = EscapedText::new(&decoded.correlation_id);
            tracing::debug!(%id, "no request waits for this reply");
            return;
        };
        let outcome = match decoded.answer {
            Ok(reply) => reply.map_err(Error::from),
            Err(reason) => {
                counters.bad_replies.increment();
                Err(Error::new(ErrorKind::Decode, reason))
            }
        };
        // The send fails if the caller has dropped the future of the request.
        if waiting.send(outcome).is_err() {
            counters.stray_replies.increment();
        }
    }

    /// Returns the number of waiting requests.
    pub(super) fn len(&self) -> usize {
        lock(&self.waiting).len()
    }
}

/// The future of a call on [`Memory`](super::Memory).
///
/// The call itself sends the message. The future of a request waits for the reply, and dropping the
/// future only ends this wait. There is one exception: a message that [waits for
/// room](crate::transport::WhenFull::Wait) is sent by the future.
#[must_use = "futures do nothing unless polled"]
#[pin_project]
pub struct ResponseFuture(#[pin] ResponseState);

#[pin_project(project = ResponseStateProjection)]
enum ResponseState {
    /// The outcome of a message without a reply, or of a message that could not be sent.
    Sent(Option<Outcome>),
    /// A request that waits for its reply.
    Waiting(#[pin] WaitingRequest),
    /// A message that waits for room.
    Boxed(Pin<Box<dyn Future<Output = Outcome> + Send>>),
}

#[pin_project(PinnedDrop)]
struct WaitingRequest {
    requests: Arc<Requests>,
    id: Uuid,
    name: Name,
    reply: oneshot::Receiver<Outcome>,
    #[pin]
    timer: Sleep,
}

impl ResponseFuture {
    pub(super) fn sent(outcome: Outcome) -> Self {
        Self(ResponseState::Sent(Some(outcome)))
    }

    pub(super) fn boxed(sending: impl Future<Output = Outcome> + Send + 'static) -> Self {
        Self(ResponseState::Boxed(Box::pin(sending)))
    }

    /// Registers a request, and returns the future of its reply. The caller sends the request
    /// afterwards, so that the reply finds the request registered.
    pub(super) fn waiting(
        requests: Arc<Requests>,
        id: Uuid,
        name: Name,
        deadline: Deadline,
    ) -> Self {
        let reply = requests.register(id);
        Self(ResponseState::Waiting(WaitingRequest {
            requests,
            id,
            name,
            reply,
            timer: sleep_until(deadline.0),
        }))
    }
}

impl Future for ResponseFuture {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        match self.project().0.project() {
            ResponseStateProjection::Sent(outcome) => {
                Poll::Ready(outcome.take().expect("polled after it was complete"))
            }
            ResponseStateProjection::Waiting(waiting) => waiting.poll(cx),
            ResponseStateProjection::Boxed(sending) => sending.as_mut().poll(cx),
        }
    }
}

impl Future for WaitingRequest {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let this = self.project();
        // The reply is polled before the timer, so a reply that has arrived in time counts.
        if let Poll::Ready(reply) = Pin::new(this.reply).poll(cx) {
            return Poll::Ready(reply.unwrap_or_else(|_| Err(Error::closed())));
        }
        ready!(this.timer.poll(cx));
        Poll::Ready(Err(Error::new(
            ErrorKind::Timeout,
            format!("no reply to the request `{}` in time", this.name),
        )))
    }
}

#[pinned_drop]
impl PinnedDrop for WaitingRequest {
    fn drop(self: Pin<&mut Self>) {
        lock(&self.requests.waiting).remove(&self.id);
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tower::{Service, ServiceExt};

    use super::*;
    use crate::{
        message::Message,
        transport::{Interest, Source, Transport, Verdict, memory::Memory},
    };

    #[tokio::test]
    async fn a_dropped_request_is_removed_at_once_and_its_reply_is_stray() {
        let mut memory = Memory::new();
        let mut worker = memory.clone().open(Interest::stream()).await.unwrap();
        let request = memory.call(Message::rpc("user.get", "{}"));
        assert_eq!(memory.broker.context.requests.len(), 1);
        drop(request);
        assert_eq!(memory.broker.context.requests.len(), 0);
        let delivery = worker.next(1).await.unwrap().remove(0);
        let verdict = Verdict::Done(Ok(Reply::default()));
        delivery.settle(verdict).await.unwrap();
        assert_eq!(memory.counts().stray_replies, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_expired_request_is_removed() {
        let memory = Memory::new();
        let error = memory.clone().oneshot(Message::rpc("a", "")).await;
        assert!(error.unwrap_err().is_timeout());
        assert_eq!(memory.broker.context.requests.len(), 0);
    }

    #[test]
    fn malformed_and_stray_replies_are_counted() {
        let (requests, counters) = (Requests::default(), Counters::default());
        requests.receive(b"not an envelope", &counters);
        let stranger = codec::encode_reply("vm-7", &Ok(Reply::default()));
        requests.receive(&stranger, &counters);
        let id = Uuid::new_v4();
        let mut waiting = requests.register(id);
        let bad = format!(r#"{{"correlation_id":"{id}","body":"***","error":""}}"#);
        requests.receive(bad.as_bytes(), &counters);
        assert!(waiting.try_recv().unwrap().unwrap_err().is_decode());
        let counts = counters.snapshot();
        assert_eq!((counts.bad_replies, counts.stray_replies), (2, 1));
    }
}
