//! The changes that a user can make.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use super::{
    context::Config, fault::Fault, form::FormFields, handle::Handle, layout::short_worker, preview,
};
use crate::{
    message::{DeadLetterId, Message, MessageId, Name},
    transport::{Action, PauseTarget, Selection, TaskState, WorkerOrder},
};

/// The maximum number of dead letters whose ids one change can list.
const MAX_SELECTED: usize = 500;

/// A change of a stream.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) stream: Name,
    /// The group. `None` if the change affects the whole stream.
    pub(super) group: Option<Name>,
    pub(super) kind: ChangeKind,
}

#[derive(Debug, Clone)]
pub(super) enum ChangeKind {
    DeadLetters(Action, Selection),
    ReplayEdited(DeadLetterId, Box<Edit>),
    /// A pause, with its reason.
    Pause(PauseTarget, String),
    Resume(PauseTarget),
    PurgeWaiting,
    /// The cancellation of a task, with its reason.
    Cancel(MessageId, String),
    /// The cancellation, with its reason, of all recorded tasks in this state and with this name.
    CancelAll(Option<TaskState>, Option<Name>, String),
    Schedule(ScheduleCommand, Name),
    /// An order to the worker of this name.
    Order(String, WorkerOrder),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScheduleCommand {
    Pause,
    Resume,
    RunNow,
    Remove,
}

/// The new content of a dead letter's message.
#[derive(Debug, Clone)]
pub(super) struct Edit {
    name: Name,
    headers: Vec<(HeaderName, HeaderValue)>,
    payload: String,
}

impl Edit {
    fn of(form: &FormFields) -> Result<Self, Fault> {
        let text = form.get("headers").unwrap_or_default();
        let mut headers = Vec::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let header = line.split_once(':').and_then(|(name, value)| {
                let name = HeaderName::try_from(name.trim()).ok()?;
                Some((name, HeaderValue::try_from(value.trim()).ok()?))
            });
            let bad = || {
                let line = preview::excerpt(line, 80);
                Fault::bad_request(format!(
                    "`{line}` is no header: write `name: value` on each line"
                ))
            };
            headers.push(header.ok_or_else(bad)?);
        }
        let payload = form.get("payload").unwrap_or_default();
        // Browsers end each line of a form field with `\r\n`. The field `crlf` is set if the
        // payload of the dead letter had `\r\n`.
        let payload = match form.get("crlf") {
            Some(_) => payload.to_owned(),
            None => payload.replace("\r\n", "\n"),
        };
        Ok(Self {
            name: form.name("name")?,
            headers,
            payload,
        })
    }

    pub(super) fn apply(&self, message: &mut Message) {
        message.parts_mut().name = self.name.clone();
        let headers = message.headers_mut();
        // The form does not show headers whose values are not text, so these headers are kept.
        let old = std::mem::take(headers);
        for (name, value) in old.iter().filter(|(_, value)| value.to_str().is_err()) {
            headers.append(name.clone(), value.clone());
        }
        for (name, value) in &self.headers {
            headers.append(name.clone(), value.clone());
        }
        *message.payload_mut() = Bytes::from(self.payload.clone());
    }

    pub(super) fn payload(&self) -> &str {
        &self.payload
    }
}

impl Change {
    /// Reads a change from a form or from the parameters of a query.
    pub(super) fn of(form: &FormFields) -> Result<Self, Fault> {
        let reason = || {
            form.get("reason")
                .unwrap_or("from the dashboard")
                .to_owned()
        };
        // The kind of the change. `is_of_group` is `true` if the change usually needs a group.
        let (is_of_group, kind) = match form.need("do")? {
            "replay" => (
                true,
                ChangeKind::DeadLetters(Action::Replay, selection(form)?),
            ),
            "purge" => (
                true,
                ChangeKind::DeadLetters(Action::Purge, selection(form)?),
            ),
            "replay-edited" => {
                let id = form.need("id")?.into();
                (
                    true,
                    ChangeKind::ReplayEdited(id, Box::new(Edit::of(form)?)),
                )
            }
            "pause" => (true, ChangeKind::Pause(target(form)?, reason())),
            "resume" => (true, ChangeKind::Resume(target(form)?)),
            "purge-waiting" => (true, ChangeKind::PurgeWaiting),
            "cancel" => (true, ChangeKind::Cancel(form.need("id")?.into(), reason())),
            "cancel-all" => {
                let state = form.get("state").map(|state| {
                    let state = TaskState::from_name(state);
                    let live = state.filter(|state| !state.has_ended());
                    live.ok_or_else(|| {
                        Fault::bad_request(
                            "only waiting, delayed and running tasks can be cancelled",
                        )
                    })
                });
                let name = form.get("name").map(Name::from);
                (
                    true,
                    ChangeKind::CancelAll(state.transpose()?, name, reason()),
                )
            }
            "schedule-pause" => (false, schedule(form, ScheduleCommand::Pause)?),
            "schedule-resume" => (false, schedule(form, ScheduleCommand::Resume)?),
            "schedule-run" => (false, schedule(form, ScheduleCommand::RunNow)?),
            "schedule-remove" => (false, schedule(form, ScheduleCommand::Remove)?),
            "order" => (
                true,
                ChangeKind::Order(form.need("worker")?.to_owned(), order(form)?),
            ),
            other => {
                let other = preview::excerpt(other, 40);
                return Err(Fault::bad_request(format!("there is no change `{other}`")));
            }
        };
        // A pause of the whole stream has no group.
        let group = match &kind {
            ChangeKind::Pause(PauseTarget::Stream, _) | ChangeKind::Resume(PauseTarget::Stream) => {
                None
            }
            _ if is_of_group => Some(form.name("group")?),
            _ => None,
        };
        let stream = form.name("stream")?;
        Ok(Self {
            stream,
            group,
            kind,
        })
    }

    /// Returns a handle of the stream and the group.
    pub(super) fn handle(&self, config: &Config) -> Handle {
        let handle = config.handle.stream(&self.stream);
        match &self.group {
            Some(group) => handle.group(group),
            None => handle,
        }
    }

    /// Returns the value of the form parameter `do` that stands for this change.
    pub(super) fn verb(&self) -> &'static str {
        match &self.kind {
            ChangeKind::DeadLetters(Action::Replay, _) => "replay",
            ChangeKind::DeadLetters(Action::Purge, _) => "purge",
            ChangeKind::ReplayEdited(..) => "replay-edited",
            ChangeKind::Pause(..) => "pause",
            ChangeKind::Resume(_) => "resume",
            ChangeKind::PurgeWaiting => "purge-waiting",
            ChangeKind::Cancel(..) => "cancel",
            ChangeKind::CancelAll(..) => "cancel-all",
            ChangeKind::Schedule(command, _) => match command {
                ScheduleCommand::Pause => "schedule-pause",
                ScheduleCommand::Resume => "schedule-resume",
                ScheduleCommand::RunNow => "schedule-run",
                ScheduleCommand::Remove => "schedule-remove",
            },
            ChangeKind::Order(..) => "order",
        }
    }

    /// Returns `true` if the change cannot be undone.
    pub(super) fn is_destructive(&self) -> bool {
        matches!(
            &self.kind,
            ChangeKind::DeadLetters(Action::Purge, _)
                | ChangeKind::PurgeWaiting
                | ChangeKind::Cancel(..)
                | ChangeKind::CancelAll(..)
                | ChangeKind::Schedule(ScheduleCommand::Remove, _)
                | ChangeKind::Order(_, WorkerOrder::Drain)
        )
    }

    /// Describes the change as the text of a button: `Replay 3 dead letters`.
    pub(super) fn title(&self) -> String {
        let letters = |selection: &Selection| match selection {
            Selection::Ids(ids) if ids.len() == 1 => {
                format!("the dead letter {}", preview::line(&ids[0]))
            }
            Selection::Ids(ids) => format!("{} dead letters", ids.len()),
            Selection::Named(name) => format!("all dead letters named {}", preview::line(name)),
            Selection::All => "all dead letters".to_owned(),
        };
        match &self.kind {
            ChangeKind::DeadLetters(Action::Replay, selection) => {
                format!("Replay {}", letters(selection))
            }
            ChangeKind::DeadLetters(Action::Purge, selection) => {
                format!("Delete {} for good", letters(selection))
            }
            ChangeKind::ReplayEdited(id, _) => {
                format!("Replay the dead letter {} as edited", preview::line(id))
            }
            ChangeKind::Pause(target, _) => format!("Pause {}", target_text(target)),
            ChangeKind::Resume(target) => format!("Resume {}", target_text(target)),
            ChangeKind::PurgeWaiting => "Remove all messages that wait, for good".to_owned(),
            ChangeKind::Cancel(id, _) => format!("Cancel the task {}", preview::line(id)),
            ChangeKind::CancelAll(state, name, _) => {
                let state = state.map_or(String::new(), |state| format!(" {state}"));
                let name = name.as_ref();
                let name = name.map_or(String::new(), |name| {
                    format!(" named {}", preview::line(name))
                });
                format!("Cancel all{state} recorded tasks{name}")
            }
            ChangeKind::Schedule(command, name) => {
                let verb = match command {
                    ScheduleCommand::Pause => "Pause",
                    ScheduleCommand::Resume => "Resume",
                    ScheduleCommand::RunNow => "Run",
                    ScheduleCommand::Remove => "Remove",
                };
                let suffix = if *command == ScheduleCommand::RunNow {
                    " now"
                } else {
                    ""
                };
                format!("{verb} the schedule {}{suffix}", preview::line(name))
            }
            ChangeKind::Order(worker, order) => {
                let name = |name: &Name| preview::line(name);
                let what = match order {
                    WorkerOrder::Drain => "Drain".to_owned(),
                    WorkerOrder::Pause => "Pause".to_owned(),
                    WorkerOrder::Resume => "Resume".to_owned(),
                    WorkerOrder::Limit(Some(max)) => format!("Limit to {max} in flight"),
                    WorkerOrder::Limit(None) => "End the limit of".to_owned(),
                    WorkerOrder::PauseName(paused) => format!("Pause the name {} on", name(paused)),
                    WorkerOrder::ResumeName(paused) => {
                        format!("Resume the name {} on", name(paused))
                    }
                };
                let worker = preview::line(short_worker(worker));
                format!("{what} the worker {worker}")
            }
        }
    }

    /// Returns a sentence about the effect of the change.
    pub(super) fn effect(&self) -> &'static str {
        match &self.kind {
            ChangeKind::DeadLetters(Action::Replay, _) => {
                "The messages are delivered again to this group, from their first attempt."
            }
            ChangeKind::DeadLetters(Action::Purge, _) => {
                "The letters are deleted. Nothing keeps a copy."
            }
            ChangeKind::ReplayEdited(..) => {
                "The message is delivered again to this group with the new content, from its first attempt."
            }
            ChangeKind::Pause(PauseTarget::Name(_), _) => {
                "Messages with this name are parked, in their order. Other messages go on, and so do handlers that run."
            }
            ChangeKind::Pause(..) => {
                "Workers deliver nothing new until you resume. Handlers that run end as usual, and senders go on."
            }
            ChangeKind::Resume(_) => "Workers go on within about a second.",
            ChangeKind::PurgeWaiting => {
                "Messages that no worker has fetched, that wait for their next attempt, or that are parked are removed. Running messages stay, and so do tasks that their senders have delayed."
            }
            ChangeKind::Cancel(..) | ChangeKind::CancelAll(..) => {
                "A task that waits does not run. A running one is stopped at its next await, within about a second."
            }
            ChangeKind::Schedule(ScheduleCommand::Pause, _) => {
                "Its ticks send nothing until you resume it."
            }
            ChangeKind::Schedule(ScheduleCommand::Resume, _) => {
                "It goes on with its next tick. Ticks during the pause are left out."
            }
            ChangeKind::Schedule(ScheduleCommand::RunNow, _) => {
                "Its task is sent once, and its ticks stay as they are."
            }
            ChangeKind::Schedule(ScheduleCommand::Remove, _) => {
                "It sends nothing more, unless a process stores it again when it starts."
            }
            ChangeKind::Order(_, order) => match order {
                WorkerOrder::Drain => {
                    "It fetches nothing more, waits for what runs, and ends. A supervisor may start its process again."
                }
                WorkerOrder::Pause => {
                    "It fetches nothing until it is resumed, or its process is started again. What runs ends as usual."
                }
                WorkerOrder::Limit(_) => {
                    "The limit lowers the configured number of deliveries in flight and cannot raise it. It ends with the process."
                }
                WorkerOrder::PauseName(_) => {
                    "This worker puts messages with this name back, for the others of the group. If there are no others, they wait for the back-off again and again."
                }
                WorkerOrder::Resume | WorkerOrder::ResumeName(_) => {
                    "It goes on within about a second."
                }
            },
        }
    }

    /// Returns the path of the page from which the change usually comes.
    pub(super) fn page(&self) -> &'static str {
        match &self.kind {
            ChangeKind::DeadLetters(..) | ChangeKind::ReplayEdited(..) => "/dead",
            ChangeKind::Pause(..) | ChangeKind::Resume(_) => "/pauses",
            ChangeKind::PurgeWaiting => "/waiting",
            ChangeKind::Cancel(..) | ChangeKind::CancelAll(..) => "/tasks",
            ChangeKind::Schedule(..) => "/schedules",
            ChangeKind::Order(..) => "/workers",
        }
    }
}

fn schedule(form: &FormFields, command: ScheduleCommand) -> Result<ChangeKind, Fault> {
    Ok(ChangeKind::Schedule(command, form.need("schedule")?.into()))
}

fn order(form: &FormFields) -> Result<WorkerOrder, Fault> {
    let word = form.need("order")?;
    let order = WorkerOrder::parse(word, form.get("to").unwrap_or_default());
    order.ok_or_else(|| {
        Fault::bad_request(
            "an order is `drain`, `pause`, `resume`, `limit` with a number from 1 or nothing in `to`, or \
             `pause-name` or `resume-name` with a name in `to`",
        )
    })
}

fn selection(form: &FormFields) -> Result<Selection, Fault> {
    let ids: Vec<_> = form.all("id").collect();
    match (ids.len(), form.get("name"), form.get("all")) {
        (0, Some(name), _) => Ok(Selection::named(name)),
        (0, None, Some(_)) => Ok(Selection::All),
        (0, None, None) => Err(Fault::bad_request(
            "no dead letter is selected: tick some first",
        )),
        (1..=MAX_SELECTED, ..) => Ok(Selection::ids(ids)),
        (count, ..) => {
            let text =
                format!("{count} dead letters are selected, and at most {MAX_SELECTED} can be");
            Err(Fault::bad_request(text))
        }
    }
}

fn target(form: &FormFields) -> Result<PauseTarget, Fault> {
    match form.need("target")? {
        "stream" => Ok(PauseTarget::Stream),
        "group" => Ok(PauseTarget::Group),
        "name" => Ok(PauseTarget::Name(form.name("name")?)),
        _ => Err(Fault::bad_request(
            "the `target` of a pause is `stream`, `group` or `name`",
        )),
    }
}

/// Names the target of a pause.
pub(super) fn target_text(target: &PauseTarget) -> String {
    match target {
        PauseTarget::Stream => "the stream, for all its groups".to_owned(),
        PauseTarget::Group => "the group".to_owned(),
        PauseTarget::Name(name) => format!("the name {}", preview::line(name)),
    }
}
