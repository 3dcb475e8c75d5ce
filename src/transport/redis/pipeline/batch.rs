//! Commands that travel together, and who is told what the server says to each.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Listener, Outcome, Retry};
use crate::transport::redis::scripts::Script;
use crate::{
    error::Error,
    sync::{Places, Waiter},
    transport::redis::{
        connection::{Commands, Encode},
        error,
        response::Value,
    },
};

/// How many commands a batch holds at most.
pub(super) const COMMANDS: usize = 512;
/// Past how many bytes a batch takes no further command.
pub(super) const BYTES: usize = 1 << 20;

/// Commands in their order, and who is told.
pub(super) struct Batch {
    commands: Commands,
    /// What is known about each.
    requests: Vec<Request>,
    /// Where those wait who asked, once there is one.
    askers: Option<Arc<Places<Outcome>>>,
    /// When it fails if it has not been sent by then. Set where it first has to wait, as a batch of
    /// one.
    pub(super) give_up: Option<Instant>,
    /// On how many connections in a row, which the server closed, it was the first without an answer.
    /// Counted for a batch of one.
    pub(super) closed_at: u32,
}

/// What is known about one command.
struct Request {
    retry: Retry,
    /// What it calls, if that is a script: the server may have to be told its text.
    script: Option<&'static Script>,
    answer: Answer,
}

/// Who is told what a command has come to.
enum Answer {
    /// Whoever waits at this place.
    Asker(usize),
    /// What acts on it without waiting for it, and knows it by this number: nobody is woken.
    Listener(Arc<dyn Listener>, u128),
    /// Nobody any more.
    Told,
}

/// What a batch is made of, to be used again.
#[derive(Default)]
pub(super) struct Buffers {
    commands: Commands,
    requests: Vec<Request>,
}

impl Batch {
    pub(super) fn new(Buffers { commands, requests }: Buffers) -> Self {
        Self {
            commands,
            requests,
            askers: None,
            give_up: None,
            closed_at: 0,
        }
    }

    /// Adds a command whose answer is waited for.
    pub(super) fn ask(
        &mut self,
        command: impl Encode,
        retry: Retry,
        script: Option<&'static Script>,
    ) -> Waiter<Outcome> {
        let askers = (self.askers).get_or_insert_with(|| Arc::new(Places::with_capacity(1)));
        let waiter = askers.enter();
        self.push(command, retry, script, Answer::Asker(waiter.place()));
        waiter
    }

    /// Adds a command whose answer is listened to.
    pub(super) fn post(
        &mut self,
        command: impl Encode,
        retry: Retry,
        listener: Arc<dyn Listener>,
        number: u128,
    ) {
        self.push(command, retry, None, Answer::Listener(listener, number));
    }

    fn push(
        &mut self,
        command: impl Encode,
        retry: Retry,
        script: Option<&'static Script>,
        answer: Answer,
    ) {
        self.commands.push(command);
        self.requests.push(Request {
            retry,
            script,
            answer,
        });
    }

    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.commands.bytes()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= COMMANDS || self.bytes() >= BYTES
    }

    pub(super) fn retry(&self, place: usize) -> Retry {
        self.requests[place].retry
    }

    pub(super) fn script(&self, place: usize) -> Option<&'static Script> {
        self.requests[place].script
    }

    /// Each command, as it is sent.
    pub(super) fn commands(&self) -> impl Iterator<Item = &[u8]> {
        self.commands.iter()
    }

    /// Whether somebody is interested in what this command comes to.
    pub(super) fn is_wanted(&self, place: usize) -> bool {
        match &self.requests[place].answer {
            Answer::Asker(place) => (self.askers.as_ref()).is_some_and(|it| it.is_taken(*place)),
            Answer::Listener(listener, number) => !listener.is_gone(*number),
            Answer::Told => false,
        }
    }

    /// Leaves out what would be sent once and nobody is interested in any more; `None` where that is
    /// all.
    pub(super) fn wanted(mut self) -> Option<Self> {
        let complete = self.askers.as_ref().is_none_or(|it| it.are_complete());
        let is_unwanted = |batch: &Self, place: usize| {
            let request = &batch.requests[place];
            let asked = matches!(request.answer, Answer::Asker(_));
            request.retry == Retry::Never && !(complete && asked) && !batch.is_wanted(place)
        };
        if !(0..self.len()).any(|place| is_unwanted(&self, place)) {
            return (self.len() > 0).then_some(self);
        }
        let mut rest = self.like();
        for place in 0..self.len() {
            if !is_unwanted(&self, place) {
                rest.take_over(&mut self, place);
            }
        }
        (rest.len() > 0).then_some(rest)
    }

    /// One command as a batch of its own; here nobody is told any more what it comes to.
    pub(super) fn take(&mut self, place: usize) -> Self {
        let mut one = self.like();
        one.take_over(self, place);
        one
    }

    /// An empty one for commands of this one.
    fn like(&self) -> Self {
        let mut like = Self::new(Buffers::default());
        like.askers.clone_from(&self.askers);
        like.give_up = self.give_up;
        like.closed_at = self.closed_at;
        like
    }

    fn take_over(&mut self, other: &mut Self, place: usize) {
        let request = &mut other.requests[place];
        let answer = std::mem::replace(&mut request.answer, Answer::Told);
        let (retry, script) = (request.retry, request.script);
        self.push(other.commands.get(place), retry, script, answer);
    }

    /// Puts the text of its script in place of the script's hash, in a batch of one.
    pub(super) fn with_text(mut self, script: &Script) -> Self {
        let call = script.with_text(self.commands.get(0));
        self.commands.clear();
        self.commands.push(&call[..]);
        // A server that does not know that one either is not asked again.
        self.requests[0].script = None;
        self
    }

    /// Hands out what the server has said to the first commands.
    pub(super) fn tell(&mut self, mut answers: Vec<Value>) {
        for (request, answer) in self.requests.iter_mut().zip(&mut answers) {
            if let Answer::Listener(listener, number) = &request.answer {
                listener.answered(*number, Ok(std::mem::take(answer)));
                request.answer = Answer::Told;
            }
        }
        let Some(askers) = &self.askers else { return };
        let told = self.requests.iter_mut().zip(answers);
        askers.tell(told.filter_map(|(request, answer)| {
            match std::mem::replace(&mut request.answer, Answer::Told) {
                Answer::Asker(place) => Some((place, Ok(answer))),
                _ => None,
            }
        }));
    }

    /// Tells all who were not told that there is no answer.
    pub(super) fn fail(&mut self, error: impl Fn() -> Error) {
        for request in &mut self.requests {
            match (&request.answer, &self.askers) {
                (Answer::Asker(place), Some(askers)) => askers.tell([(*place, Err(error()))]),
                (Answer::Listener(listener, number), _) => {
                    listener.answered(*number, Err(error()));
                }
                _ => {}
            }
            request.answer = Answer::Told;
        }
    }

    /// What it was made of, empty, for another one.
    pub(super) fn buffers(mut self) -> Buffers {
        self.fail(error::runtime_ended);
        let mut buffers = Buffers {
            commands: std::mem::take(&mut self.commands),
            requests: std::mem::take(&mut self.requests),
        };
        buffers.commands.clear();
        buffers.requests.clear();
        buffers
    }
}

impl Buffers {
    /// How many bytes there is room for.
    pub(super) fn capacity(&self) -> usize {
        self.commands.capacity()
    }
}

impl Drop for Batch {
    /// Nobody waits for what does not come any more.
    fn drop(&mut self) {
        self.fail(error::runtime_ended);
    }
}
