//! Tests of HTTP services as message services, and of the reverse. The tests that need axum or
//! tower-http are in `examples/axum`.

mod backlogs;
mod faults;
mod gateway;
mod handler;
mod mistakes;

use std::{
    collections::VecDeque,
    future::{Future, pending},
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use campanile::{BoxError, Kind, Message, MessageId, Reply, SharedService, http_bridge::Gateway};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tower::{Service, service_fn};

/// A body of several chunks, which may break off.
struct Pieces(VecDeque<io::Result<&'static str>>);

impl Pieces {
    fn new(pieces: impl IntoIterator<Item = &'static str>) -> Self {
        Self(pieces.into_iter().map(Ok).collect())
    }

    fn then_broken(mut self) -> Self {
        self.0.push_back(Err(io::Error::other("password=1")));
        self
    }
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let piece = self.0.pop_front();
        Poll::Ready(piece.map(|piece| Ok(Frame::data(Bytes::from_static(piece?.as_bytes())))))
    }
}

/// A service that accepts every message as a transport would, and keeps it.
#[derive(Clone, Default)]
struct Taken(Arc<Mutex<Vec<Message>>>);

impl Taken {
    fn service(&self) -> impl SharedService {
        let taken = self.0.clone();
        service_fn(move |message: Message| {
            let kind = message.kind();
            taken.lock().unwrap().push(message);
            async move {
                Ok::<_, BoxError>(match kind {
                    Kind::Task => Reply::accepted(MessageId::from("7-0")),
                    Kind::Event => Reply::default(),
                    Kind::Rpc => Reply::new("pong"),
                })
            }
        })
    }

    /// A gateway in front of the service, with a route of each kind.
    fn gateway(&self) -> Gateway<impl SharedService> {
        Gateway::new(self.service())
            .task("orders.create")
            .event("orders.events")
            .rpc("ping")
    }

    /// The only message that was accepted.
    fn one(&self) -> Message {
        let mut taken = self.0.lock().unwrap();
        assert_eq!(taken.len(), 1);
        taken.remove(0)
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn assert_none(&self) {
        assert!(self.0.lock().unwrap().is_empty(), "a message was sent");
    }
}

async fn text<B: http_body::Body<Error: std::fmt::Debug>>(body: B) -> String {
    let bytes = body.collect().await.expect("the whole body").to_bytes();
    String::from_utf8(bytes.into()).expect("valid UTF-8")
}

/// A service that never answers, and a channel with a token for each call. The token is cancelled
/// when the call's future is dropped.
fn endless<T, R: 'static>() -> (
    impl Service<T, Response = R, Error = BoxError, Future: Send + 'static>
    + Clone
    + Send
    + Sync
    + 'static,
    mpsc::UnboundedReceiver<CancellationToken>,
)
where
    T: Send + 'static,
{
    let (send, calls) = mpsc::unbounded_channel();
    let service = service_fn(move |_: T| {
        let dropped = CancellationToken::new();
        send.send(dropped.clone()).expect("the test still listens");
        let guard = dropped.drop_guard();
        async move {
            let _guard = guard;
            pending().await
        }
    });
    (service, calls)
}

/// Waits for the call of an [`endless`] service to begin, and polls `work` meanwhile.
async fn begun<F: Future + Unpin>(
    work: &mut F,
    calls: &mut mpsc::UnboundedReceiver<CancellationToken>,
) -> CancellationToken {
    tokio::select! {
        biased;
        _ = work => panic!("the work ended before its call began"),
        call = calls.recv() => call.expect("the service exists"),
    }
}
