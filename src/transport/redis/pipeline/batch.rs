//! Batches of commands that are sent together, with a completion for each command.

use std::sync::Arc;

use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{CompletionHandler, Outcome, Resend, queue::CommandAdmission};
use crate::transport::redis::scripts::Script;
use crate::{
    error::Error,
    message::Replicas,
    sync::{Completion, CompletionSlab},
    transport::redis::{
        connection::{Commands, Encode},
        error,
        response::Value,
        server::HashSlot,
    },
};

/// The maximum number of commands in a batch.
pub(super) const MAX_BATCH_COMMANDS: usize = 512;
/// A batch of this many bytes takes no further command.
pub(super) const MAX_BATCH_BYTES: usize = 1 << 20;

/// Encoded commands, in the order in which they are sent, with their permits.
pub(super) struct CommandBatch {
    commands: Commands,
    queued: Vec<QueuedCommand>,
    /// The completions of callers; `None` until a caller waits.
    completions: Option<Arc<CompletionSlab<Outcome>>>,
    /// Released when the batch is dropped.
    permits: Option<OwnedSemaphorePermit>,
    /// The time at which the batch fails, if it is not sent before. Set in a batch of one command
    /// when it first has to wait for a connection.
    pub(super) give_up_at: Option<Instant>,
    /// The number of connections in a row that the server closed while this command was the oldest
    /// one without a response. Counted in a batch of one command.
    pub(super) closed_connections: u32,
    /// The number of times in a row that a node of a cluster has redirected the command. Counted in
    /// a batch of one command.
    pub(super) redirections: u32,
    /// Set if a node of a cluster has responded with `ASK`, so that the command is sent after an
    /// `ASKING`.
    pub(super) is_asking: bool,
    /// The replicas that have to confirm the batch's commands.
    pub(super) replicas: Option<Replicas>,
}

/// The state of a queued command. Its bytes are in `CommandBatch::commands`.
struct QueuedCommand {
    resend: Resend,
    /// The script that the command calls by its hash, which the server may not know yet.
    script: Option<&'static Script>,
    admission: CommandAdmission,
    recipient: Recipient,
}

/// The recipient of a command's response.
enum Recipient {
    /// The caller with the completion at this index.
    Completion(usize),
    /// A handler, which knows the command by this number. No task is woken.
    Handler(Arc<dyn CompletionHandler>, u128),
    /// No recipient: the response was delivered, the command has moved to another batch, or it is
    /// an `ASKING`.
    Nobody,
}

/// The buffers of a batch, for reuse.
#[derive(Default)]
pub(super) struct Buffers {
    commands: Commands,
    queued: Vec<QueuedCommand>,
}

impl CommandBatch {
    pub(super) fn new(Buffers { commands, queued }: Buffers) -> Self {
        Self {
            commands,
            queued,
            completions: None,
            permits: None,
            give_up_at: None,
            closed_connections: 0,
            redirections: 0,
            is_asking: false,
            replicas: None,
        }
    }

    /// Makes a batch of one command that the pipeline itself sends. The command needs no permit,
    /// and is not sent again.
    pub(super) fn single(command: impl Encode) -> (Self, Completion<Outcome>) {
        let mut batch = Self::new(Buffers::default());
        let admission = CommandAdmission {
            permits: 0,
            submitted: Instant::now(),
            slot: HashSlot::ANY,
        };
        let completion = batch.push_awaited(command, Resend::Never, None, admission);
        (batch, completion)
    }

    /// Adds a command whose caller waits for the response.
    pub(super) fn push_awaited(
        &mut self,
        command: impl Encode,
        resend: Resend,
        script: Option<&'static Script>,
        admission: CommandAdmission,
    ) -> Completion<Outcome> {
        let slab =
            (self.completions).get_or_insert_with(|| Arc::new(CompletionSlab::with_capacity(1)));
        let completion = slab.insert();
        self.push(
            command,
            QueuedCommand {
                resend,
                script,
                admission,
                recipient: Recipient::Completion(completion.index()),
            },
        );
        completion
    }

    /// Adds a command whose response goes to a handler.
    pub(super) fn push_with_handler(
        &mut self,
        command: impl Encode,
        resend: Resend,
        (handler, number): (Arc<dyn CompletionHandler>, u128),
        admission: CommandAdmission,
    ) {
        self.push(
            command,
            QueuedCommand {
                resend,
                script: None,
                admission,
                recipient: Recipient::Handler(handler, number),
            },
        );
    }

    /// Requires that replicas confirm the batch's commands, in addition to earlier requirements.
    pub(super) fn require_replicas(&mut self, replicas: Replicas) {
        self.replicas = Some(self.replicas.map_or(replicas, |it| it.and(replicas)));
    }

    fn push(&mut self, command: impl Encode, queued: QueuedCommand) {
        self.commands.push(command);
        self.queued.push(queued);
    }

    /// Keeps a command's permits until the batch is dropped.
    pub(super) fn hold_permit(&mut self, permit: OwnedSemaphorePermit) {
        match &mut self.permits {
            Some(permits) => permits.merge(permit),
            none => *none = Some(permit),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.queued.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.commands.bytes()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= MAX_BATCH_COMMANDS || self.bytes() >= MAX_BATCH_BYTES
    }

    pub(super) fn resend(&self, index: usize) -> Resend {
        self.queued[index].resend
    }

    pub(super) fn script(&self, index: usize) -> Option<&'static Script> {
        self.queued[index].script
    }

    /// Returns the time from which a command's time limits count.
    pub(super) fn submitted(&self, index: usize) -> Instant {
        self.queued[index].admission.submitted
    }

    /// Returns the slot of a command's keys.
    pub(super) fn slot(&self, index: usize) -> HashSlot {
        self.queued[index].admission.slot
    }

    /// Returns the encoded commands.
    pub(super) fn commands(&self) -> impl Iterator<Item = &[u8]> {
        self.commands.iter()
    }

    /// Returns `true` if the recipient still wants the response to this command.
    pub(super) fn is_wanted(&self, index: usize) -> bool {
        match &self.queued[index].recipient {
            Recipient::Completion(index) => {
                (self.completions.as_ref()).is_some_and(|it| it.is_pending(*index))
            }
            Recipient::Handler(handler, number) => !handler.is_unwanted(*number),
            Recipient::Nobody => false,
        }
    }

    /// Drops commands that are sent at most once and whose response is no longer wanted. `None` if
    /// nothing is left.
    pub(super) fn into_wanted(mut self) -> Option<Self> {
        // While all callers wait, their completions need not be checked one by one.
        let all_wait = (self.completions.as_ref()).is_none_or(|it| it.are_all_wanted());
        let is_unwanted = |batch: &Self, index: usize| {
            let queued = &batch.queued[index];
            let waits = all_wait && matches!(queued.recipient, Recipient::Completion(_));
            queued.resend == Resend::Never && !waits && !batch.is_wanted(index)
        };
        if !(0..self.len()).any(|index| is_unwanted(&self, index)) {
            return (self.len() > 0).then_some(self);
        }
        let mut rest = self.empty_like();
        for index in 0..self.len() {
            if !is_unwanted(&self, index) {
                rest.move_from(&mut self, index);
            }
        }
        (rest.len() > 0).then_some(rest)
    }

    /// Moves a command, with its permits, to a batch of one command.
    pub(super) fn take(&mut self, index: usize) -> Self {
        let mut one = self.empty_like();
        one.move_from(self, index);
        one
    }

    /// Makes an empty batch with the same state, for commands of this batch.
    fn empty_like(&self) -> Self {
        let mut empty = Self::new(Buffers::default());
        empty.completions.clone_from(&self.completions);
        empty.give_up_at = self.give_up_at;
        empty.closed_connections = self.closed_connections;
        empty.redirections = self.redirections;
        empty.is_asking = self.is_asking;
        empty.replicas = self.replicas;
        empty
    }

    /// Moves a command of another batch, with its permits, to this batch.
    fn move_from(&mut self, other: &mut Self, index: usize) {
        let queued = &mut other.queued[index];
        let moved = QueuedCommand {
            resend: queued.resend,
            script: queued.script,
            admission: queued.admission,
            recipient: std::mem::replace(&mut queued.recipient, Recipient::Nobody),
        };
        let permits = std::mem::take(&mut queued.admission.permits);
        if let Some(permit) = other.permits.as_mut().and_then(|it| it.split(permits)) {
            self.hold_permit(permit);
        }
        self.push(other.commands.get(index), moved);
    }

    /// Puts `ASKING` before the command of a batch of one command, so that the node that imports
    /// the slot runs the command. If the command is sent again later, it is sent without `ASKING`,
    /// and may be redirected again.
    pub(super) fn with_asking(mut self) -> Self {
        let command = self.commands.get(0).to_vec();
        self.commands.clear();
        self.commands.push(redis::cmd("ASKING"));
        self.commands.push(&command[..]);
        let asking = QueuedCommand {
            // With `Never`, the `ASKING` would be dropped before it is sent, since no caller waits
            // for its response.
            resend: Resend::UntilAnswered,
            script: None,
            admission: CommandAdmission {
                permits: 0,
                ..self.queued[0].admission
            },
            recipient: Recipient::Nobody,
        };
        self.queued.insert(0, asking);
        self.is_asking = true;
        self
    }

    /// Replaces a script's hash by its source, in a batch of one command.
    pub(super) fn with_script_source(mut self, script: &Script) -> Self {
        let call = script.with_text(self.commands.get(0));
        self.commands.clear();
        self.commands.push(&call[..]);
        // If the server does not accept the source either, the command is not sent again.
        self.queued[0].script = None;
        self
    }

    /// Delivers responses, in the order of the commands. There may be fewer responses than
    /// commands.
    pub(super) fn complete(&mut self, mut responses: Vec<Value>) {
        for (queued, response) in self.queued.iter_mut().zip(&mut responses) {
            if let Recipient::Handler(handler, number) = &queued.recipient {
                handler.completed(*number, Ok(std::mem::take(response)));
                queued.recipient = Recipient::Nobody;
            }
        }
        // All completions are resolved together.
        let Some(completions) = &self.completions else {
            return;
        };
        let answered = self.queued.iter_mut().zip(responses);
        completions.complete(answered.filter_map(|(queued, response)| {
            match std::mem::replace(&mut queued.recipient, Recipient::Nobody) {
                Recipient::Completion(index) => Some((index, Ok(response))),
                _ => None,
            }
        }));
    }

    /// Fails all commands whose responses were not delivered.
    pub(super) fn fail(&mut self, error: impl Fn() -> Error) {
        for queued in &mut self.queued {
            match (&queued.recipient, &self.completions) {
                (Recipient::Completion(index), Some(completions)) => {
                    completions.complete([(*index, Err(error()))]);
                }
                (Recipient::Handler(handler, number), _) => {
                    handler.completed(*number, Err(error()));
                }
                _ => {}
            }
            queued.recipient = Recipient::Nobody;
        }
    }

    /// Fails the commands without a response, and returns the emptied buffers for another batch.
    pub(super) fn into_buffers(mut self) -> Buffers {
        self.fail(error::runtime_ended);
        let mut buffers = Buffers {
            commands: std::mem::take(&mut self.commands),
            queued: std::mem::take(&mut self.queued),
        };
        buffers.commands.clear();
        buffers.queued.clear();
        buffers
    }
}

impl Buffers {
    /// Returns the allocated capacity in bytes.
    pub(super) fn capacity(&self) -> usize {
        self.commands.capacity()
    }
}

impl Drop for CommandBatch {
    /// Fails the remaining commands, so that no caller waits for ever.
    fn drop(&mut self) {
        self.fail(error::runtime_ended);
    }
}
