//! `campanile tasks list`

use std::num::NonZeroUsize;

use campanile::transport::{TaskQuery, TaskState, TaskStatus, Tasks};
use clap::Args;
use serde_json::{Value, json};

use super::{parse_state, show};
use crate::{
    command_error::{CommandError, note},
    show::{Out, Table, text},
};

/// The maximum length of a reason or a progress value in the table, in bytes.
const MAX_NOTE_LEN: usize = 60;

#[derive(Debug, Args)]
pub(crate) struct TaskList {
    /// Only tasks in this state. May be given several times.
    #[arg(long = "state", value_name = "STATE", value_parser = parse_state)]
    states: Vec<TaskState>,
    /// Only tasks with this name.
    #[arg(long)]
    name: Option<String>,
    /// The largest number of tasks to list.
    #[arg(long, short, value_name = "COUNT", default_value = "50")]
    limit: NonZeroUsize,
    /// Starts at this position: the one after the previous page.
    #[arg(long, value_name = "POSITION")]
    after: Option<String>,
}

impl TaskList {
    pub(crate) async fn run(self, tasks: &Tasks, out: &Out) -> Result<(), CommandError> {
        let mut query = TaskQuery::all();
        query.states = self.states;
        query.name = self.name.map(Into::into);
        query.after = self.after;
        let (mut found, mut next) = (Vec::new(), Some(query));
        while let Some(query) = next.take_if(|_| found.len() < self.limit.get()) {
            let page = tasks
                .list(query.max(self.limit.get() - found.len()))
                .await?;
            found.extend(page.tasks);
            next = page.next;
        }
        let next = next.and_then(|query| query.after);
        if out.json {
            return out.write_document(&json!({
                "tasks": found.iter().map(show::task_json).collect::<Value>(),
                "next": next,
            }));
        }
        if found.is_empty() {
            return out.write_lines(["no tasks"]);
        }
        let titles = ["ID", "STATE", "NAME", ">ATTEMPT", "ACCEPTED", "NOTE"];
        let mut table = Table::new(&titles);
        found.iter().for_each(|task| table.add_row(cells_of(task)));
        out.write_lines(table.lines())?;
        if let Some(next) = next {
            note(format!("there are more: --after '{next}'"));
        }
        Ok(())
    }
}

/// Returns the cells of a task. The last cell is the reason, or else the progress.
fn cells_of(task: &TaskStatus) -> [String; 6] {
    let progress = task.progress.as_deref().unwrap_or_default();
    let note = match task.reason.is_empty() {
        true => progress,
        false => task.reason.as_bytes(),
    };
    [
        task.id.to_string(),
        task.state.to_string(),
        task.name.to_string(),
        task.attempt.0.to_string(),
        text::time(task.accepted_at),
        text::excerpt(note, MAX_NOTE_LEN),
    ]
}
