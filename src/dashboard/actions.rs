//! Carries out changes in the background, and records their progress. An action is a change that
//! was started.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    change::{Change, ChangeKind, Edit, ScheduleCommand},
    context::{Config, DashboardState},
    fault::Fault,
    handle::Handle,
    preview,
};
use crate::{
    error::Error,
    message::{DeadLetterId, Name},
    sync::lock,
    transport::{Action, Selection, TaskQuery},
};

/// The maximum number of actions that are kept.
const MAX_ACTIONS: usize = 200;
/// The maximum number of actions that run at the same time.
const MAX_RUNNING: usize = 8;
/// The maximum length of the operator's name that is stored with an order to a worker, in bytes.
const MAX_OPERATOR_LEN: usize = 200;
/// The maximum time for which a request waits for the end of its action.
const MAX_WAIT: Duration = Duration::from_secs(2);

/// The actions of this process, the newest last.
#[derive(Debug, Default)]
pub(super) struct Actions(Mutex<VecDeque<Arc<StartedAction>>>);

/// A change that was started, and its progress.
#[derive(Debug)]
pub(super) struct StartedAction {
    pub(super) id: String,
    pub(super) started_at: SystemTime,
    pub(super) user: String,
    pub(super) change: Change,
    progress: Mutex<ActionProgress>,
    stop_token: CancellationToken,
}

/// The progress of an action.
#[derive(Debug, Clone, Default)]
pub(super) struct ActionProgress {
    /// The number of messages that the action has changed.
    pub(super) done: u64,
    /// The number of messages that the action will change, if it is known.
    pub(super) total: Option<u64>,
    /// The outcome. `None` while the action runs.
    pub(super) outcome: Option<ActionOutcome>,
}

#[derive(Debug, Clone)]
pub(super) enum ActionOutcome {
    Done(String),
    Stopped(String),
    Failed(String),
}

impl ActionOutcome {
    /// Returns the name of the outcome.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Done(_) => "done",
            Self::Stopped(_) => "stopped",
            Self::Failed(_) => "failed",
        }
    }

    pub(super) fn text(&self) -> &str {
        let (Self::Done(text) | Self::Stopped(text) | Self::Failed(text)) = self;
        text
    }
}

impl StartedAction {
    pub(super) fn progress(&self) -> ActionProgress {
        lock(&self.progress).clone()
    }

    /// Stops the action after its current step. A cancellation of many tasks is stopped
    /// immediately.
    pub(super) fn stop(&self) {
        self.stop_token.cancel();
    }

    fn add_done(&self, done: u64) {
        lock(&self.progress).done += done;
    }

    /// Adds the result of a step to the progress: the number of changed messages, or `None` if
    /// there are no more steps. `word` names the effect, such as "removed". Returns the outcome if
    /// the action ends here.
    fn record_step(&self, step: Result<Option<u64>, Error>, word: &str) -> Option<ActionOutcome> {
        let step = step.map(|done| done.map(|done| self.add_done(done)));
        let done = self.progress().done;
        match step {
            Ok(None) => Some(ActionOutcome::Done(format!("{done} {word}"))),
            Err(error) => {
                let fault = Fault::from(error).text;
                Some(ActionOutcome::Failed(format!(
                    "{done} {word} before it failed: {fault}"
                )))
            }
            Ok(Some(())) if self.stop_token.is_cancelled() => Some(ActionOutcome::Stopped(
                format!("{done} {word}, the others are as they were"),
            )),
            Ok(Some(())) => None,
        }
    }
}

impl Actions {
    /// Returns the kept actions, the newest first.
    pub(super) fn list(&self) -> Vec<Arc<StartedAction>> {
        lock(&self.0).iter().rev().cloned().collect()
    }

    pub(super) fn get(&self, id: &str) -> Result<Arc<StartedAction>, Fault> {
        let found = lock(&self.0).iter().find(|action| action.id == id).cloned();
        found.ok_or_else(|| {
            Fault::not_found("this action is unknown: another process has run it, or it is too old")
        })
    }

    fn add(&self, action: Arc<StartedAction>) -> Result<(), Fault> {
        let mut actions = lock(&self.0);
        let running = actions.iter().filter(|it| it.progress().outcome.is_none());
        if running.count() >= MAX_RUNNING {
            let text = format!("{MAX_RUNNING} actions run already; wait for one, or stop one");
            return Err(Fault::too_many_requests(text));
        }
        actions.push_back(action);
        while actions.len() > MAX_ACTIONS {
            actions.pop_front();
        }
        Ok(())
    }
}

/// Starts a change, and waits at most [`MAX_WAIT`] for its end. The change continues if this future
/// is dropped.
pub(super) async fn begin(
    config: &Arc<Config>,
    state: &Arc<DashboardState>,
    user: &str,
    change: Change,
) -> Result<Arc<StartedAction>, Fault> {
    let action = Arc::new(StartedAction {
        id: Uuid::new_v4().simple().to_string(),
        started_at: SystemTime::now(),
        user: user.to_owned(),
        change,
        progress: Mutex::default(),
        stop_token: CancellationToken::new(),
    });
    state.actions.add(Arc::clone(&action))?;
    let running = tokio::spawn(run(Arc::clone(config), Arc::clone(&action)));
    // The result is not needed: the caller reads the progress of the action.
    let _ = tokio::time::timeout(MAX_WAIT, running).await;
    Ok(action)
}

async fn run(config: Arc<Config>, action: Arc<StartedAction>) {
    let change = &action.change;
    let handle = change.handle(&config);
    let outcome = match carry_out(&handle, &action).await {
        Ok(outcome) => outcome,
        Err(fault) => ActionOutcome::Failed(fault.text),
    };
    let (user, stream) = (preview::line(&action.user), preview::line(&change.stream));
    let group = change.group.as_deref().map(preview::line);
    tracing::info!(
        target: "campanile::dashboard",
        user,
        action = change.verb(),
        subject = change.title(),
        stream,
        group = group.unwrap_or_default(),
        outcome = outcome.as_str(),
        detail = preview::line(outcome.text()),
        "an operator has made a change",
    );
    lock(&action.progress).outcome = Some(outcome);
}

async fn carry_out(handle: &Handle, action: &StartedAction) -> Result<ActionOutcome, Fault> {
    match &action.change.kind {
        ChangeKind::DeadLetters(verb, selection) => {
            act_on_letters(handle, action, *verb, selection).await
        }
        ChangeKind::ReplayEdited(id, edit) => replay_edited(handle, id, edit).await,
        ChangeKind::Pause(target, reason) => {
            let is_new = handle.control().pause(target.clone(), reason).await?;
            let was_paused = "it was paused already; the reason is the new one";
            Ok(done(if is_new { "paused" } else { was_paused }))
        }
        ChangeKind::Resume(target) => {
            let was_paused = handle.control().resume(target.clone()).await?;
            let text = if was_paused {
                "resumed"
            } else {
                "it was not paused"
            };
            Ok(done(text))
        }
        ChangeKind::PurgeWaiting => purge_waiting(handle, action).await,
        ChangeKind::Cancel(id, reason) => {
            let was_cancelled = handle.tasks().cancel(id, reason).await?;
            let not_found = "it has ended already, or it is unknown";
            Ok(done(if was_cancelled {
                "cancelled"
            } else {
                not_found
            }))
        }
        ChangeKind::CancelAll(state, name, reason) => {
            let mut query = TaskQuery::all();
            query.states = state.iter().copied().collect();
            query.name = name.clone();
            cancel_all(handle, action, query, reason).await
        }
        ChangeKind::Schedule(command, name) => change_schedule(handle, *command, name).await,
        ChangeKind::Order(worker, order) => {
            let mut operator = preview::excerpt(&action.user, 60);
            while operator.len() > MAX_OPERATOR_LEN {
                operator.pop();
            }
            let workers = handle.workers();
            Ok(
                match workers.order(worker, order.clone(), &operator).await? {
                    true => done("the worker has the order, and follows it within about a second"),
                    false => failed("there is no live worker of this name"),
                },
            )
        }
    }
}

fn done(text: &str) -> ActionOutcome {
    ActionOutcome::Done(text.to_owned())
}

fn failed(text: &str) -> ActionOutcome {
    ActionOutcome::Failed(text.to_owned())
}

/// Replays an edited copy of a dead letter's message in place of the letter.
async fn replay_edited(
    handle: &Handle,
    id: &DeadLetterId,
    edit: &Edit,
) -> Result<ActionOutcome, Fault> {
    let letters = handle.dead_letters();
    let missing = failed("the letter no longer exists");
    let Some(letter) = letters.get(id).await? else {
        return Ok(missing);
    };
    let message = letter.message();
    let mut message = message.map_err(|undecodable| Fault::bad_request(undecodable.reason))?;
    edit.apply(&mut message);
    Ok(match letters.replay_edited(id, &message).await? {
        true => done("replayed as edited"),
        false => missing,
    })
}

/// Removes the waiting messages, step by step.
async fn purge_waiting(handle: &Handle, action: &StartedAction) -> Result<ActionOutcome, Fault> {
    // The total is unknown if the waiting messages cannot be counted.
    let (stats, group) = (handle.stats().await?, action.change.group.as_deref());
    let waiting = group.and_then(|group| stats.group(group)?.waiting());
    lock(&action.progress).total = waiting;
    let mut steps = handle.control().purge_steps();
    loop {
        if let Some(outcome) = action.record_step(steps.next().await, "removed") {
            return Ok(outcome);
        }
    }
}

/// Cancels all tasks of a query in one call. A stop of the action drops the call.
async fn cancel_all(
    handle: &Handle,
    action: &StartedAction,
    query: TaskQuery,
    reason: &str,
) -> Result<ActionOutcome, Fault> {
    let tasks = handle.tasks();
    tokio::select! {
        cancelled = tasks.cancel_all(query, reason) => {
            let cancelled = cancelled?;
            action.add_done(cancelled);
            Ok(done(&format!("{cancelled} tasks cancelled")))
        }
        () = action.stop_token.cancelled() => {
            Ok(ActionOutcome::Stopped("some tasks may have been cancelled".into()))
        }
    }
}

async fn change_schedule(
    handle: &Handle,
    command: ScheduleCommand,
    name: &Name,
) -> Result<ActionOutcome, Fault> {
    let schedules = handle.schedules();
    let missing = "there is no such schedule";
    let (was_found, text) = match command {
        ScheduleCommand::Pause => (schedules.pause(name).await?, "paused"),
        ScheduleCommand::Resume => (schedules.resume(name).await?, "resumed"),
        ScheduleCommand::Remove => (schedules.remove(name).await?, "removed"),
        ScheduleCommand::RunNow => {
            return Ok(match schedules.run_now(name).await? {
                None => failed(missing),
                Some(run) if run.is_skipped => done(&format!(
                    "nothing was sent: the task {} of an earlier run has not ended",
                    run.task
                )),
                Some(run) => done(&format!("sent the task {}", run.task)),
            });
        }
    };
    Ok(done(if was_found { text } else { missing }))
}

/// Replays or deletes dead letters, step by step.
async fn act_on_letters(
    handle: &Handle,
    action: &StartedAction,
    verb: Action,
    selection: &Selection,
) -> Result<ActionOutcome, Fault> {
    let letters = handle.dead_letters();
    lock(&action.progress).total = match selection {
        Selection::Ids(ids) => Some(ids.len() as u64),
        Selection::All => Some(letters.count().await?),
        Selection::Named(_) => None,
    };
    let word = match verb {
        Action::Replay => "replayed",
        Action::Purge => "deleted",
    };
    let mut steps = letters.steps(verb, selection.clone());
    let outcome = loop {
        if let Some(outcome) = action.record_step(steps.next().await, word) {
            break outcome;
        }
    };
    // The text of a complete action also counts the letters that were left out.
    let (ActionOutcome::Done(mut text), done) = (outcome.clone(), action.progress().done) else {
        return Ok(outcome);
    };
    let skipped = steps.skipped().len() as u64;
    if skipped > 0 {
        text.push_str(&format!(
            "; {skipped} cannot be replayed, since their fields cannot be read"
        ));
    }
    if let (Selection::Ids(ids), true) = (selection, verb == Action::Replay || skipped == 0) {
        let missing = (ids.len() as u64).saturating_sub(done + skipped);
        if missing > 0 {
            text.push_str(&format!("; {missing} were not there any more"));
        }
    }
    Ok(ActionOutcome::Done(text))
}
