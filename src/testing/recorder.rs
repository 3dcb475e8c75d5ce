//! A service that a test scripts, to replace the services that an application calls.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use tower::Service;

use super::{Expected, expected::miscount, record::Title};
use crate::{
    error::{BoxError, Error, RpcError},
    message::{Kind, Message, MessageId},
    reply::{IntoReply, Reply},
    sync::lock,
    transport,
};

type Answer = Result<Reply, Error>;
type Script = Arc<dyn Fn(Message) -> Option<Answer> + Send + Sync>;

/// A `Service<Message>` that records its calls and answers them from the scripts of a test. Use it
/// instead of the transport of a [`Client`](crate::Client), or instead of any other service.
///
/// A recorder has the error type of the transports, and refuses messages that every transport
/// refuses. Without a matching script, tasks and events succeed, and requests are answered with
/// `not_found`. Clones share their calls and scripts.
///
/// ```
/// use campanile::{Client, RpcError, testing::{Recorder, rpc}};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), campanile::Error> {
/// let bank = Recorder::new();
/// bank.fail_once(rpc("charge"), RpcError::unavailable("closed on Sundays"));
/// bank.reply_with(rpc("charge"), |_| "paid");
///
/// let client = Client::new(bank.clone());
/// assert!(client.request::<String>("charge", "5 EUR").await.is_err());
/// assert_eq!(client.request::<String>("charge", "5 EUR").await?, "paid");
///
/// bank.assert_called(rpc("charge").payload("5 EUR").times(2));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Recorder(Arc<Mutex<RecorderState>>);

#[derive(Default)]
struct RecorderState {
    calls: Vec<Message>,
    /// The scripts that answer one call each, the oldest first.
    once_scripts: VecDeque<(Expected, Answer)>,
    /// The scripts that answer any number of calls, the newest last.
    lasting_scripts: Vec<(Expected, Script)>,
}

impl Recorder {
    /// Creates a recorder without scripts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers one matching call with this reply. Scripts for one call are used before scripts for
    /// all calls, in the order in which they were added.
    pub fn reply_once(&self, expected: Expected, reply: impl IntoReply) -> &Self {
        let answer = reply.into_reply().map_err(Error::from_service);
        lock(&self.0).once_scripts.push_back((expected, answer));
        self
    }

    /// Fails one matching call with this error. An [`RpcError`] becomes an error reply, and an
    /// [`Error`] is returned as if the transport had failed. Any other error becomes the source of
    /// the returned [`Error`].
    pub fn fail_once(&self, expected: Expected, error: impl Into<BoxError>) -> &Self {
        self.reply_once(expected, Err::<(), _>(error.into()))
    }

    /// Answers all matching calls with the result of this function. If several scripts match, the
    /// newest one is used.
    pub fn reply_with<R: IntoReply>(
        &self,
        expected: Expected,
        reply: impl Fn(Message) -> R + Send + Sync + 'static,
    ) -> &Self {
        self.add_lasting_script(expected, move |message| {
            let answer = reply(message).into_reply();
            Some(answer.map_err(Error::from_service))
        })
    }

    /// Leaves matching calls without an answer: the caller waits until its own timeout.
    pub fn stay_silent(&self, expected: Expected) -> &Self {
        self.add_lasting_script(expected, |_| None)
    }

    fn add_lasting_script(
        &self,
        expected: Expected,
        script: impl Fn(Message) -> Option<Answer> + Send + Sync + 'static,
    ) -> &Self {
        lock(&self.0)
            .lasting_scripts
            .push((expected, Arc::new(script)));
        self
    }

    /// Returns all calls, in order.
    pub fn calls(&self) -> Vec<Message> {
        lock(&self.0).calls.clone()
    }

    /// Asserts that there were matching calls, and returns them.
    ///
    /// # Panics
    /// If there were no matching calls, or not the expected number. The text lists all calls.
    #[track_caller]
    pub fn assert_called(&self, expected: Expected) -> Vec<Message> {
        let calls = self.calls();
        let found: Vec<_> = calls
            .iter()
            .filter(|call| is_match(&expected, call))
            .cloned()
            .collect();
        if let Some(miscount) = miscount("called", expected.times, found.len()) {
            panic!("{expected} {miscount}\n\n{}", Calls(&calls, &expected));
        }
        found
    }

    fn answer(&self, message: Message) -> Option<Answer> {
        if let Err(error) = transport::check(message.parts()) {
            return Some(Err(error));
        }
        let mut state = lock(&self.0);
        state.calls.push(message.clone());
        let call_number = state.calls.len();
        let once_scripts = &mut state.once_scripts;
        if let Some(at) = once_scripts
            .iter()
            .position(|(expected, _)| is_match(expected, &message))
        {
            return once_scripts.remove(at).map(|(_, answer)| answer);
        }
        let mut newest_first = state.lasting_scripts.iter().rev();
        let script = newest_first.find(|(expected, _)| is_match(expected, &message));
        let script = script.map(|(_, script)| Arc::clone(script));
        // Releases the lock, because the script may use the recorder.
        drop(state);
        match script {
            Some(script) => script(message),
            None => Some(default_answer(&message, call_number)),
        }
    }
}

fn is_match(expected: &Expected, message: &Message) -> bool {
    expected.is_about(Some(message)) && expected.difference_in(Some(message)).is_none()
}

fn default_answer(message: &Message, call_number: usize) -> Answer {
    match message.kind() {
        Kind::Task => Ok(Reply::accepted(MessageId::from(format!(
            "recorded-{call_number}"
        )))),
        Kind::Event => Ok(Reply::default()),
        Kind::Rpc => {
            let text = format!(
                "the recorder was not told what to answer to `{}`",
                message.name()
            );
            Err(RpcError::not_found(text).into())
        }
    }
}

impl Service<Message> for Recorder {
    type Response = Reply;
    type Error = Error;
    type Future = RecorderFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, message: Message) -> RecorderFuture {
        RecorderFuture(self.answer(message))
    }
}

/// The future of a [`Recorder`]. It is ready at once, or never if the script has no answer.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct RecorderFuture(Option<Answer>);

impl Future for RecorderFuture {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Answer> {
        self.0.take().map_or(Poll::Pending, Poll::Ready)
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.0);
        f.debug_struct("Recorder")
            .field("calls", &state.calls.len())
            .finish_non_exhaustive()
    }
}

/// Displays each call on one line, and the first difference from the expected calls.
struct Calls<'a>(&'a [Message], &'a Expected);

impl fmt::Display for Calls<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(calls, expected) = self;
        if calls.is_empty() {
            return f.write_str("there were no calls");
        }
        f.write_str("what was called:")?;
        for call in *calls {
            write!(f, "\n  {}", Title(call))?;
            if expected.is_about(Some(call)) {
                let difference = expected.difference_in(Some(call));
                write!(f, "   <- {}", difference.unwrap_or("this is one"))?;
            }
        }
        Ok(())
    }
}
