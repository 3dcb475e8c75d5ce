//! `campanile tasks cancel`

use campanile::{
    MessageId, UniqueKey,
    transport::{TaskQuery, TaskState, Tasks},
};
use clap::Args;
use serde_json::json;

use super::parse_state;
use crate::{command_error::CommandError, confirm::Confirm, show::Out};

#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// The id of the task, as in its receipt.
    #[arg(required_unless_present_any = ["unique", "name", "states", "all"])]
    #[arg(conflicts_with_all = ["unique", "name", "states", "all"])]
    id: Option<String>,
    /// The task that holds this unique key.
    #[arg(long, conflicts_with_all = ["name", "states", "all"])]
    unique: Option<String>,
    /// All tasks with this name that have not ended.
    #[arg(long)]
    name: Option<String>,
    /// All tasks in this state: waiting, delayed or running. May be given several times.
    #[arg(long = "state", value_name = "STATE", value_parser = parse_live_state)]
    states: Vec<TaskState>,
    /// All tasks that have not ended.
    #[arg(long, conflicts_with_all = ["name", "states"])]
    all: bool,
    /// The reason, for the status of the task and for its handler.
    #[arg(long, default_value = "cancelled from a terminal")]
    reason: String,
    #[command(flatten)]
    confirm: Confirm,
}

/// Parses the name of a state in which a task can be cancelled.
fn parse_live_state(text: &str) -> Result<TaskState, String> {
    match parse_state(text) {
        Ok(state) if !state.has_ended() => Ok(state),
        _ => Err("a task can be cancelled while it is waiting, delayed or running".into()),
    }
}

impl Cancel {
    pub(crate) async fn run(self, tasks: &Tasks, out: &Out) -> Result<(), CommandError> {
        let cancelled = match (&self.id, &self.unique) {
            (Some(id), _) => {
                let id = MessageId::from(&**id);
                tasks.cancel(&id, &self.reason).await?.then_some(id)
            }
            (None, Some(key)) => {
                let key = UniqueKey::from(&**key);
                tasks.cancel_key(&key, &self.reason).await?
            }
            (None, None) => return self.cancel_matching(tasks, out).await,
        };
        match (cancelled, self.id) {
            (Some(id), _) if out.json => out.write_document(&json!({ "cancelled": &*id })),
            (Some(id), _) => out.write_lines([format!("cancelled {id}")]),
            (None, Some(id)) => Err(CommandError::Missing(format!(
                "the task {id} cannot be cancelled: it has ended, it is unknown, or its sender has \
                 another --stream or --group"
            ))),
            (None, None) => Err(CommandError::Missing(
                "no task holds this key, or its sender has another --stream or --group".into(),
            )),
        }
    }

    async fn cancel_matching(self, tasks: &Tasks, out: &Out) -> Result<(), CommandError> {
        let mut query = TaskQuery::all();
        let names: Vec<_> = self.states.iter().map(|state| state.as_str()).collect();
        let states = match &*names {
            [] => String::new(),
            names => format!("{} ", names.join(" or ")),
        };
        let named = self.name.as_ref().map(|name| format!(" named {name}"));
        let question = format!("Cancel all {states}tasks{}?", named.unwrap_or_default());
        self.confirm.ask(&question).await?;
        query.states = self.states;
        query.name = self.name.map(Into::into);
        let cancelled = tasks.cancel_all(query, &self.reason).await?;
        match out.json {
            true => out.write_document(&json!({ "cancelled": cancelled })),
            false => out.write_lines([format!("cancelled {cancelled} tasks")]),
        }
    }
}
