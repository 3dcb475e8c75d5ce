//! `campanile tasks`

mod cancel;
mod list;
mod show;
mod watch;

use campanile::{MessageId, transport::TaskState};
use clap::Subcommand;

use crate::{command_error::CommandError, show::Out, target::Target};

#[derive(Debug, Subcommand)]
pub(crate) enum TasksCommand {
    /// Shows the status of a task that is tracked or unique.
    Status {
        /// The id of the task, as in its receipt.
        id: String,
    },
    /// Waits until a task has ended, and shows its status. Fails if the task was not done.
    Wait {
        /// The id of the task, as in its receipt.
        id: String,
    },
    /// Lists tasks that are tracked or unique, from the newest change to the oldest.
    List(list::TaskList),
    /// Shows changes of tasks as they happen.
    Watch(watch::Watch),
    /// Cancels tasks, in any state.
    ///
    /// A task that is neither tracked nor unique can only be cancelled by its id, while its sender's
    /// delay lasts.
    Cancel(cancel::Cancel),
}

impl TasksCommand {
    pub(crate) async fn run(self, target: &Target, out: &Out) -> Result<(), CommandError> {
        // Does not check the stream and the group: a status may be recorded before they exist.
        let redis = target.connect().await?;
        let tasks = redis.tasks();
        match self {
            Self::Status { id } => {
                let status = tasks.status(&MessageId::from(&*id)).await?;
                let status = status.ok_or_else(|| {
                    CommandError::Missing(format!(
                        "no status is recorded for the task {id}: it is neither tracked nor unique, it \
                         ended too long ago, or its sender has another --stream or --group"
                    ))
                })?;
                show::status(&status, out)
            }
            Self::Wait { id } => {
                let ended = tasks.wait(&MessageId::from(&*id)).await;
                let ended = ended.map_err(|error| match error.is_invalid() {
                    true => CommandError::Missing(error.to_string()),
                    false => error.into(),
                })?;
                show::status(&ended, out)?;
                match ended.state {
                    TaskState::Done => Ok(()),
                    state => Err(CommandError::Failed(format!("the task {id} is {state}"))),
                }
            }
            Self::List(list) => list.run(&tasks, out).await,
            Self::Watch(watch) => watch.run(&tasks, target, out).await,
            Self::Cancel(cancel) => cancel.run(&tasks, out).await,
        }
    }
}

/// Parses the name of a state.
fn parse_state(text: &str) -> Result<TaskState, String> {
    TaskState::from_name(text).ok_or_else(|| {
        "the states are waiting, delayed, running, done, dead, discarded and cancelled".into()
    })
}
